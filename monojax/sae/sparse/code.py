"""A batch's features, dense or sparse, and what is computed from them in either form.

A *dense* code is the array `f_BF` of all features of all rows; beside it, `places` is None. A *sparse* code holds only
the entries that fire: `f_VK`, with `Places` that say which row and which feature each entry belongs to. What a recipe's
loss needs of a code is written here once for both, with exact gradients. Those of the sparse form touch only what the
code names, so that of a step's five dense matrix products only the encoder's remains.

A worked example: three rows, F = 6 features, K = 2 places in a row of the code. The dense code

  row 0:  feature 1 -> .5, feature 4 -> .2
  row 1:  feature 0 -> .3, feature 2 -> .1, feature 5 -> .9
  row 2:  nothing

has one row with more than two entries, which goes on in an extra row at the end:

  index_VK = [[1, 4],    f_VK = [[.5, .2],    row_V = [0, 1, 2, 1]
              [0, 2],            [.3, .1],
              [6, 6],            [ 0,  0],    (6 = F stands for an empty place)
              [5, 6]]            [.9,  0]]    extra_row = [1]: code row 3 goes on with row 1 of the batch

`decode` then gathers, for each of the four rows of the code, the two directions that it names, weighs and sums them,
and adds code row 3 to row 1 of the batch. For the gradient by the directions every feature needs the sum over the
entries that name it: `scattered_rows` sorts the entries by feature and cuts each feature's into blocks of at most
`_BLOCK` entries (16; in this example no feature has more than one), sums each block, and adds only these sums to the
rows of the result.

Letters: B batch, M width read, O width written, F features, K places in a row of a sparse code, V its rows, E those
of them beyond the batch's own, G groups of features, N blocks of J entries, P rows or blocks taken at a time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

from monojax.linear import matmul

# The pre-activation of an empty place: no non-linearity fires on it or learns from it.
SILENT = -1e30
# Entries of one feature that are summed together.
_BLOCK = 16
# Features times entries that one sort has 32-bit numbers for.
_SORTED = 2**32
# How many bytes of sums are made at a time: what a core of a CPU has as cache, and on an accelerator enough to fill it.
_CPU_BYTES, _ACCELERATOR_BYTES = 2**20, 2**28


@flax.struct.dataclass
class Places:
  """What the entries of a sparse code stand for.

  Attributes:
    index_VK: the feature of each entry, F where the place is empty. The batch's B rows come first, in order. Then come
      extra rows, on which rows of the batch with more than K features go on; the last of these may be unused.
    extra_row: for each extra row the row of the batch that it belongs to, rising.
  """
  index_VK: jax.Array
  extra_row: jax.Array

  @property
  def n_rows(self) -> int:
    """B, the rows of the batch."""
    return self.index_VK.shape[0] - self.extra_row.shape[0]

  def n_extra(self, n_features: int) -> jax.Array:
    """How many of the extra rows are in use: up to the last one with an entry."""
    needed_E = jnp.any(self.index_VK[self.n_rows:] < n_features, axis=1)
    return jnp.max(jnp.where(needed_E, jnp.arange(1, len(needed_E) + 1), 0), initial=0)

  @property
  def row_V(self) -> jax.Array:
    """For each row of the code the row of the batch that it belongs to."""
    return jnp.concatenate([jnp.arange(self.n_rows, dtype=jnp.int32), self.extra_row])


def at(v_F: jax.Array, places: Places | None) -> jax.Array:
  """One value for each feature, laid out beside a code: (1, F) for a dense one, (V, K) for a sparse one."""
  return v_F[None] if places is None else v_F.at[places.index_VK].get(mode="clip")


def decode(f: jax.Array, places: Places | None, W_FO: jax.Array, dtype: Any,
           ends: Sequence[int] | None = None) -> tuple[jax.Array, ...]:
  """The sum over features of value times direction, float32, for each of some groups of features.

  Args:
    f, places: a code.
    W_FO: directions.
    dtype: of a dense code's matrix product.
    ends: for each group the feature before which it ends, the last of them F; by default one group of all features.

  Returns:
    A tuple of arrays of shape (B, O), one a group.
  """
  ends = tuple(ends or (W_FO.shape[0],))
  if places is not None:
    return sparse_decode(f, places, W_FO, ends)
  # The gradient of a split is a concatenation, which XLA's CPU backend leaves between the products. That of slices is a
  # sum of padded products, which jax 0.10 there puts into one kernel with the optimiser's next step; it crashes.
  parts = zip((0, *ends), ends, jnp.split(W_FO, ends[:-1]), strict=False)
  return tuple(matmul(f[:, first:last], W_part, dtype) for first, last, W_part in parts)


def entries(h_BF: jax.Array, places: Places) -> jax.Array:
  """The entries of h that places name, shape (V, K); `SILENT` where a place is empty."""
  h_VK = h_BF.at[places.row_V[:, None], places.index_VK].get(mode="clip")
  return jnp.where(places.index_VK < h_BF.shape[1], h_VK, SILENT)


def count_F(mask: jax.Array, places: Places | None, n_features: int) -> jax.Array:
  """For each feature the number of rows in which `mask`, beside a code, is set; int32."""
  if places is None:
    return jnp.sum(mask, axis=0, dtype=jnp.int32)
  return jnp.zeros((n_features,), jnp.int32).at[places.index_VK].add(mask.astype(jnp.int32), mode="drop")


def row_sums(v: jax.Array, places: Places | None) -> jax.Array:
  """The sum of values beside a code over each row of the batch, shape (B,)."""
  if places is None:
    return v.sum(1)
  return jnp.zeros((places.n_rows,), v.dtype).at[places.row_V].add(v.sum(1))


def leading(f: jax.Array, places: Places | None, n: int) -> jax.Array:
  """The first n features of a code, dense: shape (B, n)."""
  if places is None:
    return f[:, :n]
  return jnp.zeros((places.n_rows, n), f.dtype).at[places.row_V[:, None], places.index_VK].add(f, mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def sparse_decode(f_VK: jax.Array, places: Places, W_FO: jax.Array, ends: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """`decode` of a sparse code: the sum over each row's entries of f W[feature]; f is 0 in empty places."""
  sums = []
  for first, last in zip((0, *ends), ends, strict=False):
    inside = (places.index_VK >= first) & (places.index_VK < last)
    f_part_VK = f_VK if len(ends) == 1 else jnp.where(inside, f_VK, 0.0)
    sums.append(_summed(f_part_VK, places, W_FO))
  return tuple(sums)


def _decode_forward(f_VK, places, W_FO, ends):
  return sparse_decode(f_VK, places, W_FO, ends), (f_VK, places, W_FO)


def _decode_backward(ends, residuals, gradients):
  f_VK, places, W_FO = residuals
  group_VK = jnp.searchsorted(jnp.asarray(ends[:-1], jnp.int32), places.index_VK, side="right").astype(jnp.int32)
  g_GBO = jnp.stack(gradients)
  dots_VK = gathered_dots(g_GBO, group_VK, places, W_FO)
  row_VK = group_VK * places.n_rows + places.row_V[:, None]
  return dots_VK, None, scattered_rows(f_VK, row_VK, places, g_GBO.reshape(-1, W_FO.shape[1]), W_FO.shape[0])


sparse_decode.defvjp(_decode_forward, _decode_backward)


@jax.custom_vjp
def pre_activations_at(x_BM: jax.Array, W_MF: jax.Array, bias_F: jax.Array, h_VK: jax.Array,
                       places: Places) -> jax.Array:
  """h_VK, given that these are the `entries` of x W + bias: for its gradient by W and by the bias.

  The gradient touches those entries alone. x is held constant.
  """
  return h_VK


def _at_forward(x_BM, W_MF, bias_F, h_VK, places):
  return h_VK, (x_BM, bias_F, places)


def _at_backward(residuals, g_VK):
  x_BM, bias_F, places = residuals
  row_VK = jnp.broadcast_to(places.row_V[:, None], g_VK.shape)
  g_MF = scattered_rows(g_VK, row_VK, places, x_BM, bias_F.shape[0]).T
  g_F = jnp.zeros_like(bias_F).at[places.index_VK].add(g_VK, mode="drop")
  return jnp.zeros_like(x_BM), g_MF, g_F, None, None


pre_activations_at.defvjp(_at_forward, _at_backward)


def _summed(f_VK, places, W_FO):
  """sum_k f[v, k] W[index[v, k]] of each row of the batch, with those of its extra rows."""
  n = places.n_rows
  sum_BO = _gathered_sum(f_VK[:n], places.index_VK[:n], W_FO)
  if not len(places.extra_row):
    return sum_BO

  def add(_, part, sum_BO):
    sum_PO = _gathered_sum(part(f_VK[n:]), part(places.index_VK[n:]), W_FO)
    return sum_BO.at[part(places.extra_row)].add(sum_PO, indices_are_sorted=True)
  return _by_parts(add, sum_BO, places.n_extra(len(W_FO)), _divisor(len(places.extra_row), 256))


def _by_parts(step: Callable[..., jax.Array], carry: jax.Array, n_used: Any, n_together: int) -> jax.Array:
  """`step(first row, function that slices a part of the rows, carry)` for parts of rows, up to the last used one."""
  def one(i, carry):
    first = i * n_together
    return step(first, lambda a: jax.lax.dynamic_slice_in_dim(a, first, n_together), carry)
  return jax.lax.fori_loop(0, -(-n_used // n_together), one, carry)


def _divisor(n, at_most):
  """The largest power of two that divides n and is `at_most` or less: parts of n rows that leave none over."""
  return math.gcd(n, 2 ** int(math.log2(max(at_most, 1))))


def _gathered_sum(f_BK, index_BK, W_FO, n_together=8):
  """sum_k f[b, k] W[index[b, k]]: a few columns at a time, as one expression, which XLA fuses into one loop."""
  n_rows, n_columns = f_BK.shape
  n_together = min(n_together, n_columns)
  n_loops = n_columns // n_together

  def add(total_BO, f_BJ, index_BJ):
    terms = (f_BJ[:, j, None] * _rows(W_FO, index_BJ[:, j]) for j in range(f_BJ.shape[1]))
    return total_BO + functools.reduce(jnp.add, terms)

  def loop(i, total_BO):
    part = lambda a_BK: jax.lax.dynamic_slice(a_BK, (0, i * n_together), (n_rows, n_together))
    return add(total_BO, part(f_BK), part(index_BK))
  total_BO = jax.lax.fori_loop(0, n_loops, loop, jnp.zeros((n_rows, W_FO.shape[1])))
  rest = slice(n_loops * n_together, n_columns)
  return add(total_BO, f_BK[:, rest], index_BK[:, rest]) if n_columns % n_together else total_BO


def gathered_dots(g_GBO: jax.Array, group_VK: jax.Array, places: Places, W_FO: jax.Array) -> jax.Array:
  """For each entry of a code the scalar product g[group, row] . W[feature], shape (V, K)."""
  n_columns, width = places.index_VK.shape[1], W_FO.shape[1]
  lanes = 16 if width % 16 == 0 else 1

  def of_row(row):
    g_GO, index_K, group_K = row
    W_KO = _rows(W_FO, index_K)
    if len(g_GBO) == 1:
      return jnp.matmul(W_KO, g_GO[0], precision=jax.lax.Precision.HIGHEST)
    # Sums of lanes, then over the lanes: XLA's CPU backend vectorises no other sum along the last axis.
    return (W_KO * g_GO[group_K]).reshape(n_columns, width // lanes, lanes).sum(1).sum(1)

  def dots(first, part, dots_VK):
    found_PK = jax.vmap(of_row)((g_BGO[part(places.row_V)], part(places.index_VK), part(group_VK)))
    return jax.lax.dynamic_update_slice_in_dim(dots_VK, found_PK, first, 0)
  g_BGO = g_GBO.swapaxes(0, 1)
  n_together = _bytes_at_once() // (n_columns * width)  # a core of a CPU gathers 4 MB at a time best
  n_used = places.n_rows + places.n_extra(len(W_FO))
  return _by_parts(dots, jnp.zeros(places.index_VK.shape), n_used, _divisor(len(places.index_VK), n_together))


def scattered_rows(f_VK: jax.Array, row_VK: jax.Array, places: Places, table_RO: jax.Array,
                   n_features: int) -> jax.Array:
  """For each feature the sum of f table[row] over the entries that name it, shape (F, O).

  Entries are sorted by feature and summed in blocks of one feature each, so that only a block's sum is
  scattered. Empty places, which are sorted to the end, cost nothing.
  """
  n_rows, n_columns = f_VK.shape
  total_FO = jnp.zeros((n_features, table_RO.shape[1]))
  n_parts = -(-f_VK.size * (n_features + 1) // _SORTED)

  def split(a_VK, empty):
    padded_VK = jnp.pad(a_VK, ((0, -n_rows % n_parts), (0, 0)), constant_values=empty)
    return padded_VK.reshape(n_parts, -1, n_columns)
  # Sorted outside of the loop, where XLA sees that both gradients sort the same.
  blocks = jax.vmap(lambda index_VK: feature_blocks(index_VK, n_features))(split(places.index_VK, n_features))

  def add(total_FO: jax.Array, part: Any) -> tuple[jax.Array, None]:
    blocks, f_part_VK, row_part_VK = part
    return _add_scattered(total_FO, blocks, f_part_VK, row_part_VK, table_RO), None
  return jax.lax.scan(add, total_FO, (blocks, split(f_VK, 0), split(row_VK, 0)))[0]


def _add_scattered(total_FO, blocks, f_VK, row_VK, table_RO):
  """The sums so far with those of one part's `feature_blocks`."""
  feature_N, entry_NJ, n_used = blocks
  n_blocks, (n_features, width) = len(feature_N), total_FO.shape
  n_together = min(max(1, 2 * _bytes_at_once() // (4 * width)), n_blocks)
  feature_N = jnp.pad(feature_N, (0, -n_blocks % n_together), constant_values=n_features)
  entry_NJ = jnp.pad(entry_NJ, ((0, -n_blocks % n_together), (0, 0)), constant_values=-1)
  known_NJ = jnp.maximum(entry_NJ, 0)
  value_NJ = jnp.where(entry_NJ >= 0, _rows(f_VK.reshape(-1), known_NJ), 0.0)
  row_NJ = _rows(row_VK.reshape(-1), known_NJ)

  def add(_, part, total_FO):
    value_PJ, row_PJ = part(value_NJ), part(row_NJ)
    terms = (value_PJ[:, j, None] * _rows(table_RO, row_PJ[:, j]) for j in range(_BLOCK))
    return total_FO.at[part(feature_N)].add(functools.reduce(jnp.add, terms), indices_are_sorted=True, mode="drop")
  return _by_parts(add, total_FO, n_used, n_together)


def feature_blocks(index_VK: jax.Array, n_features: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The places of a code by feature, in blocks of at most `_BLOCK` places of one feature.

  With blocks of two places, index_VK = [[1, 4], [1, 2], [1, 6]] of six features gives: feature 1 is named at the
  positions 0, 2 and 4 of the flattened array, which take two blocks, features 2 and 4 take one each, and 6 is empty.

    feature_N = [1, 1, 2, 4, 6, ...]    entry_NJ = [[0, 2], [4, -1], [3, -1], [1, -1], [-1, -1], ...]    n_used = 4

  Returns:
    feature_N: each block's feature; F for blocks that are not used, which come last.
    entry_NJ: the places in it, as positions in the flattened code; -1 where there is none.
    n_used: how many blocks are used.
  """
  n_entries = index_VK.size
  feature_E, entry_E = _sorted_by_feature(index_VK.reshape(-1), n_features)
  first_F = jnp.searchsorted(feature_E, jnp.arange(n_features + 1)).astype(jnp.int32)
  blocks_F = -(-(first_F[1:] - first_F[:-1]) // _BLOCK)
  last_F = jnp.cumsum(blocks_F)
  number_N = jnp.arange(n_entries // _BLOCK + min(n_features, n_entries), dtype=jnp.int32)
  feature_N = jnp.searchsorted(last_F, number_N, side="right").astype(jnp.int32)
  of_F = lambda v_F: v_F.at[feature_N].get(mode="clip")
  place_N = of_F(first_F[:-1]) + (number_N - of_F(last_F - blocks_F)) * _BLOCK
  place_NJ = place_N[:, None] + jnp.arange(_BLOCK)[None]
  holds_NJ = (place_NJ < of_F(first_F[1:])[:, None]) & (feature_N < n_features)[:, None]
  entry_NJ = jnp.where(holds_NJ, entry_E.at[place_NJ].get(mode="clip"), -1)
  return feature_N, entry_NJ, last_F[-1]


def _sorted_by_feature(feature_E, n_features):
  """(features rising, their positions). One number holds both: six times as fast on a CPU as to sort pairs."""
  n_entries = len(feature_E)
  packed_E = jax.lax.sort(feature_E.astype(jnp.uint32) * jnp.uint32(n_entries)
                          + jnp.arange(n_entries, dtype=jnp.uint32))
  return (packed_E // n_entries).astype(jnp.int32), (packed_E % n_entries).astype(jnp.int32)


def _rows(table, index):
  """table[index], with the last row for a number beyond it."""
  return table.at[index].get(mode="clip")


def _bytes_at_once():
  return _CPU_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
