"""What features do to an output, against plain loops; and activations that are generated as they are needed."""

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.generated import Generated
from monojax.analysis import patching
from monojax.studies.index import mlp

RNG = np.random.default_rng(0)
X_BM = RNG.normal(size=(9, 5)).astype(np.float32)
W_DEC_FM = RNG.normal(size=(12, 5)).astype(np.float32)
F_BF = np.where(RNG.random((9, 12)) < 0.3, RNG.random((9, 12)), 0).astype(np.float32)
MATRIX_MO = RNG.normal(size=(5, 2)).astype(np.float32)


def tail(x_BM):
  return jnp.tanh(x_BM @ MATRIX_MO)


def test_ablation_removes_one_feature_at_a_time():
  row_P, feature_P, effect_PO = patching.ablation_effects(tail, W_DEC_FM, X_BM, F_BF, chunk=7)
  assert len(row_P) == (F_BF > 0).sum() > 7
  for row, feature, effect_O in zip(row_P, feature_P, effect_PO, strict=True):
    without_M = X_BM[row] - F_BF[row, feature] * W_DEC_FM[feature]
    np.testing.assert_allclose(effect_O, np.tanh(without_M @ MATRIX_MO) - np.tanh(X_BM[row] @ MATRIX_MO), atol=1e-5)
  nothing = patching.ablation_effects(tail, W_DEC_FM, X_BM, 0 * F_BF)
  assert [len(part) for part in nothing] == [0, 0, 0] and nothing[2].shape == (0, 2)


def test_patching_takes_features_from_other_rows():
  other_BF = F_BF[::-1]
  features_S = np.array([0, 3, 4, 9])
  before_BO, after_BO = patching.patched(tail, W_DEC_FM, X_BM, F_BF, other_BF, features_S)
  np.testing.assert_allclose(before_BO, np.tanh(X_BM @ MATRIX_MO), atol=1e-5)
  for row in range(9):
    changed_M = X_BM[row].copy()
    for feature in features_S:
      changed_M += (other_BF[row, feature] - F_BF[row, feature]) * W_DEC_FM[feature]
    np.testing.assert_allclose(after_BO[row], np.tanh(changed_M @ MATRIX_MO), atol=1e-5)


def test_contributions_add_up_to_the_change():
  other_BF = F_BF[::-1]
  linear_BF = patching.attributions(lambda x_BM: x_BM @ MATRIX_MO, W_DEC_FM, X_BM, F_BF, other_BF)
  np.testing.assert_allclose(linear_BF, (other_BF - F_BF) * (W_DEC_FM @ MATRIX_MO).sum(1), atol=1e-5)
  found_BF = patching.attributions(tail, W_DEC_FM, X_BM, F_BF, other_BF, n_points=400)
  before_BO, after_BO = patching.patched(tail, W_DEC_FM, X_BM, F_BF, other_BF, np.arange(12))
  np.testing.assert_allclose(found_BF.sum(1), (after_BO - before_BO).sum(1), atol=1e-3)


def test_generated_batches_are_a_pure_function_of_the_step():
  model = mlp.MLP(mlp.MLPConfig(3, (6, 4), 0, 1))
  params = model.init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
  sites_of = lambda x_BI: model.apply({"params": params}, x_BI)[1]
  draw = lambda key, n_rows: jax.random.normal(key, (n_rows, 3))
  source, again = (Generated(draw, sites_of, ("layer.1.mlp.hidden", "layer.0.mlp.hidden"), 50, 3) for _ in range(2))
  assert source.widths == (4, 6)
  x_BW = np.asarray(source.batch(7))
  assert x_BW.shape == (50, 10) and not np.array_equal(x_BW, source.batch(8))
  again.batch(2)
  np.testing.assert_array_equal(x_BW, again.batch(7))
  inputs_BI = draw(jax.random.fold_in(jax.random.key(3), 7), 50)
  np.testing.assert_allclose(x_BW[:, 4:], sites_of(inputs_BI)["layer.0.mlp.hidden"], atol=1e-6)
  sample_NW = source.sample(20, 1)
  np.testing.assert_array_equal(sample_NW, again.sample(20, 1))
  assert sample_NW.shape == (20, 10) and not np.array_equal(sample_NW, source.sample(20, 2))
