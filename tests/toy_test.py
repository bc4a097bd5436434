"""Toy models of superposition: forward and inputs against NumPy, instances on their own, geometry and phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax.config import InputError
from monojax.studies.toy import geometry as superposition
from monojax.studies.toy.model import ToyConfig, ToyModel, draw, inputs_of, loss_of, train_toys
from monojax.studies.toy.study import DEDICATED, DROPPED, SUPERPOSED, predicted_phases


def parameters(config, seed=0):
  rng = np.random.default_rng(seed)
  params = {"W_NM": rng.normal(size=(config.n_features, config.n_hidden)), "b_N": rng.normal(size=config.n_features)}
  if config.variant == "absolute":
    params["W_out_MN"] = rng.normal(size=(config.n_hidden, config.n_features))
  return {name: leaf.astype(np.float32) for name, leaf in params.items()}


@pytest.mark.parametrize("variant", ["relu", "linear", "privileged", "absolute"])
def test_forward_and_loss(variant):
  config = ToyConfig(6, 3, variant)
  params, x_BN = parameters(config), np.random.default_rng(1).uniform(-1, 1, (10, 6)).astype(np.float32)
  relu = lambda x: np.maximum(x, 0)
  hidden_BM = x_BN @ params["W_NM"]
  hidden_BM = relu(hidden_BM) if variant in ("privileged", "absolute") else hidden_BM
  y_BN = hidden_BM @ (params["W_out_MN"] if variant == "absolute" else params["W_NM"].T) + params["b_N"]
  y_BN = y_BN if variant == "linear" else relu(y_BN)
  found_BN, sites = ToyModel(config).apply({"params": params}, x_BN)
  np.testing.assert_allclose(found_BN, y_BN, atol=1e-5)
  np.testing.assert_allclose(sites["hidden"], hidden_BM, atol=1e-5)
  edited_BN, sites = ToyModel(config).apply({"params": params}, x_BN, {"hidden": lambda h_BM: 0 * h_BM})
  bias_BN = np.broadcast_to(params["b_N"], (10, 6))
  np.testing.assert_allclose(edited_BN, bias_BN if variant == "linear" else relu(bias_BN), atol=1e-6)
  assert not np.any(sites["hidden"])
  importance_N = np.arange(1.0, 7.0)
  target_BN = np.abs(x_BN) if variant == "absolute" else x_BN
  np.testing.assert_allclose(loss_of(variant, params, x_BN.T, jnp.asarray(importance_N)),
                             (importance_N * (target_BN - y_BN) ** 2).sum(1), rtol=1e-4)


def test_inputs():
  n, rows = 6, 200_000
  probability_N = np.array([0.5, 0.02, 0.2, 0.9, 0.1, 0.05])
  drawn = lambda **settings: (config := ToyConfig(n, 2, batch_rows=rows, **settings), np.asarray(
      inputs_of(config, draw(config, jax.random.key(0)), jnp.asarray(probability_N, jnp.float32))))[1]
  x_NB = drawn()
  np.testing.assert_allclose((x_NB > 0).mean(1), probability_N, atol=0.005)
  for x_B in x_NB:
    assert abs(x_B[x_B > 0].mean() - 0.5) < 0.02 and abs(x_B[x_B > 0].std() - 12**-0.5) < 0.02
  x_NB = drawn(variant="absolute")
  assert -1 <= x_NB.min() < -0.9 and abs(x_NB[3].mean()) < 0.01
  on_NB = drawn(inputs="correlated", set_size=3) > 0
  assert np.array_equal(on_NB[0], on_NB[1]) and np.array_equal(on_NB[3], on_NB[5])
  np.testing.assert_allclose([on_NB[0].mean(), on_NB[3].mean(), (on_NB[0] & on_NB[3]).mean()], [0.5, 0.9, 0.45],
                             atol=0.005)
  on_NB = drawn(inputs="anticorrelated", set_size=3) > 0
  assert on_NB[:3].sum(0).max() == 1
  np.testing.assert_allclose(on_NB.mean(1), np.repeat([0.5 / 3, 0.9 / 3], 3), atol=0.005)
  with pytest.raises(InputError, match="set_size=4"):
    ToyConfig(6, 2, inputs="correlated", set_size=4)


def test_instances_do_not_touch_each_other():
  config = ToyConfig(5, 2, n_steps=60, batch_rows=128)
  importance_IN = np.ones((3, 5))
  trained = train_toys(config, importance_IN, np.full((3, 5), 0.2), n_records=4, n_calls=3)
  others = np.stack([importance_IN[0], [9, 3, 1, 1, 1], [0.1] * 5])
  again = train_toys(config, others, np.stack([[0.2] * 5, [0.9] * 5, [0.01] * 5]), n_records=4, n_calls=3)
  np.testing.assert_allclose(trained.params["W_NM"][0], again.params["W_NM"][0], atol=1e-5)
  assert np.abs(trained.params["W_NM"][1] - again.params["W_NM"][1]).max() > 0.01
  assert np.asarray(trained.history["step"]).tolist() == [15, 30, 45, 60]
  np.testing.assert_array_equal(trained.history["W_NM"][-1], trained.params["W_NM"])
  lowest = trained.lowest(1)
  assert lowest.loss_I[0] == trained.loss_I.min() and lowest.history["loss_TI"].shape == (4, 1)


def corners(name):
  """Unit vectors to the corners of a polytope."""
  turn = lambda n: np.stack([(np.cos(a), np.sin(a)) for a in 2 * np.pi * np.arange(n) / n])
  if name == "tetrahedron":
    return np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
  if name == "square antiprism":
    angle = np.arange(8) * np.pi / 4
    height = np.where(np.arange(8) % 2, -1, 1) / 3**0.5  # a tight frame: D is 3/8 for each
    return np.stack([np.cos(angle) * (2 / 3)**0.5, np.sin(angle) * (2 / 3)**0.5, height], 1)
  return {"dedicated": np.eye(1), "digon": np.array([[1.0], [-1.0]]), "triangle": turn(3), "pentagon": turn(5)}[name]


def test_geometry_of_known_polytopes():
  names, n_dimensions = list(superposition.POLYTOPES), 0
  blocks = [corners(name) for name in names]
  W_NM = np.zeros((sum(map(len, blocks)) + 4, sum(block.shape[1] for block in blocks)))  # and four left out
  expected, row = [], 0
  for name, block in zip(names, blocks, strict=True):
    W_NM[row:row + len(block), n_dimensions:n_dimensions + block.shape[1]] = block
    row, n_dimensions = row + len(block), n_dimensions + block.shape[1]
    expected += [superposition.PREDICTED[name]] * len(block)
  turned_NM = W_NM @ np.linalg.qr(np.random.default_rng(0).normal(size=(n_dimensions, n_dimensions)))[0]
  D_N = superposition.dimensionality(turned_NM)
  np.testing.assert_allclose(D_N, expected + [0] * 4, atol=1e-6)
  assert D_N.sum() == pytest.approx(n_dimensions)
  assert superposition.fraction_predicted(D_N) == 1
  found = [superposition.name_of(*group[:2]) for group in superposition.polytopes(turned_NM)]
  assert sorted(found) == sorted(names)
  assert superposition.dimensions_per_feature(turned_NM) == pytest.approx(n_dimensions / len(expected))
  np.testing.assert_allclose(superposition.interference(corners("triangle")), 0.5)
  assert superposition.polytopes(np.zeros((3, 2))) == [] and superposition.name_of(7, 3) == "7 in 3"


def test_predicted_phases_keep_the_closed_forms_bounds():
  density, extra = (grid.ravel() for grid in np.meshgrid(np.geomspace(1, 0.01, 8), np.geomspace(0.1, 10, 9)))
  phase = predicted_phases(density, extra)
  antipodal, dropping = (1 + extra) * density**2 / 6, density / 3 - density**2 / 4
  assert np.all(phase[antipodal < np.minimum(1, extra) * dropping] == SUPERPOSED)
  dense = density > 0.99
  assert np.all(phase[dense & (extra < 0.9)] == DROPPED) and np.all(phase[dense & (extra > 1.1)] == DEDICATED)
  # An antipodal pair with free scales and biases still wins where unit ones no longer do, beyond 4/7.
  assert predicted_phases(np.array([0.5, 0.65]), np.array([1.0, 1.0])).tolist() == [SUPERPOSED] * 2


def test_five_sparse_features_make_a_pentagon():
  config = ToyConfig(5, 2, n_steps=1500, batch_rows=512, learning_rate=1e-2)
  best = train_toys(config, np.ones((12, 5)), np.full((12, 5), 0.05)).lowest(1)
  (group,) = superposition.polytopes(best.params["W_NM"][0])
  assert superposition.name_of(*group[:2]) == "pentagon"
  np.testing.assert_allclose(superposition.dimensionality(best.params["W_NM"][0]), 0.4, atol=0.02)


def test_a_dropped_feature_costs_its_variance():
  config = ToyConfig(2, 1, batch_rows=400_000)
  p = 0.3
  x_NB = inputs_of(config, draw(config, jax.random.key(1)), jnp.full((2,), p))
  params = {"W_NM": jnp.array([[1.0], [0.0]]), "b_N": jnp.array([0.0, p / 2])}
  loss = loss_of("relu", params, x_NB, jnp.array([1.0, 2.0])).mean()
  assert float(loss) == pytest.approx(2 * (p / 3 - p**2 / 4), rel=0.01)
