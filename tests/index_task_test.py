"""The index-arithmetic task and its MLP: answers by hand, folded normalisation, and which features tell variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.config import InputError
from monojax.metrics import MetricsConfig
from monojax.studies.index import mlp, variables
from monojax.studies.index import task as index_task


def test_answers_are_those_of_the_seeds_probes():
  probes = {"8,9,5,1,3,2,9,4,7,1": 8, "8,9,5,2,3,2,8,4,7,1": 6, "8,9,5,3,3,2,7,4,7,1": 4, "8,9,5,4,3,2,5,4,7,1": 1,
            "8,9,5,5,3,2,4,4,7,1": 1}
  for text, answer in probes.items():
    assert index_task.answers(index_task.parse(text)) == answer
  for text in ("1,2,3", "8,9,5,1,4,2,9,4,7,1", "8,9,5,1,3,2,10,4,7,1", "a,9,5,1,3,2,9,4,7,1", "8,9,5,.5,3,2,9,4,7,1"):
    with pytest.raises(InputError, match="--probe"):
      index_task.parse(text)


def test_rows_and_variables():
  rows_BI = np.asarray(index_task.draw_rows(jax.random.key(0), 20_000))
  for column, limit in enumerate([10] * 4 + [4] + [10] * 4 + [4]):
    counts = np.bincount(rows_BI[:, column].astype(int), minlength=limit)
    assert len(counts) == limit and np.all(np.abs(counts / 20_000 * limit - 1) < 0.12)
  values = index_task.variables(rows_BI)
  for row, (i, j) in enumerate(rows_BI[:200, [4, 9]].astype(int)):
    v1, v2 = rows_BI[row, :4][i], rows_BI[row, 5:9][j]
    assert [values[name][row] for name in ("p1", "p2", "v1", "v2", "difference")] == [i, j, v1, v2, abs(v1 - v2)]
    assert values["sign"][row] == (2 if v1 > v2 else 0 if v1 < v2 else 1)
  assert {name: value_B.max() + 1 for name, value_B in values.items()} == index_task.VARIABLES
  np.testing.assert_array_equal(jax.jit(index_task.answers)(rows_BI), index_task.answers(rows_BI))


def test_one_variable_is_changed_and_little_else():
  rows_BI = np.asarray(index_task.draw_rows(jax.random.key(1), 5000))
  before = index_task.variables(rows_BI)
  kept = {"p1": ("p2", "v2"), "p2": ("p1", "v1"), "v1": ("p1", "p2", "v2"), "v2": ("p1", "p2", "v1"),
          "sign": ("p1", "p2"), "difference": ("p1", "p2")}
  for name, same in kept.items():
    other_BI = index_task.changed(rows_BI, name, np.random.default_rng(0))
    after = index_task.variables(other_BI)
    assert np.all((other_BI != rows_BI).sum(1) == 1) and np.all(after[name] != before[name]), name
    for other in same:
      np.testing.assert_array_equal(after[other], before[other])
    if name in ("sign", "difference"):
      assert 0.4 < (after["v1"] != before["v1"]).mean() < 0.6
    if name == "difference":  # on the same side wherever another digit is there
      tight_B = np.any([(before[one] > before[other]) & (before[other] == 8) | (before[one] < before[other])
                        & (before[other] == 1) for one, other in (("v1", "v2"), ("v2", "v1"))], 0)
      moved_B = after["sign"] != before["sign"]
      assert np.all((tight_B | (before["sign"] == 1))[moved_B])
  digits = index_task.changed(np.tile(rows_BI[:1], (9000, 1)), "v1", np.random.default_rng(0))[:, :4].max(1)
  assert len(np.unique(index_task.changed(np.tile(rows_BI[:1], (900, 1)), "p1", np.random.default_rng(0))[:, 4])) == 3
  assert np.all(digits <= 9)


def test_answers_with_one_quantity_of_another_row():
  row, other = "8,9,5,1,3,2,9,4,7,1", "7,0,3,6,1,5,5,2,0,2"  # v1 = 1 and v2 = 9; v1 = 0 and v2 = 2
  found = index_task.answers_with_one_changed(index_task.parse(row), index_task.parse(other))
  assert {name: answer_B.tolist() for name, answer_B in found.items()} == {
      "p1": [0], "p2": [3], "v1": [9], "v2": [1], "less": [2], "more": [8]}
  found = index_task.answers_with_one_changed(index_task.parse(row), index_task.parse("7,6,3,6,1,5,5,2,0,2"))
  assert found["less"] == 0 and found["more"] == 8 + 4


def test_symbols_are_one_for_each_number():
  rows_BI = np.asarray(index_task.draw_rows(jax.random.key(2), 300))
  found_BI = np.asarray(index_task.symbols(rows_BI))
  first_I = np.concatenate([[0], np.cumsum(index_task.N_VALUES)[:-1]]).astype(int)
  assert found_BI.shape == (300, 88)
  np.testing.assert_array_equal(np.nonzero(found_BI)[1].reshape(300, 10), first_I[None] + rows_BI.astype(int))


def test_folding_changes_nothing():
  config, rng = mlp.MLPConfig(5, (7, 6, 4), 2, 3), np.random.default_rng(0)
  params = {}
  for i, (n_in, n_out) in enumerate(zip(config.widths[:-1], config.widths[1:], strict=True)):
    params |= {f"W_{i}_IH": rng.normal(size=(n_in, n_out)), f"b_{i}_H": rng.normal(size=n_out)}
    if i < 2:
      params |= {f"gain_{i}_H": rng.uniform(0.5, 2, n_out), f"shift_{i}_H": rng.normal(size=n_out)}
  params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
  x_BI = rng.normal(size=(50, 5)).astype(np.float32)
  y_BO, moments, activity = mlp.normed_forward(config, params, x_BI)
  normal = np.asarray(x_BI @ params["W_0_IH"] + params["b_0_H"][None])
  np.testing.assert_allclose(moments[0][0], normal.mean(0), atol=1e-5)
  model, folded = mlp.MLP(config), mlp.folded(config, params, moments)
  found_BO, sites = model.apply({"params": folded}, x_BI)
  np.testing.assert_allclose(activity, [np.asarray(site).sum(1).mean() for site in sites.values()], rtol=1e-4)
  np.testing.assert_allclose(found_BO, y_BO, rtol=1e-4, atol=1e-4)
  assert {name: site.shape[1] for name, site in sites.items()} == {
      "layer.0.mlp.hidden": 7, "layer.1.mlp.hidden": 6, "layer.2.mlp.hidden": 4}
  edited_BO, _ = model.apply({"params": folded}, x_BI, {"layer.2.mlp.hidden": lambda h_BH: 0 * h_BH})
  np.testing.assert_allclose(edited_BO, np.broadcast_to(folded["b_3_H"], (50, 3)))
  with pytest.raises(ValueError, match="layer.9"):
    model.apply({"params": folded}, x_BI, {"layer.9": lambda h_BH: h_BH})


def test_a_linear_layer_has_no_relu():
  config = mlp.MLPConfig(3, (5, 4), 0, n_linear=1, n_outputs=2)
  params = mlp.MLP(config).init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
  x_BI = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  y_BO, sites = mlp.MLP(config).apply({"params": params}, x_BI)
  linear_BH = x_BI @ np.asarray(params["W_0_IH"])
  np.testing.assert_allclose(sites["layer.0.mlp.hidden"], linear_BH, atol=1e-6)
  assert linear_BH.min() < 0 == sites["layer.1.mlp.hidden"].min()
  trained_BO, _, activity = mlp.normed_forward(config, params, x_BI)
  np.testing.assert_allclose(trained_BO, y_BO, atol=1e-6)
  assert activity[0] == pytest.approx(np.abs(linear_BH).sum(1).mean(), rel=1e-5)


def test_noise_is_as_large_as_asked_for():
  config = mlp.MLPConfig(3, (400,), 0, 1, noise=(0.25,))
  params = mlp.MLP(config).init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
  x_BI = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
  still_BO, _, activity = mlp.normed_forward(config, params, x_BI)
  noisy_BO, _, same = mlp.normed_forward(config, params, x_BI, jax.random.key(3))
  hidden_BH = mlp.MLP(config).apply({"params": params}, x_BI)[1]["layer.0.mlp.hidden"]
  expected = 0.25 * np.sqrt(np.square(hidden_BH).mean()) * np.linalg.norm(params["W_1_IH"])
  assert np.std(noisy_BO - still_BO) == pytest.approx(expected, rel=0.05) and activity == same
  with pytest.raises(InputError, match="before a normalised layer"):
    mlp.MLPConfig(3, (8, 8), 2, 1, noise=(0.5, 0.0))
  for bad in ({"noise": (1.0, 1.0)}, {"activity_penalties": (-1.0,)}):
    with pytest.raises(InputError, match=f"mlp.{next(iter(bad))}"):
      mlp.MLPConfig(3, (400,), 0, 1, **bad)


def test_an_mlp_learns_and_goes_on_where_it_was_stopped(tmp_path):
  """y = |x_0 - x_1|, which no linear map comes near."""
  config = mlp.MLPConfig(2, (16, 16), 1, 1, noise=(0.0, 0.05), n_steps=300, batch_rows=128,
                         scan_steps=20, checkpoint_every_steps=100)

  def batches(first, last):
    x_SBI = jnp.stack([jax.random.uniform(jax.random.fold_in(jax.random.key(1), step), (128, 2))
                       for step in range(first, last)])
    return x_SBI, jnp.abs(x_SBI[..., :1] - x_SBI[..., 1:])

  def stopping(first, last):
    if first >= 200:
      raise KeyboardInterrupt
    return batches(first, last)
  rows_BI = np.asarray(batches(0, 1)[0][0])
  given = lambda batches, name: (config, batches, rows_BI, tmp_path / name, {}, meshes.make_mesh(), MetricsConfig())
  model, params = mlp.train_mlp(*given(batches, "whole"))
  with pytest.raises(KeyboardInterrupt):
    mlp.train_mlp(*given(stopping, "stopped"))
  _, again = mlp.train_mlp(*given(batches, "stopped"))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  x_BI, y_BO = (np.asarray(part[0]) for part in batches(10_000, 10_001))
  assert np.square(model.apply({"params": params}, x_BI)[0] - y_BO).mean() < 0.05 * y_BO.var()


def test_auroc_counts_pairs():
  rng = np.random.default_rng(0)
  f_BF = np.round(np.maximum(rng.normal(size=(60, 5)), 0), 1)  # many ties
  f_BF[:, 4] = 0
  label_BL = rng.random((60, 4)) < [0.5, 0.1, 0.9, 0.0]
  found_FL = variables.aurocs(f_BF, label_BL)
  for i in range(5):
    for j in range(3):
      higher = f_BF[label_BL[:, j], i][:, None] - f_BF[~label_BL[:, j], i][None]
      assert found_FL[i, j] == pytest.approx(np.mean((higher > 0) + 0.5 * (higher == 0)))
  assert np.all(np.isnan(found_FL[:, 3]))


def test_readouts_find_the_features_that_tell_a_label():
  rng = np.random.default_rng(0)
  f_BF = np.where(rng.random((6000, 40)) < 0.2, rng.uniform(0.5, 1.5, (6000, 40)), 0).astype(np.float32)
  f_BF[:, 7] = 0
  label_BL = np.stack([f_BF[:, 3] + f_BF[:, 11] > 0, f_BF[:, 5] > 0, rng.random(6000) < 0.3], 1)
  chosen_LK, auroc_L = variables.readouts(f_BF, label_BL, 2, 4000)
  assert set(chosen_LK[0]) == {3, 11} and chosen_LK[1, 0] == 5
  assert auroc_L[0] == 1 and auroc_L[1] > 0.99 and 0.4 < auroc_L[2] < 0.6
  z_BK = f_BF[:4000, [3, 11]].astype(np.float64)  # by ordinary least squares, the same scores but for the ridge
  weight_K = np.linalg.lstsq(z_BK - z_BK.mean(0), label_BL[:4000, 0] - label_BL[:4000, 0].mean(), rcond=None)[0]
  score_B = f_BF[4000:, [3, 11]] @ weight_K
  expected = variables.aurocs((score_B - score_B.min())[:, None], label_BL[4000:, :1])[0, 0]
  assert auroc_L[0] == pytest.approx(expected)


def test_mutual_information():
  rng = np.random.default_rng(0)
  value_B = rng.integers(0, 4, 40_000)
  f_BF = np.stack([np.where(value_B == 2, rng.uniform(1, 2, 40_000), 0), value_B * 1.0,
                   rng.random(40_000) * (rng.random(40_000) < 0.3)], 1)
  found_F, unrelated_F = variables.mutual_information(f_BF, np.stack([value_B, rng.integers(0, 3, 40_000)], 1))
  binary = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
  np.testing.assert_allclose(found_F, [binary, 2, 0], atol=5e-3)
  np.testing.assert_allclose(unrelated_F, 0, atol=5e-3)
  assert variables.entropy(value_B) == pytest.approx(2, abs=1e-3)


def test_labels_of_variables():
  names, label_BL = variables.labels_of({"p": np.array([0, 1, 1, 0]), "v": np.array([0, 1, 2, 3])}, ("v",))
  assert names == [("p", "=", 0), ("p", "=", 1), ("v", "=", 0), ("v", "=", 1), ("v", "=", 2), ("v", "=", 3),
                   ("v", ">=", 2)]
  assert label_BL[:, 1].tolist() == [False, True, True, False] and label_BL[:, 6].tolist() == [False, False, True, True]
