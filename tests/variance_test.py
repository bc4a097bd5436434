"""Explained variance against float64, at means up to 100,000; rows without variance; what training does then."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monojax import mesh, variance
from monojax.metrics import MetricsConfig
from monojax.sae import objectives
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.train import train_sae

MEANS = [0.0, 1.0, 3000.0, -1e5]
on_device = jax.jit(variance.explained_variance)
spread = jax.jit(variance.spread)


def made(n_rows, width, mean, dtype, seed=0, unexplained=0.3):
  """Rows of deviation 1 around a mean in a dtype, and the errors of a reconstruction, in float32."""
  rng = np.random.default_rng(seed)
  means_M = mean * np.linspace(0.5, 1, width)
  y_NM = (means_M + rng.normal(size=(n_rows, width))).astype(dtype).astype(np.float32)
  return y_NM, (unexplained * rng.normal(size=(n_rows, width))).astype(np.float32)


def exactly(y_NM, error_NM):
  """Explained variance by the textbook in float64."""
  y_NM, error_NM = y_NM.astype(np.float64), error_NM.astype(np.float64)
  return 1 - np.square(error_NM).sum() / np.square(y_NM - y_NM.mean(0)).sum()


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("n_rows, width", [(2, 1), (64, 33), (4096, 16)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_explained_variance_is_that_of_float64_at_any_mean(mean, n_rows, width, dtype):
  y_NM, error_NM = made(n_rows, width, mean, dtype)
  if not np.square(y_NM - y_NM[:1]).sum():  # two rows that bfloat16 cannot tell apart
    assert np.isnan(on_device(y_NM, error_NM))
    return
  expected = exactly(y_NM, error_NM)
  assert abs(on_device(y_NM, error_NM) - expected) < 1e-4 * max(1, abs(expected))


@pytest.mark.parametrize("mean", MEANS)
def test_an_outlier_as_the_first_row_costs_no_digits(mean):
  y_NM, error_NM = made(4096, 8, mean, np.float32)
  for size in (10, 1e4, 1e7):
    y_NM[0] = size
    np.testing.assert_allclose(on_device(y_NM, error_NM), exactly(y_NM, error_NM), rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e4, 1e7])
def test_rows_that_do_not_count_cost_no_digits(size):
  """Such as the first position of a context, where a model has an attention sink; or a batch in which no row counts."""
  y_NM, error_NM = made(512, 8, 3.0, np.float32)
  counts_N = np.arange(512) % 64 > 0
  y_NM[~counts_N] = size
  parts = [jax.device_get(spread(y_NM, weight_N.astype(np.float32))) for weight_N in (counts_N, 0 * counts_N, counts_N)]
  rows = functools.reduce(variance.joined, parts, None)
  expected_M = y_NM[counts_N].astype(np.float64).mean(0)
  np.testing.assert_allclose(rows.near_O + rows.beyond_O, expected_M, rtol=1e-6)
  np.testing.assert_allclose(rows.square, 2 * np.square(y_NM[counts_N] - expected_M).sum(), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e5, 1e5), st.integers(0, 1000), st.lists(st.sampled_from([1, 3, 64]), min_size=1, max_size=5))
def test_batches_joined_are_the_whole(mean, seed, sizes):
  parts = [made(64, 5, mean, np.float32, seed + i) for i in range(len(sizes))]
  rows, error = None, 0.0
  for n_rows, (y_NM, error_NM) in zip(sizes, parts, strict=True):
    weight_N = (np.arange(64) < n_rows).astype(np.float32)  # the rest is padding
    rows = variance.joined(rows, jax.device_get(spread(y_NM, weight_N)))
    error += np.square(error_NM[:n_rows].astype(np.float64)).sum()
  y_NM, error_NM = (np.concatenate([part[i][:n] for n, part in zip(sizes, parts, strict=True)]) for i in (0, 1))
  found = variance.share_unexplained(error, rows)
  if len(y_NM) == 1:
    assert found is None
  else:
    expected = 1 - exactly(y_NM, error_NM)
    assert abs(found - expected) < 1e-4 * expected
    np.testing.assert_allclose(rows.near_O + rows.beyond_O, y_NM.astype(np.float64).mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 3000.1, 1e5, -1e30, 1e-30])
@pytest.mark.parametrize("n_rows", [1, 7, 5000])
def test_equal_rows_have_no_explained_variance_and_no_loss(value, n_rows):
  y_NM = np.full((n_rows, 3), value, np.float32) * np.array([[1, -1, 0.3]], np.float32)
  error_NM = np.full_like(y_NM, 0.5)
  assert np.isnan(on_device(y_NM, error_NM))
  assert variance.share_unexplained(1.0, variance.joined(None, jax.device_get(spread(y_NM)))) is None
  parts = [jax.device_get(spread(y_NM)) for _ in range(3)]
  assert not variance.joined(variance.joined(variance.joined(None, parts[0]), parts[1]), parts[2]).varies
  scaled = jax.jit(lambda y_NM, scale: variance.explained_variance(y_NM * scale, y_NM))
  assert np.isnan(scaled(y_NM, 0.7123))
  loss, gradient = jax.value_and_grad(lambda error_NM: objectives.unexplained(jnp.asarray(y_NM), error_NM))(error_NM)
  assert loss == 0 and not np.any(gradient)


@pytest.mark.parametrize("shape", [(4, 2), (8, 1), (1, 8)])
@pytest.mark.parametrize("mean", MEANS)
def test_rows_spread_over_devices(shape, mean):
  y_NM, error_NM = made(512, 16, mean, np.float32)
  placed = [mesh.on_mesh(a, mesh.make_mesh(mesh.MeshConfig(*shape)), jax.P("data", "model")) for a in (y_NM, error_NM)]
  np.testing.assert_allclose(on_device(*placed), exactly(y_NM, error_NM), rtol=1e-4)


@pytest.mark.parametrize("mean", MEANS)
def test_a_dictionary_in_use(mean):
  y_NM, _ = made(9000, 4, mean, np.float32)
  model = Dictionary(Wiring((4,)), 8)
  params = dict(model.init(jax.random.key(0), y_NM[:1])["params"])
  params |= {"b_dec_O": jnp.asarray(y_NM.mean(0, dtype=np.float64), jnp.float32), "W_dec_FO": 0.0 * params["W_dec_FO"]}
  sae = SAE(SAEConfig(n_features=8), model, params)  # which gives back the mean of the rows
  assert abs(sae.metrics(y_NM)["explained_variance"]) < 1e-3
  assert sae.metrics(np.full((5, 4), mean, np.float32))["explained_variance"] is None


class Rows:
  """A source of rows around a mean, some of which do not vary."""

  def __init__(self, mean=0.0, equal=lambda step: False):
    self.mean, self.equal = mean, equal

  def batch(self, step):
    y_NM, _ = made(32, 8, self.mean, np.float32, step)
    return np.broadcast_to(y_NM[:1], y_NM.shape) if self.equal(step) else y_NM

  def sample(self, n_rows, seed):
    return made(n_rows, 8, self.mean, np.float32, seed + 1000)[0]


def fit(directory, source, shape=(1, 1), **more):
  config = SAEConfig(**{"n_features": 16, "batch_rows": 32, "n_steps": 12, "scan_steps": 2, "start_rows": 64,
                        "checkpoint_every_steps": 6, "learning_rate": 3e-3, "dead_window_steps": 3, **more})
  made_mesh = mesh.make_mesh(mesh.MeshConfig(*shape))
  _, params = train_sae(config, source, Wiring((8,)), directory, {}, made_mesh, MetricsConfig())
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
  constants = lambda name: pytest.fail(f"metrics.jsonl holds {name}, which is not JSON")
  return [json.loads(line, parse_constant=constants) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", ["tm2023", "topk", "batchtopk", "jumprelu"])
def test_training_goes_on_over_rows_that_do_not_vary(tmp_path, recipe):
  lines = fit(tmp_path, Rows(equal=lambda step: step in (2, 3)), recipe=recipe, k=2)
  assert [line["explained_variance"] is None for line in lines] == [False, True, False, False, False, False]
  assert all(np.isfinite(line["loss"]) for line in lines)


def test_one_row_a_part(tmp_path):
  lines = fit(tmp_path, Rows(), accumulate=32)
  assert all(line["explained_variance"] is None for line in lines) and lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_what_is_logged_is_right_at_large_means(tmp_path, shape):
  """The same rows, with their mean taken away, are as well explained: the start puts the bias at their median."""
  logged = {mean: fit(tmp_path / str(mean), Rows(mean), shape, recipe="tm2023", sparsity_coefficient=1e-3)[-1]
            for mean in (0.0, 3000.0)}
  assert abs(logged[0.0]["explained_variance"] - logged[3000.0]["explained_variance"]) < 0.02
