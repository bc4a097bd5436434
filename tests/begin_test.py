"""Where training begins: in folders that hold something already, from older versions, from finished dictionaries."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import checkpoint
from monojax import config as configs
from monojax import mesh as meshes
from monojax.config import InputError
from monojax.metrics import MetricsConfig
from monojax.sae import begin, finish
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.sae.step import make_step
from monojax.sae.sweep import name_of, train_sweep
from monojax.sae.train import train_sae
from monojax.training import TrainState

M, F, B = 12, 32, 32
ONE_SITE, TWO_SITES = Wiring((M,)), Wiring((5, 7), (0, 1), (0, 1))
OLD_RUN = pathlib.Path(__file__).parent / "data" / "run-0.1"
CONFIG = SAEConfig(recipe="topk", n_features=F, k=4, batch_rows=B, n_steps=24, scan_steps=4, checkpoint_every_steps=8,
                   start_rows=256, learning_rate=1e-2, dead_window_steps=6)


class Rows:
  """A source of exponential rows around a few directions; counts what it was asked for, and fails at a step."""

  def __init__(self, width=M, fail_at=None):
    self.width, self.fail_at, self.asked = width, fail_at, 0

  def rows(self, seed, n_rows):
    rng = np.random.default_rng(seed)
    strength = rng.exponential(size=(n_rows, 6)) * (rng.random((n_rows, 6)) < 0.4)
    direction = np.random.default_rng(99).normal(size=(6, self.width))
    return (2 * strength @ direction + 0.5 + 0.1 * rng.normal(size=(n_rows, self.width))).astype(np.float32)

  def batch(self, step):
    self.asked += 1
    if step == self.fail_at:
      raise KeyboardInterrupt
    return self.rows(step, B)

  def sample(self, n_rows, seed):
    self.asked += 1
    return self.rows(10**6 + seed, n_rows)


def fit(directory, config=CONFIG, source=None, wiring=ONE_SITE, identity=None, **more):
  return train_sae(config, source or Rows(), wiring, directory, identity or {"data": "a"},
                   meshes.make_mesh(meshes.MeshConfig(1, 1)), MetricsConfig(), **more)


def lines(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def explained(model, params, x_BM):
  error = np.asarray(model.apply({"params": params}, x_BM)[0]) - x_BM
  return 1 - np.square(error).sum() / np.square(x_BM - x_BM.mean(0)).sum()


# The weights' running mean.

def test_the_mean_of_a_short_run_is_of_its_last_steps(tmp_path):
  """The publication's decay of .999 alone would make it the mean of all 60 steps, which explains 14 % less here."""
  config = dataclasses.replace(CONFIG, n_steps=60, learning_rate=1e-3)
  assert config.resolved().ema_decay == 0.999
  model, params = fit(tmp_path, config)
  logged = lines(tmp_path)[-1]
  x_BM = Rows().rows(59, B)  # the last batch
  assert logged["explained_variance"] > 0.5
  assert explained(model, params, x_BM) > logged["explained_variance"] - 0.02
  np.testing.assert_allclose(explained(model, params, x_BM), logged["kept_explained_variance"], atol=1e-4)


def test_the_mean_is_what_its_formula_says():
  """Against a mean in NumPy of the parameters after each step."""
  mesh = meshes.make_mesh(meshes.MeshConfig(1, 1))
  recipe = make_recipe(dataclasses.replace(CONFIG, ema_decay=0.4), ONE_SITE, jnp.float32)
  init, step = make_step(recipe, mesh, 100)
  state, mean = init(jax.random.key(0), Rows().sample(64, 0)), None
  for t in range(12):
    state, _ = step(state, Rows().batch(t)[None])
    new, decay = np.asarray(state.params["W_enc_MF"], np.float64), min(0.4, t / (t + 9))
    mean = new if t == 0 else decay * mean + (1 - decay) * new
  np.testing.assert_allclose(state.counters["ema"]["W_enc_MF"], mean, rtol=1e-5, atol=1e-7)
  kept = finish.kept_params(recipe, state)
  np.testing.assert_allclose(np.linalg.norm(kept["W_dec_FO"], axis=1), 1.0, rtol=1e-5)


def test_a_mean_that_version_1_left_is_corrected():
  """Version 1 summed from 0: of one dictionary, and of several stacked."""
  weights = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
  total = np.zeros((3, 2), np.float32)
  for t in range(5):
    total = 0.9 * total + 0.1 * weights[t]
  coefficients = 0.9 ** np.arange(4, -1, -1)
  expected = np.tensordot(coefficients, weights, 1) / coefficients.sum()
  recipe = make_recipe(dataclasses.replace(CONFIG, ema_decay=0.9), ONE_SITE, jnp.float32)
  one = TrainState(jnp.int32(5), {}, (), {"ema": {"w": jnp.asarray(total)}})
  two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
  upgrade = begin.upgrading(recipe)
  np.testing.assert_allclose(upgrade(one, 1).counters["ema"]["w"], expected, rtol=1e-5)
  np.testing.assert_allclose(upgrade(two, 1).counters["ema"]["w"], np.stack([expected] * 2), rtol=1e-5)
  assert upgrade(one, checkpoint.VERSION) is one


# Folders that were begun with other settings.

@pytest.mark.parametrize("change, named", [
    ({"config": dataclasses.replace(CONFIG, k=8)}, "sae.k: 4 -> 8"),
    ({"config": dataclasses.replace(CONFIG, n_steps=32)}, "sae.n_steps: 24 -> 32"),
    ({"wiring": Wiring((M - 4, 4), (0, 1), (0, 1))}, "wiring.widths"),
    ({"identity": {"data": "b"}}, 'data: "a" -> "b"')])
def test_a_folder_of_other_settings_is_refused_before_any_work(tmp_path, change, named):
  _, expected = fit(tmp_path)
  source = Rows()
  with pytest.raises(InputError) as refused:
    fit(tmp_path, source=source, **change)
  assert named in str(refused.value) and "\n" not in str(refused.value) and source.asked == 0
  assert ("extend=True" in str(refused.value)) == ("n_steps" in named)
  shutil.rmtree(tmp_path / "checkpoints")  # the finished dictionary alone is refused as well
  with pytest.raises(InputError, match="begun with other settings"):
    fit(tmp_path, source=source, **change)
  found, saved, _ = checkpoint.load_params(tmp_path / "dictionary")
  assert_equal(found, expected)
  assert saved["sae"]["k"] == 4 and saved["data"] == "a"


def test_a_sweep_of_other_settings_is_refused(tmp_path):
  base = dataclasses.replace(CONFIG, ema_decay=0.0)

  def sweep(configs, source):
    return train_sweep(configs, source, ONE_SITE, tmp_path, {name_of(config): {} for config in configs},
                       meshes.make_mesh(meshes.MeshConfig(1, 1)), MetricsConfig())
  both = [dataclasses.replace(base, seed=seed) for seed in (0, 1)]
  sweep(both, Rows())
  source = Rows()
  with pytest.raises(InputError, match=r"dictionaries: topk-32-k4-rate0.01-seed0, topk.*seed1 -> topk.*seed0\):"):
    sweep(both[:1], source)
  with pytest.raises(InputError, match="k4-rate0.01-seed0: sae.aux_k: 0 -> 3"):
    sweep([dataclasses.replace(config, aux_k=3) for config in both], source)
  assert source.asked == 0


def test_settings_of_a_folder_in_which_nothing_was_made_can_be_corrected(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path, source=Rows(fail_at=3))
  other = dataclasses.replace(CONFIG, k=8)
  _, found = fit(tmp_path, other)
  _, expected = fit(tmp_path / "alone", other)
  assert_equal(found, expected)
  assert checkpoint.load_params(tmp_path / "checkpoints")[1]["sae"]["k"] == 8


def test_parameters_and_settings_are_replaced_together(tmp_path):
  place = tmp_path / "dictionary"
  first, second = {"w": np.ones(3)}, {"w": np.zeros(3), "b": np.ones(2)}
  checkpoint.save_params(place, first, {"k": 1})
  written = (place / "0" / "_CHECKPOINT_METADATA").read_bytes()
  checkpoint.save_params(place, first, {"k": 1})
  assert (place / "0" / "_CHECKPOINT_METADATA").read_bytes() == written, "the same is not written again"
  for params, config in ((first, {"k": 2}), (second, {"k": 2}), (first, {"k": (1, 2)})):
    checkpoint.save_params(place, params, config)
    found, saved, step = checkpoint.load_params(place)
    assert_equal(found, params)
    assert saved == json.loads(json.dumps(config)) and step == 0
  (tmp_path / "dictionary.partial").mkdir()  # of a process that was killed
  checkpoint.save_params(place, second, {})
  assert [path.name for path in tmp_path.iterdir()] == ["dictionary"]


# Version 0.1.

def settings_of_0_1(saved):
  """(settings, wiring) of a dictionary of version 0.1, with what was added since at its default."""
  return (configs.from_dict(SAEConfig, {**configs.to_dict(SAEConfig()), **saved["sae"]}),
          configs.from_dict(Wiring, saved["wiring"]))


@pytest.mark.parametrize("place", ["sae/dictionary", "sweeps/topk/dictionaries/topk-8-k3-rate0.003-seed0",
                                   "frontier/dictionaries/tm2023-8-penalty0.02-rate0.004-seed0"])
def test_a_dictionary_of_version_0_1_loads_under_todays_names(place):
  params, saved, step = checkpoint.load_params(OLD_RUN / place)
  config, wiring = settings_of_0_1(saved)
  model = make_recipe(config, wiring, jnp.float32).model
  assert step == 0 and set(params) == {"W_enc_MF", "W_dec_FO", "b_enc_F", "b_dec_O"}
  assert params["W_dec_FO"].shape == (8, 12) and params["b_dec_O"].shape == (12,)
  y_BO, f_BF = model.apply({"params": params}, np.ones((2, 12), np.float32))
  assert y_BO.shape == (2, 12) and np.all(np.isfinite(y_BO))


@pytest.mark.bits
def test_a_run_of_version_0_1_finishes_as_it_did_and_goes_on(tmp_path):
  """Its checkpoint, read under today's names, gives the dictionary that 0.1 itself made of it, to the last bit."""
  for folder in ("checkpoints", "metrics.jsonl"):
    source = OLD_RUN / "sae" / folder
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / folder)
  expected, saved, _ = checkpoint.load_params(OLD_RUN / "sae" / "dictionary")
  config, wiring = settings_of_0_1(saved)
  _, found = fit(tmp_path, config, Rows(12), wiring, {"identity": saved["identity"]})
  assert_equal(found, expected)
  with pytest.raises(InputError, match="sae.seed: 0 -> 1"):
    fit(tmp_path, dataclasses.replace(config, seed=1), Rows(12), wiring, {"identity": saved["identity"]})
  longer = dataclasses.replace(config, n_steps=70, batch_rows=128)
  fit(tmp_path, longer, LongRows(12), wiring, {"identity": saved["identity"]}, extend=True)
  params, saved, step = checkpoint.load_params(tmp_path / "checkpoints")
  assert step == 70 and "W_dec_FO" in params and saved["sae"]["n_steps"] == 70


class LongRows(Rows):
  def batch(self, step):
    return self.rows(step, 128)


def test_a_sweep_of_version_0_1_with_a_running_mean_finishes_as_it_did(tmp_path):
  shutil.copytree(OLD_RUN / "sweeps" / "topk" / "checkpoints", tmp_path / "checkpoints")
  (name,) = [path.name for path in (OLD_RUN / "sweeps" / "topk" / "dictionaries").iterdir()]
  expected, saved, _ = checkpoint.load_params(OLD_RUN / "sweeps" / "topk" / "dictionaries" / name)
  config, wiring = settings_of_0_1(saved)
  assert config.ema_decay == 0.99
  found = train_sweep([config], Rows(12), wiring, tmp_path, {name: {"identity": saved["identity"]}},
                      meshes.make_mesh(meshes.MeshConfig(1, 1)), MetricsConfig())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found[name][2], expected)


# Further steps.

def test_training_is_extended_the_same_whether_interrupted_or_not(tmp_path):
  fit(tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  longer = dataclasses.replace(CONFIG, n_steps=44, decay_fraction=0.25)
  with pytest.raises(InputError, match="decay_fraction"):
    fit(tmp_path / "whole", longer, extend=True)
  longer = dataclasses.replace(CONFIG, n_steps=44)
  source = Rows()
  _, expected = fit(tmp_path / "whole", longer, source, extend=True)
  assert source.asked == 1 + 20, "steps that were done are not done again"
  for fail_at in (27, 41):
    with pytest.raises(KeyboardInterrupt):
      fit(tmp_path / "cut", longer, Rows(fail_at=fail_at), extend=True)
  _, found = fit(tmp_path / "cut", longer, extend=True)
  assert_equal(found, expected)
  kept, saved, _ = checkpoint.load_params(tmp_path / "cut" / "dictionary")
  assert_equal(kept, expected)
  assert saved["sae"]["n_steps"] == 44
  assert [line["step"] for line in lines(tmp_path / "cut")][-1] == 44
  assert_equal(fit(tmp_path / "cut", longer)[1], expected)  # it is a folder of that many steps now
  with pytest.raises(InputError, match="n_steps: 44 -> 24"):
    fit(tmp_path / "cut", extend=True)


def test_extended_to_as_many_steps_is_a_run_of_that_many(tmp_path):
  """Where no schedule depends on how many there are."""
  longer = dataclasses.replace(CONFIG, n_steps=40)
  fit(tmp_path / "short")
  assert_equal(fit(tmp_path / "short", longer, extend=True)[1], fit(tmp_path / "long", longer)[1])


def test_a_penalty_that_rises_over_a_part_of_the_steps_may_be_extended(tmp_path):
  config = dataclasses.replace(CONFIG, recipe="jan2025", k=32)
  fit(tmp_path, config)
  assert config.resolved().penalty_warmup_steps == 24
  longer = dataclasses.replace(config, n_steps=32).resolved()
  assert longer.penalty_warmup_steps == 32
  fit(tmp_path, longer, identity={"data": "a"}, extend=True)


# From a finished dictionary.

@pytest.mark.parametrize("recipe, wiring", [("tm2023", ONE_SITE), ("topk", ONE_SITE), ("topk", TWO_SITES),
                                            ("batchtopk", ONE_SITE), ("jumprelu", ONE_SITE),
                                            ("apr2024", TWO_SITES)])
def test_a_dictionary_starts_as_the_finished_one_it_starts_from(recipe, wiring, tmp_path):
  knob = {} if recipe in ("topk", "batchtopk") else {"sparsity_coefficient": 0.02, "threshold": 0.1, "bandwidth": 0.1}
  config = dataclasses.replace(CONFIG, recipe=recipe, **knob)
  model, finished = fit(tmp_path / "first", config, wiring=wiring)
  config = dataclasses.replace(config, start_from=str(tmp_path / "first" / "dictionary"), start_rows=64, seed=5)
  made = make_recipe(config, wiring, jnp.float32)
  state = make_step(made, meshes.make_mesh(meshes.MeshConfig(1, 1)), 6)[0](jax.random.key(5), Rows().sample(64, 5))
  params = begin.start_params(config, made, state)
  assert set(params) == set(state.params)
  x_BM, scale_W = Rows().rows(3, B), np.asarray(state.counters["scale_W"])
  found, f = made.model.apply({"params": params}, x_BM * scale_W)
  expected, expected_f = model.apply({"params": finished}, x_BM)
  np.testing.assert_allclose(np.asarray(found) / scale_W, expected, atol=2e-4)
  np.testing.assert_array_equal(np.asarray(f) > 0, np.asarray(expected_f) > 0)
  # The first step's constraint leaves it as it is, but for what the sites' scales differ in from those before.
  np.testing.assert_allclose(made.constrain(params)["W_dec_FO"], params["W_dec_FO"],
                             atol=0.01 if wiring == TWO_SITES else 1e-5)


def test_another_recipe_starts_from_a_dictionary_with_what_it_has(tmp_path):
  """Thresholds start as the recipe starts them; a bias that is no longer subtracted goes into the encoder's."""
  source = dataclasses.replace(CONFIG, recipe="tm2023", k=32, sparsity_coefficient=0.02)
  model, finished = fit(tmp_path, source)
  assert np.abs(finished["b_dec_O"]).max() > 0.1
  for recipe, knob in (("apr2024", {}), ("jan2025", {"threshold": 1e-6}), ("jumprelu", {"threshold": 1e-6})):
    config = dataclasses.replace(source, recipe=recipe, start_from=str(tmp_path / "dictionary"), **knob)
    made = make_recipe(config, ONE_SITE, jnp.float32)
    state = make_step(made, meshes.make_mesh(meshes.MeshConfig(1, 1)), 6)[0](jax.random.key(5), Rows().sample(64, 5))
    params = begin.start_params(config, made, state)
    if "log_threshold_F" in params:
      np.testing.assert_allclose(np.exp(params["log_threshold_F"]), 1e-6, rtol=1e-5)
    x_BM, scale_W = Rows().rows(3, B), np.asarray(state.counters["scale_W"])
    found, _ = made.model.apply({"params": params}, x_BM * scale_W)
    np.testing.assert_allclose(np.asarray(found) / scale_W, model.apply({"params": finished}, x_BM)[0], atol=2e-4)


def test_training_starts_from_a_dictionary_or_refuses_it(tmp_path):
  model, finished = fit(tmp_path / "first")
  place = str(tmp_path / "first" / "dictionary")
  # At a rate next to nothing, one step changes nothing.
  _, found = fit(tmp_path / "same", dataclasses.replace(CONFIG, n_steps=1, learning_rate=1e-9, start_from=place))
  x_BM = Rows().rows(3, B)
  np.testing.assert_allclose(model.apply({"params": found}, x_BM)[0], model.apply({"params": finished}, x_BM)[0],
                             atol=2e-4)
  with pytest.raises(InputError, match=r"W_dec_FO of shape \(32, 12\).*\(16, 12\)"):
    fit(tmp_path / "a", dataclasses.replace(CONFIG, n_features=16, start_from=place))
  with pytest.raises(InputError, match="training"):
    fit(tmp_path / "b", dataclasses.replace(CONFIG, start_from=str(tmp_path / "first" / "checkpoints")))
  with pytest.raises(InputError, match="no checkpoints here"):
    fit(tmp_path / "c", dataclasses.replace(CONFIG, start_from=str(tmp_path / "nothing")))


def test_a_sweep_starts_from_a_dictionary_and_resumes_without_it(tmp_path):
  fit(tmp_path / "first")
  base = dataclasses.replace(CONFIG, start_from=str(tmp_path / "first" / "dictionary"))
  configs_ = [dataclasses.replace(base, learning_rate=rate) for rate in (1e-2, 1e-3)]

  def sweep(directory, source):
    return train_sweep(configs_, source, ONE_SITE, directory, {name_of(config): {} for config in configs_},
                       meshes.make_mesh(meshes.MeshConfig(1, 1)), MetricsConfig())
  whole = sweep(tmp_path / "whole", Rows())
  with pytest.raises(KeyboardInterrupt):
    sweep(tmp_path / "cut", Rows(fail_at=14))
  shutil.rmtree(tmp_path / "first")
  cut = sweep(tmp_path / "cut", Rows())
  for name, (_, _, params) in whole.items():
    assert_equal(params, cut[name][2])
