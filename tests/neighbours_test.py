"""Neighbours of features against dense matrices: cosines, and NumPy's correlations of features and of neurons."""

import numpy as np
import pytest

from monojax.analysis import neighbours
from monojax.analysis.codes import Codes, collect
from monojax.analysis.neighbours import NeuronSums, firing_together, nearest_directions

N, F, M = 3000, 60, 14
DEAD = (3, 41)


def features_and_neurons(mean=0.0):
  """Sparse features that depend on one another and on neurons, two of which do not vary; features `DEAD` never fire."""
  rng = np.random.default_rng(0)
  x_NM = rng.normal(size=(N, M)) * rng.uniform(0.2, 3, M)
  f_NF = np.maximum(x_NM @ rng.normal(size=(M, F)) + rng.normal(size=(N, F)) - rng.uniform(1, 12, F), 0)
  f_NF[:, DEAD] = 0
  f_NF[:, 7] = np.where(np.arange(N) == 5, 2.0, 0)  # fires once
  x_NM[:, [2, 9]] = 0.1, 0
  return f_NF.astype(np.float32), (x_NM + mean).astype(np.float32)


def codes_of(f_NF, n_rows=None):
  feature_P, row_P = np.nonzero(f_NF.T)
  start_F = np.concatenate([[0], np.cumsum((f_NF != 0).sum(0))])
  return Codes(n_rows or len(f_NF), start_F, row_P.astype(np.int32), f_NF[row_P, feature_P])


def most(similarity_FF, k, least):
  """The ids and values of the k largest in each row, except on the diagonal, with -1 and 0 where not above `least`."""
  similarity_FF = np.where(np.eye(len(similarity_FF), dtype=bool), -np.inf, similarity_FF)
  id_FK = np.argsort(-similarity_FF, axis=1)[:, :k]
  value_FK = np.take_along_axis(similarity_FF, id_FK, axis=1)
  return np.where(value_FK > least, id_FK, -1), np.where(value_FK > least, value_FK, 0)


def correlations(a_NF, b_NM):
  with np.errstate(invalid="ignore", divide="ignore"):
    both = np.corrcoef(a_NF.astype(np.float64), b_NM.astype(np.float64), rowvar=False)
  return np.nan_to_num(both[:a_NF.shape[1], a_NF.shape[1]:])


@pytest.fixture(params=["one block", "blocks"])
def in_blocks(request, monkeypatch):
  if request.param == "blocks":
    monkeypatch.setattr(neighbours, "_BLOCK_NUMBERS", 17 * F)


def test_nearest_directions(in_blocks):
  direction_FO = np.random.default_rng(1).normal(size=(F, 9)).astype(np.float32) * np.arange(1, F + 1)[:, None]
  direction_FO[DEAD[0]] = 0
  alive_F = ~np.isin(np.arange(F), DEAD)
  unit_FO = direction_FO / np.maximum(np.linalg.norm(direction_FO, axis=1, keepdims=True), 1e-9)
  ids, values = most(np.where(alive_F[None] & alive_F[:, None], unit_FO @ unit_FO.T, -np.inf), 5, -1.5)
  found_ids, found = nearest_directions(direction_FO, alive_F, 5)
  np.testing.assert_array_equal(found_ids, ids)
  np.testing.assert_allclose(found, values, atol=1e-6)
  assert found_ids.dtype == np.int32 and found.dtype == np.float32 and (found_ids[list(DEAD)] == -1).all()


def test_features_that_fire_together(in_blocks):
  f_NF, _ = features_and_neurons()
  ids, values = most(correlations(f_NF, f_NF), 10, 0)
  found_ids, found = firing_together(codes_of(f_NF), np.arange(N))
  np.testing.assert_array_equal(found_ids, ids)
  np.testing.assert_allclose(found, values, atol=1e-6)
  assert (found_ids[list(DEAD)] == -1).all() and not np.isin(found_ids, DEAD).any()


def test_only_rows_that_count_are_correlated():
  f_NF, _ = features_and_neurons()
  counted_N = np.arange(N) % 3 > 0
  f_NF[~counted_N] = 0
  ids, values = most(correlations(f_NF[counted_N], f_NF[counted_N]), 10, 0)
  found_ids, found = firing_together(codes_of(f_NF, counted_N.sum()), np.flatnonzero(counted_N))
  np.testing.assert_array_equal(found_ids, ids)
  np.testing.assert_allclose(found, values, atol=1e-6)


def test_where_it_would_take_long_a_part_of_the_rows_is_correlated(capsys):
  f_NF, _ = features_and_neurons()
  n_products = int(np.square((f_NF > 0).sum(1)).sum())
  _, found = firing_together(codes_of(f_NF), np.arange(N), most_products=n_products // 2)
  assert f"correlating features on {N * (n_products // 2) // n_products:,} of 3,000 tokens" in capsys.readouterr().out
  _, whole = firing_together(codes_of(f_NF), np.arange(N), most_products=n_products)
  assert capsys.readouterr().out == "" and 0 < np.abs(found - whole).max() < 0.3


def test_fewer_features_than_are_listed():
  ids, values = nearest_directions(np.eye(3, dtype=np.float32) + 1, np.array([True, True, False]))
  assert ids[:, 0].tolist() == [1, 0, -1] and (ids[:, 1:] == -1).all() and ids.shape == (3, 10)
  np.testing.assert_allclose(values[:2, 0], 5 / 6, rtol=1e-6)
  ids, values = firing_together(codes_of(np.zeros((5, 3), np.float32)), np.arange(5))
  assert (ids == -1).all() and (values == 0).all() and ids.shape == (3, 10)


@pytest.mark.parametrize("mean", (0.0, 3000.0))
def test_the_best_neuron(mean, in_blocks):
  """Rows of nothing but zeros, as where a position does not count, are left out; large means cost no digits."""
  f_NF, x_NM = features_and_neurons(mean)
  counts_N = np.arange(N) % 4 > 0
  f_NF[~counts_N], x_NM[~counts_N] = 0, 0
  neurons = NeuronSums(F, M)
  batches = [((f_NF[part], x_NM[part]), 7 if part.start == 2800 else 400)  # the last batch is filled up
             for part in (slice(first, first + 400) for first in range(0, 2801, 400))]
  used = 2807
  codes = collect(lambda batch: batch, batches, used, "test", watch=neurons.add)
  counted_N = counts_N & (np.arange(N) < used)
  assert neurons.n_rows == counted_N.sum()
  r_FM = correlations(f_NF[counted_N], x_NM[counted_N] - np.float32(mean))
  alive_F = f_NF[counted_N].any(0)
  best_F, correlation_F = neurons.best(codes)
  np.testing.assert_array_equal(best_F, np.where(alive_F, np.abs(r_FM).argmax(1), -1))
  expected_F = np.where(alive_F, r_FM[np.arange(F), best_F], 0)
  np.testing.assert_allclose(correlation_F, expected_F, atol=2e-4 if mean else 1e-5)
  assert (best_F[list(DEAD)] == -1).all() and (correlation_F < 0).any()


@pytest.mark.parametrize("every", [True, False])
def test_the_best_neuron_where_no_neuron_is_active_on_some_rows(every):
  """Features may fire there, by their biases; if all rows count, so do those on which nothing at all happens."""
  f_NF, x_NM = features_and_neurons()
  x_NM, still_N = np.maximum(x_NM, 0), np.arange(N) % 4 == 0
  x_NM[still_N] = 0
  f_NF[np.arange(N) % 8 == 0] = 0
  codes, neurons = codes_of(f_NF), NeuronSums(F, M, every)
  for part in (slice(first, first + 400) for first in range(0, N, 400)):
    row_P, feature_P = np.nonzero(f_NF[part])
    neurons.add(row_P, feature_P, f_NF[part][row_P, feature_P], x_NM[part])
  counts_N = np.full(N, True) if every else f_NF.any(1) | x_NM.any(1)
  r_FM = correlations(f_NF[counts_N], x_NM[counts_N])
  best_F, correlation_F = neurons.best(codes)
  alive_F = f_NF.any(0)
  np.testing.assert_allclose(correlation_F, np.where(alive_F, r_FM[np.arange(F), best_F], 0), atol=1e-5)
  np.testing.assert_allclose(np.abs(correlation_F[alive_F]), np.abs(r_FM[alive_F]).max(1), atol=1e-5)


def test_sums_and_parts_of_codes():
  f_NF, _ = features_and_neurons()
  sum_F, square_F = codes_of(f_NF).sums()
  np.testing.assert_allclose(sum_F, f_NF.sum(0, dtype=np.float64), rtol=1e-6)
  np.testing.assert_allclose(square_F, np.square(f_NF.astype(np.float64)).sum(0), rtol=1e-6)
  assert not any(values.any() for values in codes_of(f_NF[:, list(DEAD)]).sums())
  rows_N = np.arange(N) % 7 == 2
  for part, expected in ((codes_of(f_NF).on_rows(rows_N), codes_of(f_NF[rows_N])),
                         (codes_of(f_NF).part(1, 5), codes_of(f_NF[:, 1:5]))):
    for name in ("n_rows", "start_F", "row_P", "value_P"):
      np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
