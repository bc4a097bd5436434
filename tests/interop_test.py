"""Other tools' SAE files in and out: features by hand, round trips to the bit, and what is refused."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil

import foreign_saes as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_saes import MAKERS, F, K, M, rows
from safetensors.numpy import load_file, save_file

import monojax
from monojax import InputError, interop
from monojax.interop import torch_file
from monojax.interop.plain import plain_of
from monojax.sae.config import SAEConfig
from monojax.sae.form import Form
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe


def tensors_of(folder):
  """{file and name: array} of every tensor in a folder."""
  found = {}
  for path in sorted(pathlib.Path(folder).rglob("*")):
    if path.suffix in (".safetensors", ".npz"):
      loaded = load_file(path) if path.suffix == ".safetensors" else dict(np.load(path))
      found |= {(path.name, name): value for name, value in loaded.items()}
  return found


def assert_same_features(sae, made, atol=2e-5):
  x = rows()
  f = made.encode(x)
  np.testing.assert_allclose(sae.encode(x), f, atol=atol)
  assert 0 < (f > 0).mean() < 0.8
  np.testing.assert_array_equal(sae.encode(x) > 0, f > 0)
  np.testing.assert_allclose(sae.decode(np.float32(f), x), made.decode(f, x), atol=5e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_each_format_gives_the_features_by_hand(name, tmp_path):
  made = MAKERS[name](tmp_path)
  sae = interop.read(made.path)
  assert_same_features(sae, made)
  assert sae.sites == made.sites and sae.about["interop"]["format"] == name.split()[0].removesuffix("_2")
  sae.save(tmp_path / "saved")
  again = monojax.SAE.load(tmp_path / "saved")
  assert (again.form, again.config, again.sites, again.about) == (sae.form, sae.config, sae.sites, sae.about)
  np.testing.assert_array_equal(again.encode(rows()), sae.encode(rows()))
  assert monojax.SAE.load(made.path).form == sae.form


@pytest.mark.parametrize("name", [name for name in MAKERS if name.split()[0] in interop.WRITTEN])
def test_a_round_trip_changes_no_bit(name, tmp_path):
  """Foreign file, SAE, monojax folder, single file, SAE, the same foreign format: every tensor to the bit."""
  made = MAKERS[name](tmp_path / "theirs")
  format = name.split()[0]
  interop.write(interop.read(made.path), tmp_path / "folder", "monojax")
  interop.write(interop.read(tmp_path / "folder"), tmp_path / "file", "safetensors")
  target = tmp_path / "ours" / pathlib.Path(made.path).name if format == "sparsify" else tmp_path / "ours"
  interop.write(interop.read(tmp_path / "file"), target, format)
  before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
  assert set(before) == set(after) and len(before) >= 4
  for key, value in before.items():
    assert value.dtype == after[key].dtype and value.tobytes() == after[key].tobytes(), key
  if format in ("sae_lens", "sparsify"):
    kept, said = (json.loads((folder / "cfg.json").read_text()) for folder in (made.path, target))
    assert {name: said[name] for name in kept} | {"metadata": 0} == {**kept, "metadata": 0}
    assert set(kept.get("metadata", {}).items()) <= set(said.get("metadata", {}).items())


def own(recipe, **settings):
  """A dictionary of a recipe, whose parameters are random and no special case."""
  config = SAEConfig(recipe, n_features=F, **settings)
  model = make_recipe(config, Wiring((M,)), np.float32).model
  params = model.init(jax.random.key(0), np.zeros((1, M), np.float32))["params"]
  rng = np.random.default_rng(1)
  moved = {name: np.float32(value + 0.3 * rng.standard_normal(value.shape)) for name, value in params.items()}
  moved |= {"threshold": np.float32(0.7)} if "threshold" in moved else {}
  return monojax.SAE(config, model, jax.tree.map(jnp.asarray, moved), ("layer.0.resid",))


@pytest.fixture
def saes():
  """One of monojax's own of each kind of non-linearity."""
  return {"relu": own("tm2023"), "free": own("apr2024"), "gated": own("gated"), "topk": own("topk", k=4),
          "batchtopk": own("batchtopk", k=4), "matryoshka": own("matryoshka", k=4),
          "jumprelu": own("jumprelu", threshold=0.5)}


@pytest.mark.parametrize("kind", ["relu", "free", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"])
def test_own_dictionaries_go_out_and_come_back(kind, saes, tmp_path):
  sae, x = saes[kind], rows()
  architecture = {"relu": "standard", "free": "standard", "gated": "gated", "topk": "topk"}.get(kind, "jumprelu")
  can = {"sae_lens", "safetensors", "monojax"} | ({"sparsify"} if kind == "topk" else set())
  can |= set() if kind in ("topk", "gated") else {"gemma_scope"}
  for format in interop.WRITTEN:
    if format not in can:
      with pytest.raises(InputError, match=f"format='{format}': cannot hold .*: choose .*monojax"):
        interop.write(sae, tmp_path / format, format)
      assert not (tmp_path / format).exists()
      continue
    interop.write(sae, tmp_path / format, format, model_name="toy")
    again = interop.read(tmp_path / format)
    f, f_again = sae.encode(x), again.encode(x)
    near = np.abs(f - f_again) > 1e-5
    assert near.mean() < 1e-4 and 0 < (f > 0).mean() < 1, (format, near.sum())
    np.testing.assert_allclose(again.decode(f), sae.decode(f), atol=1e-5)
  assert json.loads((tmp_path / "sae_lens" / "cfg.json").read_text())["architecture"] == architecture
  if kind in ("batchtopk", "matryoshka"):
    threshold = load_file(tmp_path / "sae_lens" / "sae_weights.safetensors")["threshold"]
    np.testing.assert_array_equal(threshold, np.full(F, np.asarray(sae.params["threshold"])))


def test_a_crosscoder_goes_only_into_our_own(tmp_path):
  wiring = Wiring((M, M), (0, 1), (0, 1))
  form = Form("relu")
  rng = np.random.default_rng(0)
  params = {"W_enc_MF": rng.standard_normal((2 * M, F)), "b_enc_F": np.zeros(F),
            "W_dec_FO": rng.standard_normal((F, 2 * M)), "b_dec_O": np.zeros(2 * M)}
  sae = monojax.SAE(SAEConfig(n_features=F), form.model(wiring, F, np.float32),
                    {name: np.float32(value) for name, value in params.items()}, ("a", "b"), {}, form)
  with pytest.raises(InputError, match="crosscoders"):
    interop.write(sae, tmp_path / "a", "sae_lens")
  interop.write(sae, tmp_path / "b", "safetensors")
  x = np.concatenate([rows(), rows(seed=3)], 1)
  again = monojax.SAE.load(tmp_path / "b")
  np.testing.assert_array_equal(again.encode(x), sae.encode(x))
  assert again.reads == ("a", "b")


@pytest.mark.parametrize("name, recipe, settings", [
    ("sae_lens standard", "tm2023", {}), ("sae_lens jumprelu", "jumprelu", {}),
    ("sae_lens gated", "gated", {}), ("sae_lens topk by norm", "topk", {"k": K}),
    ("dictionary_learning BatchTopKSAE", "batchtopk", {"k": K}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("sparsify", "topk", {"k": K}), ("gemma_scope", "jumprelu", {}), ("gemma_scope", "jan2025", {}),
        ("dictionary_learning MatryoshkaBatchTopKSAE", "matryoshka", {"k": K}), ("qwen_scope", "topk", {"k": K})))])
def test_fine_tuning_starts_from_what_was_read(name, recipe, settings, tmp_path, monkeypatch, capsys):
  """After one step that changes nothing, the fine-tuned dictionary reconstructs what the foreign one does."""
  if recipe in ("topk", "batchtopk", "matryoshka") and "by norm" not in name:
    monkeypatch.setattr(foreign, "arrays", functools.partial(foreign.arrays, unit=True))
  made = MAKERS[name](tmp_path)
  x = rows(512)
  tuned = monojax.train(x, recipe, n_features=F, n_steps=1, learning_rate=1e-30, batch_rows=128, start_rows=256,
                        warmup_steps=0, start_from=str(made.path), **settings)
  assert tuned.form is None and tuned.config.recipe == recipe and "norms from" not in capsys.readouterr().out
  f = made.encode(x)
  if "threshold" in tuned.params:  # BatchTopK's follows, by a tenth, the smallest feature kept of the step's batch
    smallest = np.sort(f.ravel())[-K * len(x)]
    assert tuned.params["threshold"] == pytest.approx(0.7 + 0.1 * (smallest - 0.7), rel=0.05)
    tuned = dataclasses.replace(tuned, params={**tuned.params, "threshold": jnp.float32(0.7)})
  scale = np.abs(made.decode(f, x)).max()
  difference = np.abs(tuned.decode(tuned.encode(x)) - made.decode(f, x)).max(1) / scale
  assert np.quantile(difference, 0.97) < 1e-3, np.sort(difference)[-10:]  # a row may lose a feature at a threshold


def test_norms_that_a_recipe_makes_equal_are_told(tmp_path, capsys):
  made = MAKERS["qwen_scope"](tmp_path)
  monojax.train(rows(512), "topk", n_features=F, k=K, n_steps=1, batch_rows=128, start_rows=256,
                start_from=str(made.path))
  assert "norms from" in capsys.readouterr().out


def test_rows_that_are_standardised_cannot_be_trained_on(tmp_path):
  made = MAKERS["openai"](tmp_path)
  with pytest.raises(InputError, match="standardised rows.*can be used, not trained further"):
    monojax.train(rows(512), "topk", n_features=F, k=K, n_steps=1, start_from=str(made.path))


def test_steering_and_directions_are_the_models_own(tmp_path):
  """A change of features moves a reconstruction by `change`, for units of norms and for standardised rows, too."""
  for name in ("sae_lens topk by norm", "openai", "sae_lens jumprelu"):
    (tmp_path / name).mkdir()
    sae = interop.read(MAKERS[name](tmp_path / name).path)
    x, f = rows(8), np.zeros((8, F), np.float32)
    f_more = f.copy()
    f_more[:, [3, 7]] = [1.5, -2.0]
    moved = sae.model.apply({"params": sae.params}, np.full((8, 2), [1.5, -2.0], np.float32), np.array([3, 7]), x,
                            method="change")
    np.testing.assert_allclose(moved, sae.decode(f_more, x) - sae.decode(f, x), atol=1e-5)
    if name == "sae_lens topk by norm":
      np.testing.assert_allclose(np.linalg.norm(sae.direction_FO, axis=1), 1, atol=1e-6)


def test_normalisations_are_folded_done_or_refused(tmp_path):
  x, scale = rows(), 2.5
  scaled = foreign.sae_lens(tmp_path / "a", "jumprelu", normalize_activations="expected_average_only_in")
  with pytest.raises(InputError, match="expected_average_only_in.*not saved here.*fold"):
    interop.read(scaled.path)
  (scaled.path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
  sae = interop.read(scaled.path)
  np.testing.assert_allclose(sae.encode(x), scaled.encode(x * scale), atol=1e-4)
  np.testing.assert_allclose(sae.decode(sae.encode(x)), scaled.decode(scaled.encode(x * scale), x) / scale, atol=1e-4)
  for name, change in (("layer_norm", foreign.standardised),
                       ("constant_norm_rescale", lambda x: (x * M ** 0.5 / np.linalg.norm(x, axis=1, keepdims=True), 0,
                                                            np.linalg.norm(x, axis=1, keepdims=True) / M ** 0.5))):
    made = foreign.sae_lens(tmp_path / name, "standard", True, normalize_activations=name)
    sae = interop.read(made.path)
    inner, middle, size = change(x)
    f = made.encode(inner)
    np.testing.assert_allclose(sae.encode(x), f, atol=2e-5)
    np.testing.assert_allclose(sae.decode(np.float32(f), x), made.decode(f, inner) * size + middle, atol=5e-5)
    interop.write(sae, tmp_path / f"{name} again", "sae_lens")
    assert json.loads((tmp_path / f"{name} again" / "cfg.json").read_text())["normalize_activations"] == name
  with pytest.raises(InputError, match="covariance_whitening.*fold"):
    interop.read(foreign.sae_lens(tmp_path / "w", "standard", normalize_activations="covariance_whitening").path)


def test_configurations_of_sae_lens_before_6(tmp_path):
  made = foreign.sae_lens(tmp_path / "old", "topk", True)
  (made.path / "cfg.json").write_text(json.dumps({
      "d_in": M, "d_sae": F, "dtype": "float32", "model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre",
      "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none"}))
  sae = interop.read(made.path)  # b_dec is subtracted where such a file does not say otherwise
  assert_same_features(sae, made)
  assert sae.sites == ("layer.7.resid",)
  interop.write(sae, tmp_path / "new", "sae_lens")
  said = json.loads((tmp_path / "new" / "cfg.json").read_text())
  assert said["metadata"]["hook_name"] == "blocks.8.hook_resid_pre" and said["metadata"]["model_name"] == "gpt2-small"
  assert said["apply_b_dec_to_input"] and said["metadata"]["sae_lens_version"] == "6.0.0" and said["k"] == K
  factor = np.linspace(0.5, 2, F).astype(np.float32)  # of each feature, by which decoding multiplies it
  tensors = load_file(made.path / "sae_weights.safetensors")
  save_file({**tensors, "scaling_factor": factor}, made.path / "sae_weights.safetensors")
  x = rows()
  np.testing.assert_allclose(interop.read(made.path).decode(sae.encode(x)), sae.decode(sae.encode(x) * factor),
                             atol=1e-5)


def test_half_precision_is_widened(tmp_path):
  made = foreign.sae_lens(tmp_path / "half", "jumprelu")
  whole = load_file(made.path / "sae_weights.safetensors")
  save_file({name: value.astype(np.float16) for name, value in whole.items()}, made.path / "sae_weights.safetensors")
  sae = interop.read(made.path)
  np.testing.assert_array_equal(sae.params["W_dec_FO"], whole["W_dec"].astype(np.float16).astype(np.float32))
  upper = (np.ascontiguousarray(whole["W_dec"]).view(np.uint32) >> 16).astype(np.uint16)
  header = json.dumps({"W_dec": {"dtype": "BF16", "shape": list(upper.shape), "data_offsets": [0, upper.nbytes]}})
  (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + upper.tobytes())
  from monojax.interop.tensors import read_safetensors
  expected = (upper.astype(np.uint32) << 16).view(np.float32)
  np.testing.assert_array_equal(read_safetensors(tmp_path / "b.safetensors")[0]["W_dec"], expected)
  foreign.torch_save({"a": upper, "b": {"c": [np.float32([1, 2]), "text", 3]}}, tmp_path / "b.pt")
  found = torch_file.read(tmp_path / "b.pt")
  np.testing.assert_array_equal(found["a"], expected)
  assert found["b"]["c"][0].tolist() == [1, 2] and found["b"]["c"][1:] == ["text", 3]


class Harmful:
  def __reduce__(self):
    return os.mkdir, ("touched",)


def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  foreign.torch_save({"encoder.weight": Harmful()}, tmp_path / "ae.pt")
  with pytest.raises(InputError, match=r"ae.pt names posix.mkdir, and not only tensors"):
    interop.read(tmp_path / "ae.pt")
  foreign.torch_save({"a": foreign.Named("os", "system")}, tmp_path / "b.pt")
  with pytest.raises(InputError, match="names os.system"):
    interop.read(tmp_path / "b.pt")
  assert not (tmp_path / "touched").exists()


def test_damaged_and_unknown_files_are_one_line_each(tmp_path):
  made = foreign.sae_lens(tmp_path / "a", "jumprelu")
  weights = made.path / "sae_weights.safetensors"
  whole = weights.read_bytes()

  def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as error:
      interop.read(path, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
  for cut in (4, 100, len(whole) // 2, len(whole) - 1):
    weights.write_bytes(whole[:cut])
    refused(made.path, "sae_weights.safetensors is damaged or not whole")
  save_file({name: value for name, value in load(whole).items() if name != "threshold"}, weights)
  refused(made.path, "has no tensor threshold: it has W_dec")
  save_file({**load(whole), "b_enc": np.zeros(F + 1, np.float32)}, weights)
  refused(made.path, rf"b_enc_F here has shape \({F + 1},\)")
  save_file({**load(whole), "b_enc": np.full(F, np.nan, np.float32)}, weights)
  refused(made.path, "not finite")
  weights.write_bytes(whole)
  (made.path / "cfg.json").write_text("{")
  refused(made.path, "cfg.json is damaged")
  foreign_cfg = foreign.sae_lens(tmp_path / "b", "topk", architecture="abstopk")
  refused(foreign_cfg.path, "'abstopk'.*reads the architectures standard, topk")
  refused(foreign.sae_lens(tmp_path / "c", "topk", architecture="batchtopk").path, "save_inference_model")
  refused(tmp_path / "nothing", "there is no such file")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", "holds no dictionary of a format that monojax reads: sae_lens")
  (tmp_path / "notes.txt").write_text("x")
  refused(tmp_path / "notes.txt", "is no file that monojax reads")
  save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "w.safetensors")
  refused(tmp_path / "w.safetensors", "has the tensors weight, which are of no format")
  (tmp_path / "t.pt").write_bytes(b"PK garbage")
  refused(tmp_path / "t.pt", "not a whole file of PyTorch")
  made = MAKERS["dictionary_learning AutoEncoder"](tmp_path / "d")
  state = (made.path / "ae.pt").read_bytes()
  (made.path / "ae.pt").write_bytes(state[:len(state) // 2])
  refused(made.path, "ae.pt is not a whole file of PyTorch")
  made = MAKERS["gemma_scope"](tmp_path / "g")
  content = (made.path / "params.npz").read_bytes()
  (made.path / "params.npz").write_bytes(content[:-200])
  refused(made.path, "params.npz is damaged")
  made = MAKERS["circuit_tracer jump"](tmp_path / "ct")
  tensors = load_file(made.path)
  save_file({**tensors, "activation_function.threshold": -tensors["activation_function.threshold"]}, made.path)
  refused(made.path, "threshold below 0, where features would be negative")
  save_file({"W_enc_0": tensors["W_enc"], "b_enc_0": tensors["b_enc"]}, tmp_path / "W_enc_0.safetensors")
  refused(tmp_path / "W_enc_0.safetensors", "part of a cross-layer transcoder: name its folder")
  foreign.torch_save([np.zeros(2, np.float32)], tmp_path / "list.pt")
  refused(tmp_path / "list.pt", "holds no state dict")
  foreign.torch_save({"weight": np.zeros(2, np.float32)}, tmp_path / "other.pt")
  refused(tmp_path / "other.pt", "has the tensors weight, which are of no format")
  made = MAKERS["qwen_scope"](tmp_path / "q")
  shutil.copy(made.path, tmp_path / "layer4.sae.pt")
  refused(tmp_path / "layer4.sae.pt", "does not say how many features.*give k")
  assert interop.read(tmp_path / "layer4.sae.pt", k=5).form.k == 5
  refused(tmp_path / "layer4.sae.pt", "keeps 100 of 40 features", k=100)
  refused(made.path, "choose auto or one of", format="saelens")


def load(content):
  from safetensors.numpy import load as of_bytes
  return of_bytes(content)


def test_writing_where_it_cannot_be_expressed_names_what_can(tmp_path):
  skip = interop.read(MAKERS["sparsify skip"](tmp_path / "s").path)
  transcoder = interop.read(MAKERS["sparsify transcoder"](tmp_path / "t").path)
  standardised = interop.read(MAKERS["openai"](tmp_path).path)
  wide = interop.read(MAKERS["sae_lens transcoder"](tmp_path / "w").path)
  for sae, format, match in (
      (skip, "sae_lens", "autoencoder with a skip: choose sparsify"),
      (skip, "gemma_scope", "kind topk, only JumpReLU: choose sae_lens, sparsify"),
      (transcoder, "sae_lens", "transcoder of the kind topk: choose sparsify"),
      (transcoder, "circuit_tracer", "transcoder of the kind topk: choose sparsify"),
      (skip, "circuit_tracer", "an autoencoder, only transcoders: choose sae_lens"),
      (standardised, "sparsify", "standardised rows: choose sae_lens"),
      (wide, "circuit_tracer", "from width 12 to width 10: choose sae_lens")):
    with pytest.raises(InputError, match=match):
      interop.write(sae, tmp_path / "out", format)
  with pytest.raises(InputError, match="choose one of sae_lens, sparsify"):
    interop.write(skip, tmp_path / "out", "openai")
  assert not (tmp_path / "out").exists()
  (tmp_path / "a file").write_text("")
  with pytest.raises(InputError, match="is a file; name a folder"):
    interop.write(skip, tmp_path / "a file", "sparsify")


def test_plain_params_are_the_models_own(saes):
  """What is written of a TopK dictionary is its parameters as they are."""
  plain = plain_of(saes["topk"], "sae_lens")
  for name, value in saes["topk"].params.items():
    np.testing.assert_array_equal(plain.params[name], value)
