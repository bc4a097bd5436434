"""The dictionary's training step against the paper's formulas written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.sae import objectives, starts
from monojax.sae.config import SAEConfig
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.recipes import make_recipe
from monojax.sae.step import make_step
from monojax.training import compute_dtype

M, F, B = 12, 40, 64
CONFIG = SAEConfig(n_features=F, batch_rows=B, n_steps=50, learning_rate=1e-2, sparsity_coefficient=0.05,
                   warmup_steps=2, penalty_warmup_steps=4, decay_fraction=0.5)


def rows(seed, n=3):
  return np.random.default_rng(seed).exponential(size=(n, B, M)).astype(np.float32)


def make(config=CONFIG, mesh=None, width=M):
  recipe = make_recipe(config, Wiring((width,)), jnp.float32)
  return recipe, *make_step(recipe, mesh or meshes.make_mesh(meshes.MeshConfig(1, 1)), config.window_steps)


def numpy_steps(params, x_SBM, config):
  """tm2023 by hand, float64: gradients, projection, Adam, renormalisation."""
  config = config.resolved()
  p = {name: np.asarray(value, np.float64) for name, value in params.items()}
  moments = {name: [np.zeros_like(value), np.zeros_like(value)] for name, value in p.items()}
  for t, x in enumerate(np.asarray(x_SBM, np.float64)):
    penalty = config.sparsity_coefficient * min(1, (t + 1) / config.penalty_warmup_steps)
    rate = config.learning_rate * min(1, (t + 1) / config.warmup_steps)
    rate *= min(1, (config.n_steps - t) / (config.decay_fraction * config.n_steps))
    centred = x - p["b_dec_O"]
    pre = centred @ p["W_enc_MF"] + p["b_enc_F"]
    f = np.maximum(pre, 0)
    error = f @ p["W_dec_FO"] + p["b_dec_O"] - x
    g_x_hat = 2 * error / error.size
    g_pre = (g_x_hat @ p["W_dec_FO"].T + penalty / len(x)) * (pre > 0)
    g = {"W_dec_FO": f.T @ g_x_hat, "W_enc_MF": centred.T @ g_pre, "b_enc_F": g_pre.sum(0),
         "b_dec_O": g_x_hat.sum(0) - (g_pre @ p["W_enc_MF"].T).sum(0)}
    g["W_dec_FO"] -= (g["W_dec_FO"] * p["W_dec_FO"]).sum(1, keepdims=True) * p["W_dec_FO"]
    for name in p:
      mean, square = moments[name]
      mean[:] = config.beta1 * mean + (1 - config.beta1) * g[name]
      square[:] = config.beta2 * square + (1 - config.beta2) * g[name] ** 2
      mean_hat, square_hat = mean / (1 - config.beta1 ** (t + 1)), square / (1 - config.beta2 ** (t + 1))
      p[name] = p[name] - rate * mean_hat / (np.sqrt(square_hat) + 1e-8)
    p["W_dec_FO"] /= np.linalg.norm(p["W_dec_FO"], axis=1, keepdims=True)
  return p


@pytest.mark.parametrize("encoder_init", ["kaiming", "decoder_transpose"])
def test_first_three_updates_agree_with_numpy(encoder_init):
  config = SAEConfig(**{**CONFIG.__dict__, "encoder_init": encoder_init})
  _, init, step = make(config)
  x_SBM = rows(0)
  state = init(jax.random.key(0), x_SBM[0])
  before = jax.device_get(state.params)
  expected = numpy_steps(before, x_SBM, config)
  state, _ = step(state, x_SBM)
  for name, value in expected.items():
    np.testing.assert_allclose(state.params[name], value, atol=1e-5, err_msg=name)
    assert np.abs(value - before[name]).max() > 1e-3, name


def test_loss_reductions_convert_as_published():
  """Mean-MSE with summed L1 is sum-MSE with M times the coefficient, over M."""
  model, x_BM, params, f_BF = biased(1)
  given = lambda penalty: objectives.Given(x_BM=x_BM, y_BO=x_BM, earlier_BM=None, step=0, penalty=penalty, dead_F=None,
                                           model=model, mesh=None)
  mean, _ = objectives.make_objective(objectives.mean_square, [objectives.l1()])(params, given(0.004))
  total, _ = objectives.make_objective(objectives.summed_square, [objectives.l1()])(params, given(0.004 * M))
  np.testing.assert_allclose(mean * M, total, rtol=1e-5)
  error = f_BF @ params["W_dec_FO"] + params["b_dec_O"] - x_BM
  row_B = np.square(error).mean(1) + CONFIG.sparsity_coefficient * f_BF.sum(1)
  np.testing.assert_allclose(make()[0].row_loss(params, x_BM), row_B, rtol=1e-5)


def biased(seed):
  """(model, inputs, parameters with biases, features by the published encoder in NumPy)."""
  model = Dictionary(Wiring((M,)), F)
  x_BM = rows(seed)[0]
  params = jax.device_get(model.init(jax.random.key(seed), x_BM)["params"])
  params = {**params, "b_dec_O": x_BM.mean(0), "b_enc_F": np.linspace(-1, 1, F, dtype=np.float32)}
  pre_BF = (x_BM - params["b_dec_O"]) @ params["W_enc_MF"] + params["b_enc_F"]
  return model, x_BM, params, np.maximum(pre_BF, 0)


def test_encoder_with_folded_bias_is_the_published_encoder():
  model, x_BM, params, expected = biased(2)
  np.testing.assert_allclose(model.apply({"params": params}, x_BM, method="encode"), expected, atol=1e-5)


def test_columns_stay_unit_and_fired_counters_are_right():
  recipe, init, step = make()
  state = init(jax.random.key(0), np.zeros((2, M)))
  state = state.replace(params={**state.params, "b_enc_F": state.params["b_enc_F"].at[3].set(-100.0)})
  for seed in range(3):
    state, values = step(state, rows(seed))
  np.testing.assert_allclose(np.linalg.norm(state.params["W_dec_FO"], axis=1), 1.0, atol=1e-6)
  last = np.asarray(state.counters["last_fired_F"])
  assert last[3] == 0 and np.sum(last == 9) > F // 2 and int(state.step) == 9
  assert values["fired_fraction"] <= 1 - 1 / F


def test_metrics_agree_with_numpy():
  recipe, init, step = make()
  state = init(jax.random.key(0), np.zeros((2, M)))
  x_BM = rows(5)[0]
  f_BF = np.maximum(x_BM @ state.params["W_enc_MF"], 0)
  error = f_BF @ np.asarray(state.params["W_dec_FO"]) - x_BM
  _, values = step(state, x_BM[None])
  np.testing.assert_allclose(values["l0"], (f_BF > 0).sum(1).mean(), rtol=1e-5)
  np.testing.assert_allclose(values["l1"], f_BF.sum(1).mean(), rtol=1e-5)
  np.testing.assert_allclose(values["mse"], np.square(error).mean(), rtol=1e-5)
  np.testing.assert_allclose(values["explained_variance"],
                             1 - np.square(error).mean() / x_BM.var(0).mean(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 2), (8, 1), (1, 8), (2, 2)])
def test_sharded_equals_unsharded(shape):
  outcomes = []
  for mesh_shape in ((1, 1), shape):
    _, init, step = make(mesh=meshes.make_mesh(meshes.MeshConfig(*mesh_shape)))
    state, values = step(init(jax.random.key(0), np.ones((2, M))), rows(0))
    outcomes.append(jax.device_get((state, values)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *outcomes)
  assert state.params["W_enc_MF"].sharding.spec[1] == "model"
  assert state.opt_state[1].mu["W_dec_FO"].sharding.spec[0] == "model"


def test_state_is_donated_and_compiled_once(caplog):
  _, init, step = make()
  state = init(jax.random.key(0), np.zeros((2, M)))
  old = state.params["W_dec_FO"]
  x_SBM = jnp.asarray(rows(0))
  with jax.log_compiles(True), caplog.at_level("WARNING"):
    for _ in range(3):
      state, _ = step(state, x_SBM)
  assert old.is_deleted()
  compilations = [r for r in caplog.records if r.getMessage().startswith("Compiling jit(scan_steps)")]
  assert len(compilations) == 1


def test_low_precision_rows_and_compute():
  config = SAEConfig(**{**CONFIG.__dict__, "compute_dtype": "bfloat16"})
  recipe = make_recipe(config, Wiring((M,)), compute_dtype("bfloat16"))
  init, step = make_step(recipe, meshes.make_mesh(meshes.MeshConfig(1, 1)), config.window_steps)
  state, values = step(init(jax.random.key(0), np.zeros((2, M))), rows(0).astype(np.float16))
  assert np.isfinite(values["loss"]) and state.params["W_enc_MF"].dtype == np.float32
  _, init, step = make()
  _, exact = step(init(jax.random.key(0), np.zeros((2, M))), rows(0))
  np.testing.assert_allclose(values["loss"], exact["loss"], rtol=0.02)  # bfloat16 keeps 8 bits


def test_geometric_median_minimises_the_summed_distance():
  x_NM = np.random.default_rng(0).exponential(size=(501, 3)).astype(np.float32)
  median = np.asarray(starts.geometric_median(x_NM))
  cost = lambda point: np.linalg.norm(x_NM - point, axis=1).sum()
  for direction in np.concatenate([np.eye(3), -np.eye(3)]):
    assert cost(median) < cost(median + 0.01 * direction)
  assert cost(median) < cost(x_NM.mean(0))
  line = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]], np.float32)
  np.testing.assert_allclose(starts.geometric_median(line), [2.0], atol=1e-2)


def test_a_planted_dictionary_is_recovered():
  """48 unit directions in 24 dimensions, about 2 active at a time; mean over truths of the best cosine."""
  rng = np.random.default_rng(0)
  truth = rng.normal(size=(48, 24))
  truth /= np.linalg.norm(truth, axis=1, keepdims=True)

  def batch(n):
    active = rng.random((n, 48)) < 0.04
    return ((active * rng.uniform(0.5, 1.5, (n, 48))) @ truth).astype(np.float32)

  config = SAEConfig(n_features=96, batch_rows=512, n_steps=1500, learning_rate=3e-3, sparsity_coefficient=0.006,
                     decay_fraction=0.3)
  _, init, step = make(config, width=24)
  state = init(jax.random.key(0), np.zeros((2, 24)))
  for _ in range(15):
    state, _ = step(state, batch(100 * 512).reshape(100, 512, 24))
  cosine = truth @ np.asarray(state.params["W_dec_FO"]).T
  assert cosine.max(1).mean() > 0.95
