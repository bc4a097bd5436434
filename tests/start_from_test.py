"""Other dictionaries to start from, and rows as people give them: what cannot learn, and what is not finite."""

import dataclasses
import json
import shutil

import foreign_saes as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_saes import MAKERS, F, K, M, rows
from interop_test import own
from safetensors.numpy import load_file, save_file

import monojax
from monojax import InputError, interop
from monojax.interop.plain import plain_of, without_norms
from monojax.sae import begin, form
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.plain import plain_encoder
from monojax.sae.recipes import make_recipe


@pytest.mark.parametrize("theirs, ours", [
    ("batchtopk", "jumprelu"), ("jumprelu", "gated"), ("apr2024", "gated"), ("apr2024", "jumprelu"),
    ("batchtopk", "gated"), ("gated", "jumprelu"), ("jumprelu", "jan2025")])
def test_parameters_of_another_recipe_compute_the_same_features(theirs, ours):
  knobs = {"batchtopk": {"k": 4}, "jumprelu": {"threshold": 0.5}}
  sae = own(theirs, **knobs.get(theirs, {}))
  model = make_recipe(SAEConfig(ours, n_features=F, **knobs.get(ours, {})), Wiring((M,)), np.float32).model
  params = form.like(model, sae.model, sae.params)
  x = rows()
  found = model.apply({"params": {name: params[name] for name in model.init(jax.random.key(0), x[:1])["params"]}}, x,
                      method="encode")
  expected = sae.encode(x)
  assert 0.02 < (expected > 0).mean() < 0.9
  differs = np.abs(np.asarray(found) - expected) > 1e-4  # a feature at its threshold may be on its other side
  assert differs.mean() < 1e-3


def test_features_that_no_gradient_would_move_are_given_one(capsys):
  """Thresholds of nearly 0 and directions of zeros, and nothing else."""
  own_start = {"log_threshold_F": jnp.full(F, np.log(0.5)), "W_enc_MF": jnp.full((M, F), 7.0),
               "W_dec_FO": jnp.full((F, M), 9.0), "b_enc_F": jnp.full(F, 3.0), "b_dec_O": jnp.full(M, 2.0)}
  params = {"log_threshold_F": jnp.log(jnp.linspace(0.3, 1, F)).at[4].set(np.log(1e-30)), "b_dec_O": jnp.ones(M),
            "W_enc_MF": jnp.ones((M, F)), "W_dec_FO": jnp.ones((F, M)).at[2].set(0), "b_enc_F": jnp.ones(F)}
  found = begin._able_to_learn(params, own_start, (params["W_dec_FO"] == 0).all(1))
  printed = capsys.readouterr().out
  assert "1 features there have no direction" in printed and "1 features there fire from (nearly) 0 on" in printed
  assert np.exp(found["log_threshold_F"][4]) == pytest.approx(0.01)
  assert np.exp(found["log_threshold_F"][2]) == pytest.approx(0.5)
  assert (found["W_enc_MF"][:, 2] == 7).all() and (found["W_dec_FO"][2] == 9).all() and found["b_enc_F"][2] == 3
  others = np.delete(np.arange(F), [2, 4])
  for name, axis in (("log_threshold_F", 0), ("W_enc_MF", 1), ("W_dec_FO", 0), ("b_enc_F", 0)):
    np.testing.assert_array_equal(jnp.take(found[name], others, axis), jnp.take(params[name], others, axis))
  assert (found["b_dec_O"] == 1).all()


@pytest.mark.parametrize("recipe", ["topk", "apr2024", pytest.param("jumprelu", marks=pytest.mark.slow)])
def test_training_goes_on_from_a_dictionary_with_directions_of_zeros(recipe, tmp_path):
  made = foreign.sae_lens(tmp_path / "a", "jumprelu")
  weights = made.path / "sae_weights.safetensors"
  tensors = load_file(weights)
  tensors["W_dec"][3], tensors["threshold"] = 0, np.zeros(F, np.float32)
  save_file(tensors, weights)
  more = {"k": K} if recipe == "topk" else {"sparsity_coefficient": 0.1}
  sae = monojax.train(rows(512), recipe, n_features=F, n_steps=4, batch_rows=128, start_rows=256,
                      start_from=str(made.path), **more)
  assert all(np.isfinite(value).all() for value in sae.params.values())


def test_a_feature_without_a_direction_stays_silent_where_norms_are_folded(tmp_path):
  made = MAKERS["sae_lens topk by norm"](tmp_path)
  weights = made.path / "sae_weights.safetensors"
  tensors = load_file(weights)
  tensors["W_dec"][3], tensors["b_enc"][3] = 0, 100  # it would be the largest of every row
  save_file(tensors, weights)
  sae, x = interop.read(made.path), rows()
  f = sae.encode(x)
  assert not f[:, 3].any() and (f > 0).sum(1).max() == K
  plain = without_norms(plain_of(sae, "sparsify"))
  h = x @ plain.params["W_enc_MF"] + plain.params["b_enc_F"]
  assert not h[:, 3].any()
  of_page = plain_encoder(sae)
  assert not of_page.arrays["encoder"][:, 3].any() and of_page.arrays["bias"][3] == 0


def test_what_files_do_not_say_is_refused_or_as_the_library_has_it(tmp_path):
  for kind in ("AutoEncoderTopK", "BatchTopKSAE"):
    made = foreign.dictionary_learning(tmp_path / kind, kind, config=False)
    with pytest.raises(InputError, match="AutoEncoderTopK or BatchTopKSAE.*config.json"):
      interop.read(made.path)
  made = MAKERS["sae_lens standard centred"](tmp_path)
  cfg = json.loads((made.path / "cfg.json").read_text())
  del cfg["apply_b_dec_to_input"]
  (made.path / "cfg.json").write_text(json.dumps(cfg))
  np.testing.assert_allclose(interop.read(made.path).encode(rows()), made.encode(rows()), atol=2e-5)
  for i, change in enumerate(({"signed": True}, {"embed_skip": True})):
    made = foreign.sparsify(tmp_path / str(i))
    cfg = json.loads((made.path / "cfg.json").read_text())
    (made.path / "cfg.json").write_text(json.dumps({**cfg, **change}))
    with pytest.raises(InputError, match=next(iter(change))):
      interop.read(made.path)
  made = foreign.sparsify(tmp_path / "more")
  tensors = load_file(made.path / "sae.safetensors")
  save_file({**tensors, "W_gram": np.zeros((2, 2), np.float32)}, made.path / "sae.safetensors")
  with pytest.raises(InputError, match="W_gram.*does not know"):
    interop.read(made.path)


def test_folders_named_by_numbers_are_no_checkpoints_of_ours(tmp_path):
  made = MAKERS["sae_lens standard"](tmp_path)
  shutil.copytree(made.path, made.path / "8")
  np.testing.assert_allclose(monojax.SAE.load(made.path).encode(rows()), made.encode(rows()), atol=2e-5)
  (tmp_path / "layers").mkdir()
  shutil.copytree(made.path, tmp_path / "layers" / "8")
  with pytest.raises(InputError, match="holds no dictionary of a format that monojax reads"):
    monojax.SAE.load(tmp_path / "layers")


@pytest.mark.parametrize("kind", ["tm2023", "topk", "jumprelu", "gated"])
def test_rows_that_are_not_finite_have_no_features(kind):
  sae, x = own(kind, **({"k": 4} if kind == "topk" else {})), rows(20)
  x[3, 2], x[7, 0] = np.nan, np.inf
  f = sae.encode(x)
  assert np.isnan(f[[3, 7]]).all() and np.isfinite(np.delete(f, [3, 7], 0)).all()
  with pytest.raises(InputError, match="x=.NaN or infinite"):
    sae.metrics(x)
  with pytest.raises(InputError, match="y.shape.*needs rows of"):
    sae.metrics(rows(20), rows(20)[:, :1])


def test_decoding_takes_the_input_from_any_library(tmp_path):
  torch = pytest.importorskip("torch")
  sae = interop.read(MAKERS["sparsify skip"](tmp_path).path)
  x = np.round(8 * rows(20)) / 8
  f = sae.encode(x)
  asked = torch.tensor(x, requires_grad=True)
  np.testing.assert_allclose(sae.decode(f, asked), sae.decode(f, x), atol=1e-6)
  np.testing.assert_allclose(sae.decode(jnp.asarray(f), asked), sae.decode(f, x), atol=1e-6)
  np.testing.assert_allclose(sae.decode(torch.tensor(f), asked.bfloat16()), sae.decode(f, x), atol=0.1)


def test_arguments_of_train_are_used_or_refused(tmp_path):
  quick = dict(n_steps=2, batch_rows=128, start_rows=256)
  with pytest.raises(InputError, match="k=2: is no setting of jumprelu"):
    monojax.train(rows(512), "jumprelu", k=2)
  monojax.train(rows(512), n_features=F, k=4, workdir=tmp_path, **quick)
  for more in ({"recipe": "topk"}, {"n_features": 2 * F}):
    with pytest.raises(InputError, match=next(iter(more))):
      monojax.train(rows(512), workdir=tmp_path, extend=True, **{**quick, "n_steps": 3}, **more)
  sae = monojax.train(rows(512), workdir=tmp_path, extend=True, **{**quick, "n_steps": 3})
  assert sae.config.n_steps == 3 and sae.config.n_features == F


@pytest.mark.parametrize("recipe", ["batchtopk", pytest.param("topk", marks=pytest.mark.slow),
                                    pytest.param("ortsae", marks=pytest.mark.slow)])
def test_training_where_jax_has_64_bits(recipe):
  with jax.enable_x64(True):
    sae = monojax.train(rows(512), recipe, n_features=F, k=4, n_steps=2, batch_rows=128, start_rows=256)
    f = sae.encode(rows())
  assert 0 < (f > 0).sum(1).mean() < 12


def test_a_source_may_fill_one_array_again_and_again():
  from monojax import mesh as meshes
  from monojax.sae.train import make_batches

  @dataclasses.dataclass
  class Refilled:
    x_BM: np.ndarray

    def batch(self, step):
      self.x_BM[:] = step
      return self.x_BM
  x_SBM = make_batches(Refilled(np.zeros((4, 3), np.float32)), meshes.make_mesh(meshes.MeshConfig(1, 1)))(2, 7)
  np.testing.assert_array_equal(np.asarray(x_SBM)[:, 0, 0], np.arange(2, 7))
