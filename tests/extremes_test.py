"""Settings that their rules accept, at their extremes: a dictionary trains, or one line says why it cannot."""

import jax
import numpy as np
import pytest

from monojax import mesh
from monojax.config import INT32, InputError
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.sweep import train_sweep
from monojax.sae.train import train_sae
from monojax.subjects.config import SubjectConfig, TransformerConfig
from monojax.subjects.train import train_subject


class Rows:
  def batch(self, step):
    return np.random.default_rng(step).exponential(size=(16, 8)).astype(np.float32)

  def sample(self, n_rows, seed):
    return np.random.default_rng(seed).exponential(size=(min(n_rows, 64), 8)).astype(np.float32)


def fit(directory, **settings):
  config = SAEConfig(**{"n_features": 8, "batch_rows": 16, "n_steps": 4, "k": 2, **settings})
  return train_sae(config, Rows(), Wiring((8,)), directory, {}, one_device(), MetricsConfig())


def one_device():
  return mesh.make_mesh(mesh.MeshConfig(1, 1))


@pytest.mark.parametrize("settings", [
    {"n_features": INT32}, {"n_features": 2**28, "group_sizes": (2,)}, {"batch_rows": INT32},
    {"batch_rows": 2**20, "scan_steps": INT32, "n_steps": INT32, "checkpoint_every_steps": INT32},
    {"recipe": "topk", "n_features": INT32, "k": INT32}], ids=str)
def test_a_dictionary_that_memory_cannot_hold_is_refused_at_once(tmp_path, settings):
  with pytest.raises(InputError, match=r"sae.n_features=\d+: needs [\d,]+ GB of memory at least, and there are"):
    fit(tmp_path, **settings)
  configs = [SAEConfig(**{"k": 2, **settings, "seed": seed}) for seed in range(2)]
  with pytest.raises(InputError, match="GB of memory"):
    train_sweep(configs, Rows(), Wiring((8,)), tmp_path, dict.fromkeys(range(2)), one_device(), MetricsConfig())
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model, settings", [
    ({"d_model": INT32 - 7}, {}), ({"d_mlp": INT32}, {}), ({"n_layers": 64, "d_model": 2**16}, {}),
    ({}, {"n_context": INT32}), ({}, {"batch_contexts": INT32}), ({"vocab_size": INT32}, {})], ids=str)
def test_a_subject_that_memory_cannot_hold_is_refused_at_once(tmp_path, model, settings):
  config = SubjectConfig(model=TransformerConfig(**{"vocab_size": 64, **model}), **settings)
  with pytest.raises(InputError, match=r"subject.model.d_model=\d+: needs [\d,]+ GB of memory at least"):
    train_subject(config, None, tmp_path, {}, one_device(), MetricsConfig())
  assert not list(tmp_path.iterdir())


HUGE, TINY = 3.4e38, 1.2e-38
FEW = [{"slots": INT32, "code": "sparse"}, {"sparsity_coefficient": HUGE}]
MORE = [{"learning_rate": HUGE}, {"learning_rate": TINY}, {"adam_epsilon": HUGE}, {"adam_epsilon": TINY},
        {"beta1": 0.9999999, "beta2": 0.9999999}, {"clip_norm": TINY}, {"clip_norm": HUGE}, {"group_weight": HUGE},
        {"orthogonality_coefficient": HUGE}, {"warmup_steps": INT32, "penalty_warmup_steps": INT32},
        {"dead_window_steps": INT32}, {"resample_every_steps": 1, "resample_times": INT32, "resample_rows": 16},
        {"resample_every_steps": 2, "resample_encoder_scale": HUGE, "dead_window_steps": 1, "resample_rows": 16},
        {"recipe": "topk", "aux_k": INT32, "dead_window_steps": 1}, {"recipe": "topk", "aux_coefficient": HUGE},
        {"recipe": "topk", "multi_k_coefficient": HUGE}, {"recipe": "jumprelu", "threshold": TINY, "bandwidth": TINY},
        {"recipe": "jumprelu", "threshold": HUGE, "bandwidth": HUGE}, {"recipe": "jan2025", "pull_coefficient": HUGE},
        {"ema_decay": 0.9999999}, {"decay_fraction": 1.0}, {"seed": 2**32 - 1}, {"start_rows": INT32},
        {"n_features": 1, "k": 1}, {"recipe": "topk", "batch_rows": 16, "accumulate": 16}]


@pytest.mark.parametrize("settings", [*FEW, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)], ids=str)
def test_what_is_accepted_trains_or_says_why_not(tmp_path, settings):
  try:
    _, params = fit(tmp_path, **settings)
  except (InputError, FloatingPointError) as error:
    assert "\n" not in str(error)
    assert not (tmp_path / "dictionary").exists()
  else:
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
