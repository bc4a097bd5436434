"""Neighbours of each feature: features of like direction, features that fire together, and the neuron most like it.

The last is the test of Towards Monosemanticity that features are not just neurons: there the neuron whose activation
correlates best with a feature's is more telling than the largest weight of its direction, since neurons differ in
scale.

Letters: F features, J of them at a time, K listed ones, N rows, R rows of a batch, P pairs of a row and a feature that
fires there, M neurons (the numbers that the dictionary reads), O width written.
"""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from monojax import metrics
from monojax.analysis.codes import Codes
from monojax.linear import product

N_LISTED = 10
# Products of two activations on one row that are summed at most; a busy core does 2.4e7 a second.
_MOST_PRODUCTS = 250_000_000
_BLOCK_NUMBERS = 1 << 22  # of a block of similarities: 32 MB in float64
_MOST_THREADS = 8         # each holds some blocks
_EQUAL = 1e-6             # numbers whose variance is below this part of their mean square do not vary
Listed = tuple[np.ndarray, np.ndarray]


def neighbour_columns(direction_FO: np.ndarray, codes: Codes, counted_N: np.ndarray,
                      neurons: "NeuronSums") -> dict[str, np.ndarray]:
  """The feature columns of neighbours; `monojax.analysis.columns` says what each is.

  Args:
    direction_FO: the features' directions (`SAE.direction_FO`).
    codes: their activations.
    counted_N: the numbers of the rows that count (`AnalysedText.counted_N`).
    neurons: the sums over the same rows.
  """
  nearest_FK, cosine_FK = nearest_directions(direction_FO, np.diff(codes.start_F) > 0)
  together_FK, correlation_FK = firing_together(codes, counted_N)
  best_F, best_correlation_F = neurons.best(codes)
  return {"nearest_ids_F10": nearest_FK, "nearest_cosines_F10": cosine_FK,
          "together_ids_F10": together_FK, "together_correlations_F10": correlation_FK,
          "best_neuron_F": best_F, "best_neuron_correlation_F": best_correlation_F}


def nearest_directions(direction_FO: np.ndarray, alive_F: np.ndarray, n_listed: int = N_LISTED) -> Listed:
  """For each feature the features whose directions have the largest cosines with its own, the largest first.

  Args:
    direction_FO: the features' directions.
    alive_F: bool, which features count. A dead one has no neighbours and is none: its direction says nothing.
    n_listed: K.

  Returns:
    (int32 ids_FK, float32 cosines_FK), -1 and 0 where there are not so many.
  """
  n_features = len(direction_FO)
  unit_FO = jnp.asarray(direction_FO / np.maximum(np.linalg.norm(direction_FO, axis=1, keepdims=True), 1e-30))
  block = max(1, _BLOCK_NUMBERS // n_features)
  parts = [_nearest(unit_FO[first:first + block], first, unit_FO, jnp.asarray(alive_F), min(n_listed, n_features))
           for first in range(0, n_features, block)]
  cosine_FK, id_FK = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
  return _listed(id_FK, cosine_FK, np.isfinite(cosine_FK) & alive_F[:, None], n_listed)


@functools.partial(jax.jit, static_argnames=("n_listed",))
def _nearest(unit_JO, first, unit_FO, alive_F, n_listed):
  """(their largest cosines with others that are alive, whose these are) for J features, the first number `first`."""
  cosine_JF = product(unit_JO, unit_FO.T, jnp.float32)
  place_J1 = first + jnp.arange(len(unit_JO))[:, None]
  others_JF = alive_F[None] & (jnp.arange(len(unit_FO))[None] != place_J1)
  return jax.lax.top_k(jnp.where(others_JF, cosine_JF, -jnp.inf), n_listed)


def firing_together(codes: Codes, counted_N: np.ndarray, n_listed: int = N_LISTED,
                    most_products: int = _MOST_PRODUCTS, seed: int = 0) -> Listed:
  """For each feature those whose activations correlate best with its own over all rows that count, the best first.

  Pearson's correlation is r = (E[f g] - E[f] E[g]) / (std(f) std(g)). Only pairs with r > 0 are listed: those that fire
  on the same rows more, or more strongly, than by chance. E[f g] is a product of sparse matrices, whose cost is the sum
  over rows of the square of the number of features that fire there. Where that is more than `most_products`, a random
  part of the rows is taken, with a message.

  Args:
    codes: the features' activations, none of them negative.
    counted_N: the numbers of the rows that count.
    n_listed: K.
    most_products: bounds the time.
    seed: of the random part.

  Returns:
    (int32 ids_FK, float32 correlations_FK), -1 and 0 where there are not so many.
  """
  n_rows = int(max(codes.row_P.max(initial=0), counted_N.max(initial=0))) + 1
  n_products = float(np.square(codes.fires_on(n_rows), dtype=np.float64).sum())
  if n_products > most_products:
    n_taken = max(1, int(len(counted_N) * most_products / n_products))
    print(f"correlating features on {n_taken:,} of {len(counted_N):,} tokens: with so many activations on each, more "
          "would take long", flush=True)
    counted_N = np.random.default_rng(seed).choice(counted_N, n_taken, replace=False)
    taken_N = np.zeros(n_rows, bool)
    taken_N[counted_N] = True
    codes, n_rows = codes.on_rows(taken_N), n_taken
  sum_F, square_F = codes.sums()
  mean_F, deviation_F = _moments(sum_F, square_F, len(counted_N))
  n_features = len(mean_F)
  active_FN = sparse.csr_matrix((codes.value_P, codes.row_P, codes.start_F), shape=(n_features, n_rows))
  active_NF = active_FN.T.tocsr().astype(np.float64)
  block = max(1, min(_BLOCK_NUMBERS // n_features, n_features // _MOST_THREADS))

  def best(first):
    part = slice(first, first + block)
    together_JF = (active_FN[part].astype(np.float64) @ active_NF).toarray() / len(counted_N)
    r_JF = (together_JF - mean_F[part, None] * mean_F[None]) / deviation_F[part, None] / deviation_F[None]
    r_JF[np.arange(len(r_JF)), first + np.arange(len(r_JF))] = 0
    id_JK = np.argpartition(-r_JF, min(n_listed, n_features) - 1, axis=1)[:, :n_listed]
    r_JK = np.take_along_axis(r_JF, id_JK, axis=1)
    order_JK = np.lexsort((id_JK, -r_JK), axis=1)
    return np.take_along_axis(id_JK, order_JK, axis=1), np.take_along_axis(r_JK, order_JK, axis=1)

  parts = []
  with (concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool,
        metrics.progress(n_features, "features", "correlations") as bar):
    for part in pool.map(best, range(0, n_features, block)):  # products of SciPy run beside one another
      parts.append(part)
      bar.update(len(part[0]))
  id_FK, r_FK = (np.concatenate(found) for found in zip(*parts, strict=True))
  return _listed(id_FK, r_FK, r_FK > 0, n_listed)


def _listed(id_FK: np.ndarray, value_FK: np.ndarray, there_FK: np.ndarray, n_listed: int) -> Listed:
  """Lists of `n_listed` entries in the types of columns, with -1 and 0 where nothing is there."""
  empty = ((0, 0), (0, n_listed - id_FK.shape[1]))
  return (np.pad(np.where(there_FK, id_FK, -1), empty, constant_values=-1).astype(np.int32),
          np.pad(np.where(there_FK, value_FK, 0), empty).astype(np.float32))


def _moments(sum_J: np.ndarray, square_J: np.ndarray, n_rows: int) -> Listed:
  """(means, standard deviations) from sums and sums of squares; infinite deviations for what does not vary."""
  mean_J, mean_square_J = sum_J / n_rows, square_J / n_rows
  variance_J = mean_square_J - mean_J**2
  varies_J = variance_J > _EQUAL * mean_square_J
  return mean_J, np.sqrt(np.where(varies_J, variance_J, np.inf))


class NeuronSums:
  """Sums over a text that give the correlation of each feature with each neuron, batch by batch.

  From the neurons of the first batch their mean is taken, and is subtracted from all. Otherwise float32 would lose the
  digits of neurons that vary little around a large mean. Memory: 4 F M bytes, as much as the encoder.
  """
  STATE = ("n_rows", "_near_M", "_sum_M", "_square_M", "_product_FM")

  def __init__(self, n_features: int, n_neurons: int, every: bool = False):
    """Has seen no rows yet; `every` says that all rows count, see `rows_that_count`."""
    self.n_rows, self._every = 0, every
    self._near_M: np.ndarray | None = None
    self._sum_M, self._square_M = np.zeros(n_neurons), np.zeros(n_neurons)
    self._product_FM = np.zeros((n_features, n_neurons), np.float32)

  def add(self, row_P: np.ndarray, feature_P: np.ndarray, value_P: np.ndarray, x_RM: jax.Array | np.ndarray) -> None:
    """Adds a batch.

    Args:
      row_P, feature_P, value_P: the rows, numbers and activations of the features that fire.
      x_RM: the neurons.
    """
    counts_R = rows_that_count(row_P, x_RM, self._every)
    if self._near_M is None:
      x_RM = np.asarray(x_RM)
      self._near_M = x_RM[counts_R].mean(0) if counts_R.any() else np.zeros(x_RM.shape[1], np.float32)
    apart_RM, sum_M, square_M = jax.device_get(_apart(x_RM, self._near_M, counts_R))
    self.n_rows += int(counts_R.sum())
    self._sum_M += sum_M
    self._square_M += square_M
    active_FR = sparse.csr_matrix((value_P, (feature_P, row_P)), shape=(len(self._product_FM), len(apart_RM)))
    self._product_FM += active_FR @ apart_RM

  def best(self, codes: Codes) -> Listed:
    """For each feature the neuron with which it correlates best, by the size of Pearson's correlation.

    Args:
      codes: all activations of the batches that were added.

    Returns:
      (int32 number_F of the neuron, float32 correlation_F with its sign), -1 and 0 for features that are dead.
    """
    n_rows = max(self.n_rows, 1)
    mean_F, deviation_F = _moments(*codes.sums(), n_rows)
    mean_M, deviation_M = _moments(self._sum_M, self._square_M, n_rows)
    block = max(1, _BLOCK_NUMBERS // len(mean_M))
    best_F, correlation_F = np.full(len(mean_F), -1, np.int32), np.zeros(len(mean_F), np.float32)
    for first in range(0, len(mean_F), block):
      part = slice(first, first + block)
      r_JM = ((self._product_FM[part] / n_rows - mean_F[part, None] * mean_M[None])
              / deviation_F[part, None] / deviation_M[None])
      best_J = np.abs(r_JM).argmax(axis=1)
      r_J = np.take_along_axis(r_JM, best_J[:, None], axis=1)[:, 0]
      best_F[part], correlation_F[part] = np.where(np.isfinite(deviation_F[part]), best_J, -1), r_J
    return best_F, correlation_F


def rows_that_count(row_P: np.ndarray, x_RM: jax.Array | np.ndarray, every: bool) -> np.ndarray:
  """Which rows of a batch count, bool (R,).

  Where positions of a context do not count, `make_encode` writes rows of zeros in which no feature fires, and these are
  left out; with them a row that counts, but in which nothing at all is active. Where all count (`every`), none is.

  Args:
    row_P: the rows in which features fire.
    x_RM: the neurons.
    every: whether all rows count.
  """
  if every:
    return np.ones(len(x_RM), bool)
  counts_R = np.array(_any_neuron(x_RM))
  counts_R[row_P] = True
  return counts_R


@jax.jit
def _any_neuron(x_RM):
  return (x_RM != 0).any(1)


@jax.jit
def _apart(x_RM, near_M, counts_R):
  """(neurons minus `near_M`, 0 on rows that do not count; sums and sums of squares over those that do)."""
  apart_RM = jnp.where(counts_R[:, None], x_RM - near_M[None], 0)
  return apart_RM, apart_RM.sum(0), jnp.square(apart_RM).sum(0)
