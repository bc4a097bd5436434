"""Training by every recipe: on meshes, interrupted, with sparse codes, and on planted features."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes_test import SCHEDULED, wiring_of

from monojax import checkpoint
from monojax import mesh as meshes
from monojax.metrics import MetricsConfig
from monojax.sae import finish
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.nonlinearity import BatchTopK
from monojax.sae.recipes import RECIPES, make_recipe
from monojax.sae.sparse import code
from monojax.sae.sparse.select import cut_at, places_of, top_k_above_0
from monojax.sae.step import make_step
from monojax.sae.train import train_sae

M, F, B = 16, 64, 32
ONE_SITE = Wiring((M,))


def recipes_but_slow(*fast):
  """Every recipe, those not named in the slow suite."""
  return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RECIPES)]


def config_of(name, **more):
  knob = {"k": 4} if RECIPES[name].knob == "k" else {"sparsity_coefficient": 0.05}
  return SAEConfig(**{"recipe": name, "n_features": F, "batch_rows": B, "n_steps": 40, "learning_rate": 1e-2,
                      "dead_window_steps": 3, "start_rows": 256, **knob, **more})


def rows(seed, n=4, width=M):
  return np.random.default_rng(seed).exponential(size=(n, B, width)).astype(np.float32)


def trained(name, mesh_shape=(1, 1), n_calls=2, wiring=None, **more):
  """(recipe, state after some calls of the step, metrics of the last) on the same rows every time."""
  config = config_of(name, **more)
  mesh = meshes.make_mesh(meshes.MeshConfig(*mesh_shape))
  recipe = make_recipe(config, wiring or wiring_of(name, M), jnp.float32)
  width = sum(recipe.model.wiring.widths)
  init, step = make_step(recipe, mesh, config.window_steps, config.code == "sparse", config.accumulate)
  state = init(jax.random.key(0), rows(99, 8, width).reshape(-1, width))
  for call in range(n_calls):
    state, values = step(state, rows(call, 4, width))
  assert step._cache_size() == 1
  return recipe, state, jax.device_get(values)


@pytest.mark.parametrize("shape", [(4, 2), pytest.param((8, 1), marks=pytest.mark.slow),
                                   pytest.param((1, 8), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", recipes_but_slow("topk", "jan2025"))
def test_sharded_equals_unsharded(name, shape):
  _, expected, expected_values = trained(name)
  _, state, values = trained(name, shape)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(expected.params),
               jax.device_get(state.params))
  for metric, value in expected_values.items():
    np.testing.assert_allclose(values[metric], value, rtol=1e-4, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("name", recipes_but_slow("tm2023", "matryoshka"))
def test_sparse_codes_train_the_same_dictionary(name):
  _, expected, dense_values = trained(name, code="dense")
  _, state, values = trained(name, code="sparse", slots=F if name != "topk" else 0)
  assert values["sparse_fraction"] > 0.9 and dense_values["sparse_fraction"] == 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(expected.params),
               jax.device_get(state.params))


def test_a_batch_with_too_many_features_is_computed_densely():
  _, expected, _ = trained("tm2023", code="dense")
  _, state, values = trained("tm2023", code="sparse", slots=2)
  assert values["sparse_fraction"] == 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.device_get(expected.params),
               jax.device_get(state.params))  # other fusions: the last bit may differ


class Source:
  """Exponential rows of some scale, a pure function of the step; optionally fails at one."""

  def __init__(self, fail_at=None, width=M):
    self.fail_at, self.width = fail_at, width

  def batch(self, step):
    if step == self.fail_at:
      raise KeyboardInterrupt
    return 3 * rows(step, 1, self.width)[0]

  def sample(self, n_rows, seed):
    return 3 * rows(1000 + seed, -(-n_rows // B), self.width).reshape(-1, self.width)[:n_rows]


@pytest.mark.parametrize("name", recipes_but_slow("topk"))
def test_resumed_equals_uninterrupted_bit_for_bit(name, tmp_path):
  # Every call scans four steps, so that there is one program to compile.
  config = config_of(name, scan_steps=4, checkpoint_every_steps=8, resample_every_steps=12, resample_rows=64,
                     dead_window_steps=2)
  wiring = wiring_of(name, M)
  Rows = lambda fail_at=None: Source(fail_at, sum(wiring.widths))
  fit = lambda directory, source: train_sae(config, source, wiring, directory, {},
                                            meshes.make_mesh(meshes.MeshConfig(1, 1)), MetricsConfig())
  _, expected = fit(tmp_path / "whole", Rows())
  for fail_at in (11, 27):  # before and after resamplings, in the middle of a call
    with pytest.raises(KeyboardInterrupt):
      fit(tmp_path / "cut", Rows(fail_at))
  _, found = fit(tmp_path / "cut", Rows())
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(expected), jax.device_get(found))


class DeviceSource(Source):
  """The same rows, already on the device."""

  def batch(self, step):
    return jnp.asarray(super().batch(step))


def test_a_recipe_of_ones_own_trains_from_rows_on_the_host_or_the_device(tmp_path):
  config = SAEConfig(recipe="test.scheduled", n_features=F, batch_rows=B, n_steps=8, start_rows=64)
  fit = lambda directory, source: train_sae(config, source, ONE_SITE, directory, {}, meshes.make_mesh(),
                                            MetricsConfig(), recipe=SCHEDULED)
  _, expected = fit(tmp_path / "host", Source())
  _, found = fit(tmp_path / "device", DeviceSource())
  jax.tree.map(np.testing.assert_array_equal, expected, found)
  params, saved, _ = checkpoint.load_params(tmp_path / "host" / "dictionary")
  assert saved["sae"]["recipe"] == "test.scheduled" and saved["sae"]["learning_rate"] == 1e-3
  jax.tree.map(np.testing.assert_array_equal, expected, params)


@pytest.mark.parametrize("name", recipes_but_slow("jan2025", "topk"))
def test_a_finished_dictionary_reconstructs_raw_activations(name):
  """What it computes from raw rows is what the training parameters compute from scaled ones, scaled back."""
  recipe, state, _ = trained(name, n_calls=5)
  raw = rows(7)[0]
  scale_W = np.asarray(state.counters["scale_W"])[:M]  # without the earlier tokens' columns
  assert recipe.normalised == bool(np.any(scale_W != 1))
  training = finish.kept_params(recipe, state)
  expected, expected_f = recipe.model.apply({"params": training}, raw * scale_W)
  finished = finish.finished_params(recipe, state)
  found, f = recipe.model.apply({"params": finished}, raw)
  np.testing.assert_allclose(found, np.asarray(expected) / scale_W, atol=1e-4)
  np.testing.assert_array_equal(np.asarray(f) > 0, np.asarray(expected_f) > 0)
  if recipe.model.nonlinearity.folds_norms:
    np.testing.assert_allclose(np.linalg.norm(finished["W_dec_FO"], axis=1), 1.0, atol=1e-5)


def test_crosscoders_and_transcoders_train_and_fold():
  for wiring in (Wiring((6, 10), (0,), (1,)), Wiring((6, 10), (0, 1), (0, 1))):
    recipe, state, first = trained("apr2024", wiring=wiring, n_calls=1, sparsity_coefficient=0.01)
    _, _, last = trained("apr2024", wiring=wiring, n_calls=10, sparsity_coefficient=0.01)
    assert last["mse"] < first["mse"]
    raw = rows(7, width=16)[0]
    scale_W = np.asarray(state.counters["scale_W"])
    norms = [np.linalg.norm(rows(99, 8, 16).reshape(-1, 16)[:, part], axis=1).mean()
             for part in (slice(0, 6), slice(6, 16))]
    np.testing.assert_allclose([scale_W[0], scale_W[-1]], [6 ** 0.5 / norms[0], 10 ** 0.5 / norms[1]], rtol=1e-5)
    found, _ = recipe.model.apply({"params": finish.finished_params(recipe, state)}, wiring.inputs(raw))
    expected, _ = recipe.model.apply({"params": state.params}, wiring.inputs(raw * scale_W[None]))
    np.testing.assert_allclose(found, expected / wiring.targets(scale_W)[None], atol=1e-4)


def test_batchtopk_keeps_k_a_row_on_average_and_nearly_so_afterwards():
  recipe, state, values = trained("batchtopk", n_calls=100, learning_rate=1e-3)
  np.testing.assert_allclose(values["l0"], 4.0, rtol=1e-6)
  x_NM = rows(50, 30).reshape(-1, M) * np.asarray(state.counters["scale_W"])
  f_NF = recipe.model.apply({"params": state.params}, x_NM, method="encode")
  assert abs((np.asarray(f_NF) > 0).sum(1).mean() - 4.0) < 0.4


def marked(places, shape):
  """How often places name each entry of an array (B, F)."""
  counts = np.zeros(shape, int)
  for row, index_K in zip(np.asarray(places.row_V), np.asarray(places.index_VK), strict=True):
    counts[row, index_K[index_K < shape[1]]] += 1
  return counts


@pytest.mark.parametrize("n_features", [64, 70, 1000])
def test_rows_with_more_features_than_places_go_on_in_extra_rows(n_features):
  """Rows with none, few, and very many features need just as many extra rows as there are; then one more."""
  rng = np.random.default_rng(0)
  counts = [0, 3, 5, 8, 9, 16, 17, min(n_features, 60 * 8)] + [4] * 56
  n_extra = sum(max(-(-n // 8) - 1, 0) for n in counts)
  counts[8:8 + 64 - n_extra] = [9] * (64 - n_extra)
  mask_BF = np.zeros((64, n_features), bool)
  for row, n in enumerate(counts):
    mask_BF[row, rng.permutation(n_features)[:n]] = True
  places, fits = places_of(jnp.asarray(mask_BF), 16)
  assert fits and places.n_extra(n_features) == 64
  np.testing.assert_array_equal(marked(places, mask_BF.shape), mask_BF)
  mask_BF[63] = np.arange(n_features) < 9
  assert not places_of(jnp.asarray(mask_BF), 16)[1]


@pytest.mark.parametrize("n", [1, 7, 100, 1000, 2048])
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "zeros"])
def test_a_cut_leaves_just_as_many_as_asked_for(kind, n):
  h = {"normal": lambda z: z, "heavy": lambda z: np.exp(4 * z), "ties": lambda z: np.round(2 * z),
       "zeros": np.zeros_like}[kind](np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32))
  positive = np.sort(h[h > 0])[::-1]
  kept = (h >= float(cut_at(jnp.asarray(h), n))).sum()
  assert kept == (len(positive) if len(positive) < n else (positive >= positive[n - 1]).sum())


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_no_device_sees_the_whole_code(name):
  """Of the features sharded over devices only the candidates for the largest are gathered."""
  config = config_of(name, n_features=1024)
  mesh = meshes.make_mesh(meshes.MeshConfig(1, 8))
  init, step = make_step(make_recipe(config, Wiring((M,)), jnp.float32), mesh, config.window_steps)
  state = init(jax.random.key(0), rows(0, 1)[0])
  text = step.lower(state, rows(0)).compile().as_text()
  gathered = [np.prod([int(n) for n in shape.split(",") if n]) for line in text.splitlines()
              if " all-gather(" in line for shape in re.findall(r"f32\[([0-9,]*)\]", line.split(" all-gather(")[0])]
  assert gathered and max(gathered) < B * 1024 / 4


def test_a_batch_in_parts_gives_the_same_gradients():
  _, whole, _ = trained("apr2024")
  _, parts, _ = trained("apr2024", accumulate=4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(whole.params),
               jax.device_get(parts.params))


def test_batchtopk_finds_its_cut_among_few_entries_or_among_all():
  """Where a sample of the rows stands for the batch, and where it does not."""
  rng = np.random.default_rng(0)
  even_BF = rng.normal(size=(2048, 1024)).astype(np.float32)
  uneven_BF = np.concatenate([even_BF[:512] + 1, even_BF[512:]])
  nonlinearity = BatchTopK(k=16)
  for h_BF, few in ((even_BF, True), (uneven_BF, False), (uneven_BF[::-1], False), (np.minimum(even_BF, 0), True),
                    (even_BF - 3.9, True)):
    f_BF = np.where(nonlinearity.keep(jnp.asarray(h_BF), {}), np.maximum(h_BF, 0), 0)
    n_kept = min((h_BF > 0).sum(), 2048 * 16)
    assert (f_BF > 0).sum() == n_kept
    assert n_kept == 0 or f_BF[f_BF > 0].min() == np.sort(h_BF, axis=None)[-n_kept]
    _, places, found = nonlinearity.narrow(jnp.asarray(h_BF), {}, nonlinearity.room(0))
    assert found == few
    if few:
      np.testing.assert_array_equal(marked(places, h_BF.shape) * (h_BF > 0), f_BF > 0)


@pytest.mark.parametrize("k, n_features", [(1, 128), (4, 1024), (32, 4096), (8, 1000), (20, 64)])
def test_the_largest_above_0_are_found(k, n_features):
  rng = np.random.default_rng(0)
  h_BF = rng.normal(size=(300, n_features)).astype(np.float32) - 1.0
  h_BF[:5] -= 10  # nothing above 0
  h_BF[5, 7] = 3.0
  value_BK, index_BK, found = top_k_above_0(jnp.asarray(h_BF), k)
  assert found
  order_BK = np.argsort(-h_BF, axis=1, kind="stable")[:, :k]
  expected_BK = np.take_along_axis(h_BF, order_BK, axis=1)
  np.testing.assert_array_equal(np.maximum(value_BK, 0), np.maximum(expected_BK, 0))
  np.testing.assert_array_equal(np.asarray(index_BK)[expected_BK > 0], order_BK[expected_BK > 0])
  h_BF[9] = 1.0
  assert top_k_above_0(jnp.asarray(h_BF), k)[2] == (n_features < 128 * k or n_features % 32 != 0)


def test_codes_too_large_to_be_sorted_at_once_are_sorted_in_parts(monkeypatch):
  rng = np.random.default_rng(0)
  mask_BF = rng.random((40, 50)) < 0.2
  places, _ = places_of(jnp.asarray(mask_BF), 16)
  f_VK, table_BO = rng.normal(size=places.index_VK.shape), rng.normal(size=(40, 6))
  row_VK = np.broadcast_to(np.asarray(places.row_V)[:, None], f_VK.shape)
  expected = np.zeros((51, 6))
  np.add.at(expected, np.asarray(places.index_VK), f_VK[..., None] * table_BO[row_VK])
  for at_once in (2**32, f_VK.size * 51 // 2, f_VK.size * 51 // 7):
    monkeypatch.setattr(code, "_SORTED", at_once)
    found = code.scattered_rows(jnp.asarray(f_VK), jnp.asarray(row_VK), places, jnp.asarray(table_BO), 50)
    np.testing.assert_allclose(found, expected[:50], atol=1e-5)


def test_the_worked_examples_in_the_kernels_docstrings_are_true(monkeypatch):
  mask_BF = np.zeros((3, 6), bool)
  mask_BF[0, [1, 4]] = mask_BF[1, [0, 2, 5]] = True
  places, _ = places_of(jnp.asarray(mask_BF), 4)
  np.testing.assert_array_equal(places.index_VK[:4], [[1, 4], [0, 2], [6, 6], [5, 6]])
  assert int(places.extra_row[0]) == 1 and places.n_extra(6) == 1
  places, _ = places_of(jnp.isin(jnp.arange(64), jnp.array([3, 10, 40]))[None], 6)
  np.testing.assert_array_equal(places.index_VK[0], [10, 40, 3])
  monkeypatch.setattr(code, "_BLOCK", 2)
  feature_N, entry_NJ, n_used = code.feature_blocks(jnp.array([[1, 4], [1, 2], [1, 6]]), 6)
  assert n_used == 4 and list(feature_N[:5]) == [1, 1, 2, 4, 6]
  np.testing.assert_array_equal(entry_NJ[:5], [[0, 2], [4, -1], [3, -1], [1, -1], [-1, -1]])
