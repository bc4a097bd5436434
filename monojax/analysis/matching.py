"""Which features of two dictionaries are alike: best matches both ways, pairs one to one, and features that split.

A *similarity* of two dictionaries, A and B, is a table with a row for each feature of A and a column for each of B, of
which each number says how alike two features are. There are several: the cosine of the features' directions, the
Pearson correlation of their activations on the same tokens, and the cosine of the activations where one of them fires.
Tables are computed some rows at a time, so that they take little memory however many features there are. Whatever can
be correlated can be matched by the same functions, such as neurons.

Letters: F features, of A in the rows and of B in the columns of a table; J rows of a table at a time; N rows of data; M
numbers of a row, such as neurons; O width written; P pairs of a feature of A and one of B.
"""

import collections.abc
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.analysis.codes import Codes
from monojax.linear import product

if typing.TYPE_CHECKING:
  import scipy.sparse

# (number of the first row, some rows of the table of shape (J, F of B)); NaN where a similarity is undefined.
Blocks = collections.abc.Iterable[tuple[int, np.ndarray]]
ONE_TO_ONE_LIMIT = 8192  # features; the assignment of more takes many minutes and gigabytes
_BLOCK_NUMBERS = 1 << 22  # of a table that are computed at a time
_EQUAL = 1e-9             # activations whose variance is below this part of their mean square do not vary


@dataclasses.dataclass(frozen=True)
class Matches:
  """For each feature of two dictionaries the one of the other dictionary that is most like it, and all that are alike.

  Attributes:
    best_a_F: int64, for each feature of A the number of its best match in B; -1 for a feature without one, which was
      left out or of which no similarity is defined.
    value_a_F: float64, how similar they are; NaN for features without a match.
    best_b_F, value_b_F: the same for each feature of B, whose match is in A.
    edges_P2: int64, the pairs (feature of A, feature of B) that are more alike than what `matched` was asked for.
    edge_value_P: float64, how similar they are.
  """
  best_a_F: np.ndarray
  value_a_F: np.ndarray
  best_b_F: np.ndarray
  value_b_F: np.ndarray
  edges_P2: np.ndarray
  edge_value_P: np.ndarray

  def figures(self, threshold: float) -> dict[str, float | int | None]:
    """Summaries of either side: `mean_a`, `median_a`, `shared_a`, `own_a`, and likewise for B.

    The mean of cosines is known as MMCS, mean max cosine similarity (arXiv 2309.08600). Shared features have a match
    that is at least as similar as the `threshold`, and own features have none; features that were left out are neither.
    A mean or median of no features is None.
    """
    found: dict[str, float | int | None] = {}
    for side, value_F in (("a", self.value_a_F), ("b", self.value_b_F)):
      value_F = value_F[np.isfinite(value_F)]
      some = len(value_F) > 0
      found |= {f"mean_{side}": float(value_F.mean()) if some else None,
                f"median_{side}": float(np.median(value_F)) if some else None,
                f"shared_{side}": int((value_F >= threshold).sum()), f"own_{side}": int((value_F < threshold).sum())}
    return found

  def mutual(self) -> np.ndarray:
    """(P, 2): the pairs of features that are each the other's best match, in the order of A."""
    a_P = np.flatnonzero(self.best_a_F >= 0)
    a_P = a_P[self.best_b_F[self.best_a_F[a_P]] == a_P]
    return np.stack([a_P, self.best_a_F[a_P]], axis=1)


def matched(blocks: Blocks, use_a_F: np.ndarray, use_b_F: np.ndarray, edges_above: float = np.inf) -> Matches:
  """The best matches of two dictionaries by a similarity.

  Args:
    blocks: the table of similarities, some rows at a time.
    use_a_F, use_b_F: bool, the features of either dictionary that take part. Others have no match and are none.
    edges_above: pairs that are more alike than this are listed, too.
  """
  n_a, n_b = len(use_a_F), len(use_b_F)
  best_a_F, value_a_F = np.full(n_a, -1), np.full(n_a, -np.inf)
  best_b_F, value_b_F = np.full(n_b, -1), np.full(n_b, -np.inf)
  edges: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
  values: list[np.ndarray] = [np.zeros(0)]
  for first, table_JF in blocks:
    used_JF = use_a_F[first:first + len(table_JF), None] & use_b_F[None] & np.isfinite(table_JF)
    table_JF = np.where(used_JF, table_JF, -np.inf).astype(np.float64)
    rows = slice(first, first + len(table_JF))
    best_J = table_JF.argmax(1)
    value_a_F[rows] = np.take_along_axis(table_JF, best_J[:, None], axis=1)[:, 0]
    best_a_F[rows] = np.where(value_a_F[rows] > -np.inf, best_J, -1)
    best_F = table_JF.argmax(0)
    value_F = np.take_along_axis(table_JF, best_F[None], axis=0)[0]
    better_F = value_F > value_b_F
    best_b_F[better_F], value_b_F[better_F] = best_F[better_F] + first, value_F[better_F]
    pairs_P2 = np.argwhere(table_JF > edges_above)
    values.append(table_JF[pairs_P2[:, 0], pairs_P2[:, 1]])
    edges.append(pairs_P2 + [[first, 0]])
  defined = lambda value_F: np.where(value_F > -np.inf, value_F, np.nan)
  return Matches(best_a_F, defined(value_a_F), best_b_F, defined(value_b_F), np.concatenate(edges),
                 np.concatenate(values))


def one_to_one(blocks: Blocks, use_a_F: np.ndarray, use_b_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of features, none of which is in two, chosen so that the sum of their similarities is largest.

  There are as many pairs as features on the side that has fewer (Hungarian algorithm). The whole table of those that
  take part is held in memory, and the time grows with its third power at worst: beyond `ONE_TO_ONE_LIMIT` features
  take the pairs `Matches.mutual`.

  Args:
    blocks, use_a_F, use_b_F: as for `matched`.

  Returns:
    (pairs_P2, value_P): the features of each pair, in the order of A, and how similar they are. Pairs of an undefined
    similarity are left out.
  """
  from scipy.optimize import linear_sum_assignment
  a_J, b_J = np.flatnonzero(use_a_F), np.flatnonzero(use_b_F)
  table_JF = np.concatenate([np.zeros((0, len(b_J)), np.float32)] + [
      part_JF[use_a_F[first:first + len(part_JF)]][:, b_J].astype(np.float32) for first, part_JF in blocks])
  lowest = -2.0  # below every cosine and correlation
  row_P, column_P = linear_sum_assignment(np.where(np.isfinite(table_JF), table_JF, lowest), maximize=True)
  value_P = table_JF[row_P, column_P].astype(np.float64)
  defined_P = np.isfinite(value_P)
  return np.stack([a_J[row_P], b_J[column_P]], axis=1)[defined_P], value_P[defined_P]


def _starts(n_a: int, n_b: int) -> tuple[range, int]:
  """(the numbers of the first rows of the blocks of a table, how many rows each has)."""
  n_rows = max(1, min(n_a, _BLOCK_NUMBERS // max(n_b, 1)))
  return range(0, n_a, n_rows), n_rows


def cosine_blocks(a_FO: np.ndarray, b_FO: np.ndarray) -> Blocks:
  """The cosines of the directions of two dictionaries that write the same sites; with a direction of zeros it is 0."""
  unit = lambda v: (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)).astype(np.float32)
  a_FO, b_OF = unit(a_FO), unit(b_FO).T
  starts, n = _starts(len(a_FO), b_OF.shape[1])
  for first in starts:
    yield first, a_FO[first:first + n] @ b_OF


def table_blocks(table_FF: np.ndarray) -> Blocks:
  """A table that is in memory, as one block."""
  yield 0, table_FF


def _matrix(codes: Codes, n_rows: int) -> "scipy.sparse.csr_array":
  """Activations as a sparse matrix (F, N) in float64."""
  from scipy import sparse
  return sparse.csr_array((codes.value_P.astype(np.float64), codes.row_P, codes.start_F),
                          shape=(len(codes.start_F) - 1, n_rows))


def _both(a: Codes, b: Codes) -> tuple[typing.Any, typing.Any]:
  """The activations of two dictionaries on the same rows as sparse matrices (F, N)."""
  n_rows = 1 + max(int(codes.row_P.max(initial=-1)) for codes in (a, b))
  return _matrix(a, n_rows), _matrix(b, n_rows)


def correlation_blocks(a: Codes, b: Codes) -> Blocks:
  """The Pearson correlations of activations on the same rows; NaN with a feature that never changes.

  The sums of products are products of sparse matrices: the work is that of pairs of features that fire on one row.

  Args:
    a, b: activations of the two dictionaries; their rows are the same tokens, and `n_rows` of both is how many count.
  """
  a_FN, b_FN = _both(a, b)
  mean_a_F, mean_b_F = (x_FN.sum(1) / a.n_rows for x_FN in (a_FN, b_FN))

  def spread(x_FN, mean_F):
    mean_square_F = (x_FN * x_FN).sum(1) / a.n_rows
    variance_F = mean_square_F - mean_F**2
    return np.sqrt(np.where(variance_F > _EQUAL * mean_square_F, variance_F, 0))
  spread_a_F, spread_b_F = spread(a_FN, mean_a_F), spread(b_FN, mean_b_F)
  b_NF = b_FN.T.tocsr()
  starts, n = _starts(a_FN.shape[0], b_FN.shape[0])
  for first in starts:
    rows = slice(first, first + n)
    covariance_JF = (a_FN[rows] @ b_NF).toarray() / a.n_rows - mean_a_F[rows, None] * mean_b_F[None]
    yield first, _ratio(covariance_JF, spread_a_F[rows, None] * spread_b_F[None])


def masked_cosine_blocks(a: Codes, b: Codes) -> Blocks:
  """The masked cosine similarities of two dictionaries on the same rows (Towards Monosemanticity, "Feature Splitting").

  The cosine of two features' activations is taken over the rows where the first fires, and again over those where the
  second fires; the larger of the two counts. It is 1 for a feature and one that agrees with it wherever that fires,
  even if the first also fires elsewhere: so the parts that a feature has split into are found. NaN with a feature that
  never fires.

  Args:
    a, b: as for `correlation_blocks`; activations below 0 count as 0.
  """
  a_FN, b_FN = _both(a, b)
  for x_FN in (a_FN, b_FN):
    x_FN.data = np.maximum(x_FN.data, 0)
  square_a_F, square_b_F = ((x_FN * x_FN).sum(1) for x_FN in (a_FN, b_FN))
  b_NF = b_FN.T.tocsr()
  fires = lambda x: type(x)(((x.data > 0).astype(np.float64), x.indices, x.indptr), shape=x.shape)
  fires_NF, square_NF = fires(b_NF), b_NF * b_NF
  starts, n = _starts(a_FN.shape[0], b_FN.shape[0])
  for first in starts:
    rows = slice(first, first + n)
    a_JN = a_FN[rows]
    cross_JF = (a_JN @ b_NF).toarray()
    where_a_JF = np.sqrt(square_a_F[rows, None] * (fires(a_JN) @ square_NF).toarray())
    where_b_JF = np.sqrt((a_JN * a_JN @ fires_NF).toarray() * square_b_F[None])
    smaller_JF = np.minimum(where_a_JF, where_b_JF)
    never_JF = (square_a_F[rows, None] == 0) | (square_b_F[None] == 0)
    # Where one is 0 the features never fire together.
    yield first, np.where(never_JF, np.nan, np.nan_to_num(_ratio(cross_JF, smaller_JF)))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a / b, NaN where b is 0."""
  return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)


@jax.jit
def _moments(a_NM: jax.Array, b_NM: jax.Array, middle_a_M: jax.Array, middle_b_M: jax.Array,
             counts_N: jax.Array) -> dict[str, jax.Array]:
  """Sums over the rows that count of the columns less a middle, of their squares and of their products."""
  weight_N1 = counts_N.astype(jnp.float32)[:, None]
  a_NM, b_NM = ((x_NM.astype(jnp.float32) - middle_M[None]) * weight_N1
                for x_NM, middle_M in ((a_NM, middle_a_M), (b_NM, middle_b_M)))
  return {"rows": weight_N1.sum(), "a_M": a_NM.sum(0), "b_M": b_NM.sum(0), "aa_M": jnp.square(a_NM).sum(0),
          "bb_M": jnp.square(b_NM).sum(0), "ab_MM": product(a_NM.T, b_NM, jnp.float32)}


def dense_correlation(batches: collections.abc.Iterable[tuple[typing.Any, typing.Any, typing.Any]]) -> np.ndarray:
  """The Pearson correlations, (M of a, M of b), of numbers that are not sparse, such as neurons; NaN for constants.

  One compiled accumulation in float32. The mean over the first batch is subtracted from all rows first, which changes
  no correlation and keeps the digits of numbers with a large mean. Memory is that of a few such tables.

  Args:
    batches: (a_NM, b_NM, counts_N): rows of either side, and which of them count.
  """
  total, middle_a_M, middle_b_M = None, None, None
  for a_NM, b_NM, counts_N in batches:
    if total is None:
      mean = lambda x_NM, counts_N=counts_N: jnp.nan_to_num(jnp.mean(x_NM, axis=0, where=counts_N[:, None]))
      middle_a_M, middle_b_M = mean(a_NM), mean(b_NM)
    sums = _moments(a_NM, b_NM, middle_a_M, middle_b_M, counts_N)
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  assert total is not None  # there is at least one batch
  sums = {name: np.asarray(value, np.float64) / float(total["rows"]) for name, value in total.items()}

  def spread(x, middle_M):
    """The standard deviation; 0 where it is no larger than what float32 rounds."""
    spread_M = np.sqrt(np.maximum(sums[f"{x}{x}_M"] - sums[f"{x}_M"]**2, 0))
    return np.where(spread_M > np.finfo(np.float32).eps * np.abs(middle_M), spread_M, 0)
  spread_a_M, spread_b_M = spread("a", middle_a_M), spread("b", middle_b_M)
  covariance_MM = sums["ab_MM"] - sums["a_M"][:, None] * sums["b_M"][None]
  return _ratio(covariance_MM, spread_a_M[:, None] * spread_b_M[None])
