"""A sweep against separate runs."""

import jax
import numpy as np
import pytest

from monojax import checkpoint, mesh
from monojax.config import InputError
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig, SweepConfig
from monojax.sae.model import Wiring
from monojax.sae.sweep import groups_of, name_of, train_sweep
from monojax.sae.train import train_sae

M = 12
BASE = SAEConfig(n_features=24, batch_rows=32, n_steps=24, scan_steps=4, checkpoint_every_steps=8, start_rows=64,
                 resample_every_steps=12, resample_rows=64, dead_window_steps=2, learning_rate=0.02,
                 sparsity_coefficient=0.1)


class Rows:
  """A source of exponential rows; counts the batches it was asked for, and optionally fails at one."""

  def __init__(self, fail_at=None):
    self.fail_at, self.asked = fail_at, []

  def batch(self, step):
    if step == self.fail_at:
      raise KeyboardInterrupt
    self.asked.append(step)
    return np.random.default_rng(step).exponential(size=(32, M)).astype(np.float32)

  def sample(self, n_rows, seed):
    return np.random.default_rng(7).exponential(size=(n_rows, M)).astype(np.float32)


def one_mesh():
  return mesh.make_mesh(mesh.MeshConfig(1, 1))


def members():
  l1 = SweepConfig(sparsities=(0.05, 0.3), seeds=(0, 3)).configs(BASE)
  topk = SweepConfig(learning_rates=(0.01, 0.02)).configs(SAEConfig(**{**BASE.__dict__, "recipe": "topk", "k": 3,
                                                             "sparsity_coefficient": None}))
  return l1 + topk


def sweep(directory, source, configs):
  identities = {name_of(config): {"name": name_of(config)} for config in configs}
  return train_sweep(configs, source, Wiring((M,)), directory, identities, one_mesh(), MetricsConfig())


@pytest.mark.bits
def test_members_are_bit_for_bit_what_runs_of_their_own_give(tmp_path):
  configs = members()
  assert [len(group) for group in groups_of(configs)] == [4, 2]
  source = Rows()
  found = sweep(tmp_path / "sweep", source, configs)
  drawn = [step for step in source.asked if step < BASE.n_steps]
  assert len(found) == 6 and drawn.count(0) == 1, "the data is read once"
  for name, (config, _, params) in found.items():
    _, alone = train_sae(config, Rows(), Wiring((M,)), tmp_path / name, {}, one_mesh(), MetricsConfig())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(alone))
    kept, saved, _ = checkpoint.load_params(tmp_path / "sweep" / "dictionaries" / name)
    jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(alone))
    assert saved["name"] == name and saved["sae"]["seed"] == config.seed


def test_an_interrupted_sweep_goes_on(tmp_path):
  configs = members()[:2] + members()[-1:]
  whole = sweep(tmp_path / "whole", Rows(), configs)
  with pytest.raises(KeyboardInterrupt):
    sweep(tmp_path / "cut", Rows(fail_at=15), configs)
  resumed = sweep(tmp_path / "cut", Rows(), configs)
  for name in whole:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole[name][2]), jax.device_get(resumed[name][2]))


@pytest.mark.bits
def test_a_member_that_diverges_is_left_out(tmp_path, capsys):
  good, bad = SweepConfig(learning_rates=(0.01, 1e30)).configs(BASE)
  alone = sweep(tmp_path / "alone", Rows(), [good])
  found = sweep(tmp_path / "both", Rows(), [good, bad])
  assert set(found) == {name_of(good)} and f"{name_of(bad)} diverged" in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(alone[name_of(good)][2]),
               jax.device_get(found[name_of(good)][2]))
  with pytest.raises(FloatingPointError):
    sweep(tmp_path / "neither", Rows(), [bad])


def test_what_a_sweep_cannot_do_is_named(tmp_path):
  with pytest.raises(InputError, match="sae.batch_rows"):
    sweep(tmp_path, Rows(), [BASE, SAEConfig(**{**BASE.__dict__, "batch_rows": 64, "seed": 1})])
  with pytest.raises(InputError, match="twice"):
    sweep(tmp_path, Rows(), [BASE, BASE])
