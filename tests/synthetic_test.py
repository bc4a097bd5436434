"""Planted features: the law that was asked for, a pure function of the step, and scores against the truth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax.analysis.recovery import absorption, direction_scores, recovery
from monojax.config import InputError
from monojax.sae.model import Dictionary, Wiring
from monojax.studies.synthetic.planted import SYNTH_SAE_BENCH, PlantedConfig
from monojax.studies.synthetic.source import Planted, Synthetic, spread

TREES = PlantedConfig(60, 24, frequency="equal", mean_active=6.0, n_roots=10, branching=4, depth=1,
                      child_probability=0.6, min_strength=0.2)


def many(config, n_rows=40_000, **given):
  source = Synthetic(Planted.of(config, **given), n_rows)
  return source, *(np.asarray(part) for part in source.truth(0))


@pytest.mark.parametrize("settings", [
    {}, {"frequency": "equal"}, {"frequency": "zipf", "max_probability": 0.3, "min_probability": 0.01},
    {"correlation_rank": 5, "correlation_scale": 0.3}])
def test_features_fire_as_often_as_the_law_says(settings):
  config = PlantedConfig(n_features=100, width=32, **settings)
  _, _, f_BN = many(config)
  probability_N = config.probabilities()
  if config.frequency == "zipf":
    assert probability_N[0] == 0.3 and probability_N[-1] == pytest.approx(0.01)
    assert (probability_N[3] - 0.01) / 0.29 == pytest.approx((0.5 - 0.1) / (1 - 0.1))  # of 100^-1/2 .. 1
  else:
    assert probability_N.sum() == pytest.approx(5)
  found_N = (f_BN > 0).mean(0)
  np.testing.assert_allclose(found_N, probability_N, atol=5 * np.sqrt(probability_N.max() / 40_000))


def test_rows_are_features_times_directions():
  config = PlantedConfig(40, 16, mean_active=3.0, bias_norm=0.5, min_strength=0.5)
  source, x_BM, f_BN = many(config)
  direction_NM = np.asarray(source.planted.direction_NM)
  np.testing.assert_allclose(np.linalg.norm(direction_NM, axis=1), 1, rtol=1e-5)
  assert np.linalg.norm(source.planted.bias_M) == pytest.approx(0.5)
  np.testing.assert_allclose(x_BM, f_BN @ direction_NM + np.asarray(source.planted.bias_M), atol=1e-5)
  on = f_BN[f_BN > 0]
  assert 0.5 <= on.min() and on.max() <= 1 and abs(on.mean() - 0.75) < 0.01
  noisy_BM = many(PlantedConfig(40, 16, mean_active=3.0, bias_norm=0.5, min_strength=0.5, noise=0.1))[1]
  assert abs((noisy_BM - x_BM).std() - 0.1) < 0.002


def test_strengths_from_a_normal_law():
  config = PlantedConfig(50, 16, frequency="equal", mean_active=25.0, strength="normal", strength_std_mean=0.2,
                         strength_std_std=0.0)
  _, _, f_BN = many(config)
  mean_N = [f_B[f_B > 0].mean() for f_B in f_BN.T]
  np.testing.assert_allclose(mean_N, np.linspace(5, 4, 50), atol=0.02)
  assert abs(np.mean([f_B[f_B > 0].std() for f_B in f_BN.T]) - 0.2) < 0.01


def test_correlated_features_fire_together():
  config = PlantedConfig(30, 8, frequency="equal", mean_active=6.0, correlation_rank=1, correlation_scale=0.6, seed=3)
  source, _, f_BN = many(config)
  factor_N = np.asarray(source.planted.arrays["factor_NR"])[:, 0]
  correlation_NN = np.corrcoef((f_BN > 0).T)
  pairs = np.triu_indices(30, 1)
  assert np.corrcoef(correlation_NN[pairs], np.outer(factor_N, factor_N)[pairs])[0, 1] > 0.95


def test_children_need_their_parents_and_exclude_each_other():
  _, _, f_BN = many(TREES)
  child_J, parent_J = TREES.family()
  assert child_J.tolist() == list(range(10, 50)) and parent_J.tolist() == np.repeat(np.arange(10), 4).tolist()
  on_BN = f_BN > 0
  assert not np.any(on_BN[:, child_J] & ~on_BN[:, parent_J])
  assert on_BN[:, 10:50].reshape(-1, 10, 4).sum(2).max() == 1
  np.testing.assert_allclose(on_BN[:, :10].mean(0), 0.1, atol=0.008)
  np.testing.assert_allclose(on_BN[:, 50:].mean(0), 0.1, atol=0.008)
  np.testing.assert_allclose(on_BN[:, 10:50].mean(0), 0.1 * 0.6 / 4, atol=0.004)  # the correction is approximate
  row, parent = np.flatnonzero(on_BN[:, 10])[0], f_BN[:, 0]
  assert f_BN[row, 10] <= parent[row] / 0.6 + 1e-6  # strengths scale by the parent's over its mean
  free_BN = many(PlantedConfig(**{**vars(TREES), "exclusive": False}))[2] > 0
  assert free_BN[:, 10:50].reshape(-1, 10, 4).sum(2).max() > 1


def test_batches_are_a_pure_function_of_the_step():
  planted = Planted.of(TREES)
  source, again = Synthetic(planted, 64, seed=5), Synthetic(Planted.of(TREES), 64, seed=5)
  np.testing.assert_array_equal(source.batch(7), again.batch(7))
  np.testing.assert_array_equal(source.truth(7)[0], again.batch(7))
  assert not np.array_equal(source.batch(7), source.batch(8))
  assert not np.array_equal(source.batch(7), Synthetic(planted, 64, seed=6).batch(7))
  assert source.sample(100, 0).shape == (100, 24) and not np.array_equal(source.sample(100, 0), source.sample(100, 1))


def test_spread_moves_directions_apart():
  start_NM = jax.random.normal(jax.random.key(0), (60, 20))
  start_NM /= jnp.linalg.norm(start_NM, axis=1, keepdims=True)
  overlap = lambda v_NM: float(np.square(np.asarray(v_NM @ v_NM.T) - np.eye(60)).sum())
  moved_NM = spread(start_NM, 300, 3e-3)
  np.testing.assert_allclose(np.linalg.norm(moved_NM, axis=1), 1, rtol=1e-5)
  assert 60 * (60 / 20 - 1) - 1e-2 <= overlap(moved_NM) < 0.9 * overlap(start_NM)  # the Welch bound


def test_synth_sae_bench_has_its_published_numbers():
  config = PlantedConfig(**{**vars(SYNTH_SAE_BENCH), "spread_steps": 0})
  assert config.tree_sizes() == [128, 512, 2048, 8192]
  source = Synthetic(Planted.of(config), 1024)
  _, f_BN = source.truth(0)
  active_N = np.asarray((f_BN > 0).mean(0))
  assert 30 < active_N.sum() < 38  # "about 34"
  assert 21 < active_N[:4096].sum() < 29  # "about 25"


def test_bad_settings_are_refused():
  for settings, name in (({"mean_active": 600.0}, "mean_active"), ({"decay": 0.0}, "decay"),
                         ({"min_strength": 1.5}, "min_strength"), ({"branching": 0, "n_roots": 2}, "branching"),
                         ({"min_probability": 0.9}, "min_probability"), ({"width": 0}, "width"),
                         ({"n_roots": 512}, "n_roots"), ({"strength": "odd"}, "strength")):
    with pytest.raises(InputError, match=name):
      PlantedConfig(**settings)
  with pytest.raises(InputError, match="directions"):
    Planted.of(TREES, np.ones((3, 4)))


def perfect(config, source):
  """A dictionary whose encoder finds features planted in as many dimensions exactly."""
  direction_NM = np.asarray(source.planted.direction_NM)
  return Dictionary(Wiring((config.width,)), config.n_features), {
      "W_dec_FO": direction_NM, "W_enc_MF": np.linalg.inv(direction_NM), "b_dec_O": np.asarray(source.planted.bias_M),
      "b_enc_F": np.full(config.n_features, -1e-3, np.float32)}


def test_the_truth_scores_one():
  config = PlantedConfig(24, 24, mean_active=2.0, min_strength=0.5, bias_norm=1.0, decay=0.95)
  source = Synthetic(Planted.of(config), 4096)
  model, params = perfect(config, source)
  scores = recovery(model, params, source, 4)
  for name in ("mcc", "mmcs_truth", "mmcs_learned", "uniqueness", "precision", "recall", "f1"):
    assert scores[name] == pytest.approx(1, abs=1e-4), name
  assert scores["l0"] == scores["true_l0"] and scores["dead_fraction"] == 0
  assert scores["explained_variance"] > 0.9999 and abs(scores["shrinkage"] - 1) < 0.01
  np.testing.assert_allclose(scores["best_N"], 1, atol=1e-4)


def test_scores_against_plain_loops():
  config = PlantedConfig(12, 8, mean_active=2.0, min_strength=0.3)
  source, rng = Synthetic(Planted.of(config), 500), np.random.default_rng(0)
  params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in
            {"W_dec_FO": (7, 8), "W_enc_MF": (8, 7), "b_enc_F": 7, "b_dec_O": 8}.items()}
  params["b_enc_F"][3] = -100  # dead
  model = Dictionary(Wiring((8,)), 7)
  scores = recovery(model, params, source, 3, first_step=5)
  x_BM, truth_BN = (np.concatenate([source.truth(step)[i] for step in (5, 6, 7)]) for i in (0, 1))
  y_BM, f_BF = (np.asarray(part) for part in model.apply({"params": params}, x_BM))
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  direction_NM = np.asarray(source.planted.direction_NM)
  cosine_FN = np.array([[cosine(w, d) for d in direction_NM] for w in params["W_dec_FO"]])
  f1s = []
  for i in range(7):
    fires, true = f_BF[:, i] > 0, truth_BN[:, np.abs(cosine_FN[i]).argmax()] > 0
    precision = (fires & true).sum() / fires.sum() if fires.any() else 0
    recall = (fires & true).sum() / true.sum()
    f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
  assert scores["f1"] == pytest.approx(np.mean(f1s), rel=1e-5)
  assert scores["dead_fraction"] == pytest.approx(np.mean(~(f_BF > 0).any(0))) and not np.any(f_BF[:, 3])
  assert scores["mmcs_truth"] == pytest.approx(cosine_FN.max(0).mean(), rel=1e-5)
  assert scores["explained_variance"] == pytest.approx(
      1 - np.square(x_BM - y_BM).sum() / np.square(x_BM - x_BM.mean(0)).sum(), rel=1e-4)
  lengths = np.linalg.norm(x_BM, axis=1)
  assert scores["shrinkage"] == pytest.approx(
      np.mean(np.linalg.norm(y_BM, axis=1)[lengths > 1e-6] / lengths[lengths > 1e-6]), rel=1e-4)
  few_FN = np.abs(cosine_FN[:4])
  best = max(few_FN[range(4), list(chosen)].mean() for chosen in itertools.permutations(range(12), 4))
  assert direction_scores(params["W_dec_FO"][:4], direction_NM)["mcc"] == pytest.approx(best, rel=1e-5)


def test_absorption():
  config = PlantedConfig(**{**vars(TREES), "n_features": 24, "n_roots": 4, "mean_active": 2.4})
  source = Synthetic(Planted.of(config), 4096)
  model, params = perfect(config, source)
  np.testing.assert_allclose(absorption(model, params, source, 2), 0, atol=0.01)
  # A child's feature takes the parent's part over: its direction holds the parent's, whose detector it silences.
  params["W_enc_MF"] = params["W_enc_MF"].copy()
  params["W_enc_MF"][:, 0] -= 1e3 * params["W_enc_MF"][:, 4]
  found_J = absorption(model, params, source, 2)
  assert found_J[0] > 0.95 and np.all(found_J[1:] < 0.05)


@pytest.mark.slow
def test_scores_are_those_of_sae_lens():
  """On the same dictionary and the same rows; needs pip install 'monojax[peers]'."""
  torch = pytest.importorskip("torch")
  evals = pytest.importorskip("sae_lens.synthetic.evals")
  config = PlantedConfig(64, 32, mean_active=4.0)
  source, rng = Synthetic(Planted.of(config), 2000), np.random.default_rng(0)
  direction_NM = np.asarray(source.planted.direction_NM)
  W_dec_FO = np.concatenate([direction_NM[:40] + 0.1 * rng.normal(size=(40, 32)), rng.normal(size=(56, 32))])
  params = {"W_dec_FO": W_dec_FO.astype(np.float32), "W_enc_MF": W_dec_FO.T.astype(np.float32),
            "b_enc_F": np.full(96, -0.3, np.float32), "b_dec_O": np.zeros(32, np.float32)}
  params["b_enc_F"][-5:] = -1e3
  model = Dictionary(Wiring((32,)), 96)
  scores = recovery(model, params, source, 5)
  rows = [tuple(np.array(part) for part in source.truth(step)) for step in range(5)]
  tensor = lambda array: torch.from_numpy(np.array(array))
  ours = {"l0": evals.L0Calculator(), "dead": evals.DeadLatentsCalculator(96),
          "shrinkage": evals.ShrinkageCalculator(), "variance": evals.ExplainedVarianceCalculator(),
          "detectors": evals.ClassificationMetricsCalculator(tensor(params["W_dec_FO"]), tensor(direction_NM))}
  for x_BM, truth_BN in rows:
    y_BM, f_BF = (tensor(part) for part in model.apply({"params": params}, x_BM))
    ours["l0"].add_batch(f_BF)
    ours["dead"].add_batch(f_BF)
    ours["shrinkage"].add_batch(y_BM, tensor(x_BM))
    ours["variance"].add_batch(y_BM, tensor(x_BM))
    ours["detectors"].add_batch(f_BF, tensor(truth_BN))
  theirs = ours["detectors"].compute()
  expected = {
      "mcc": evals.mean_correlation_coefficient(tensor(params["W_dec_FO"]), tensor(direction_NM)),
      "uniqueness": evals.feature_uniqueness(tensor(params["W_dec_FO"]), tensor(direction_NM)),
      "l0": ours["l0"].compute(), "dead_fraction": ours["dead"].compute() / 96,
      "shrinkage": ours["shrinkage"].compute(), "explained_variance": ours["variance"].compute(),
      "precision": theirs.precision, "recall": theirs.recall, "f1": theirs.f1_score}
  for name, value in expected.items():
    assert scores[name] == pytest.approx(value, rel=1e-4), name
