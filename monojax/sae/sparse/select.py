"""Which entries of a batch's pre-activations a sparse code holds: all that a mask names, or the largest.

`places_of` turns a mask into the `Places` of a sparse code. A row's mask is packed into 32-bit words, so that finding
its entries reads each bit once. A worked example, one row of F = 64 features, hence N = 2 words: features 3, 10 and 40
are set. Bit i of word n stands for feature i N + n, so that feature 3 is bit 1 of word 1 (1 * 2 + 1), feature 10 is
bit 5 of word 0, and feature 40 is bit 20 of word 0:

  word_BN = [[bits 5 and 20, bit 1]]    end_BN = [[2, 3]]    (entries of the row up to the end of each word)

Which feature takes place number 2 of this row, counted from 0? The first word whose end is beyond 2 is word 1; before
it there are 2 entries, so that the one looked for has rank 0 among the word's set bits; the set bit of rank 0 is bit 1;
and bit 1 of word 1 is feature 3. Every place finds its feature in this way, independently of all others. (The order of
a row's features is that of the words: 10, 40, 3.)

Letters: B batch, F features, K places in a row of a sparse code, V its rows, E those of them beyond the batch's own,
N words or blocks of 32 features, J candidates.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from monojax.sae.sparse.code import Places

SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # the smallest normal float32, which every entry above 0 reaches


def places_of(mask_BF: jax.Array, slots: int) -> tuple[Places, jax.Array]:
  """Where a mask is set, as `Places`, if that is at about `slots` entries a row or fewer on average.

  Rows differ in how many features fire: with room for just the average in each, hardly a batch would fit. So each row
  gets half as many places, at most 64, and rows with more entries go on in as many extra rows as they need.

  Args:
    mask_BF: (B, F), bool.
    slots: entries a row, on average over the batch, that there is room for.

  Returns:
    places: `Places` with room for `slots` B entries; in each row the last places may stay empty.
    fits: whether none is left out.
  """
  n_kept = min(-(-slots // 2), 64)
  return _places(mask_BF, n_kept, (-(-slots // n_kept) - 1) * len(mask_BF))


def _places(mask_BF, n_kept, n_extra):
  """(`Places` of B + `n_extra` rows with `n_kept` places each, whether they hold all entries)."""
  n_rows, n_features = mask_BF.shape
  n_words = -(-n_features // 32)
  end_BN, word_BN = _packed(mask_BF, n_words)
  total_B = end_BN[:, -1]
  n_extra_B = jnp.maximum(-(-total_B // n_kept) - 1, 0)
  end_B = jnp.cumsum(n_extra_B)
  number_E = jnp.arange(n_extra, dtype=jnp.int32)
  row_E = jnp.minimum(jnp.searchsorted(end_B, number_E, side="right"), n_rows - 1).astype(jnp.int32)
  part_E = jnp.where(number_E < end_B[-1], 1 + number_E - (end_B - n_extra_B)[row_E], n_features)
  places = Places(jnp.zeros((n_rows + n_extra, n_kept), jnp.int32), row_E)
  part_V = jnp.concatenate([jnp.zeros((n_rows,), jnp.int32), part_E])
  # Which of its row's entries each place takes, the word with it, and its rank among the word's.
  row_V1 = places.row_V[:, None]
  number_VK = part_V[:, None] * n_kept + jnp.arange(n_kept, dtype=jnp.int32)[None]
  n_VK = jnp.minimum(_first_beyond(end_BN, row_V1, number_VK), n_words - 1)
  word_VK = word_BN[row_V1, n_VK]
  rank_VK = number_VK - (end_BN[row_V1, n_VK] - _bits_set(word_VK))
  index_VK = _bit_of_rank(word_VK, rank_VK) * n_words + n_VK
  return Places(jnp.where(number_VK < total_B[row_V1], index_VK, n_features), row_E), end_B[-1] <= n_extra


def _packed(mask_BF, n_words):
  """(entries of each row up to the end of each word, words): bit i of word n stands for feature i N + n."""
  n_rows, n_features = mask_BF.shape
  mask_B32N = jnp.pad(mask_BF, ((0, 0), (0, 32 * n_words - n_features))).reshape(n_rows, 32, n_words)
  bit_32 = jnp.arange(32, dtype=jnp.uint32)
  word_BN = jnp.sum(mask_B32N.astype(jnp.uint32) << bit_32[None, :, None], axis=1, dtype=jnp.uint32)
  return jnp.cumsum(_bits_set(word_BN), axis=1), word_BN


def _bits_set(word):
  return jax.lax.population_count(word).astype(jnp.int32)


def _first_beyond(end_BN, row, number):
  """The first word of a row whose end is beyond a number, by bisection; N if there is none."""
  n_words = end_BN.shape[1]
  n = jnp.zeros_like(number)
  for i in reversed(range(n_words.bit_length())):
    further = n + 2**i
    n = jnp.where((further <= n_words) & (end_BN[row, jnp.minimum(further, n_words) - 1] <= number), further, n)
  return n


def _bit_of_rank(word, rank):
  """The position of the set bit that has `rank` set bits below it, by bisection of the word."""
  place = jnp.zeros_like(rank)
  for half in (16, 8, 4, 2, 1):
    low = word & jnp.uint32(2**half - 1)
    below = _bits_set(low)
    upper = rank >= below
    word, rank = jnp.where(upper, word >> half, low), jnp.where(upper, rank - below, rank)
    place = place + jnp.where(upper, half, 0)
  return place


def top_k_above_0(h_BF: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The k largest entries above 0 of each row, from large to small, looked for among the few that can be.

  Of the maxima of blocks of 32 features, the k-th largest is a level that k entries reach, and few more. Only those
  that do are sorted. Floats above 0 are ordered as the integers that their bits are, and integers have no NaN, which
  makes maxima cheap.

  Returns:
    value_BK, index_BK: as of `lax.top_k`, except that what is not above 0 stands for nothing.
    found: whether no row has too many entries above its level. If one has, the values are not right.
  """
  n_rows, n_features = h_BF.shape
  if n_features < 4 * 32 * k or n_features % 32:
    return *top_k(h_BF, k), jnp.array(True)
  bits_BF = jax.lax.bitcast_convert_type(h_BF, jnp.int32)
  maxima_NB = jnp.maximum(bits_BF.reshape(n_rows, 32, -1).max(1), 1).T

  def closer(_, bounds):
    low_B, high_B = bounds  # k maxima or more reach `low`
    middle_B = low_B + (high_B - low_B) // 2
    enough_B = jnp.sum(maxima_NB >= middle_B[None], axis=0, dtype=jnp.int32) >= k
    return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)
  level_B, _ = jax.lax.fori_loop(0, 16, closer, (maxima_NB.min(0), maxima_NB.max(0)))
  places, found = _places(bits_BF >= level_B[:, None], 2 * k + 16, 0)
  h_BJ = h_BF.at[places.row_V[:, None], places.index_VK].get(mode="clip")
  value_BK, place_BK = _top_k(jnp.where(places.index_VK < n_features, h_BJ, -jnp.inf), k)
  return value_BK, jnp.take_along_axis(places.index_VK, place_BK, axis=1), found


def top_k(h_BF: jax.Array, k: int, mesh: Mesh | None = None) -> tuple[jax.Array, jax.Array]:
  """The k largest of each row, from large to small: (values_BK, index_BK), exactly.

  In which order equal entries come, and which of them are left out at the end, is not defined.

  On a mesh each device finds the k largest of its own features, and only those are compared: no device ever holds
  all features of a row.
  """
  n_rows, n_features = h_BF.shape
  n_shards = mesh.shape["model"] if mesh else 1
  if mesh is None or n_shards == 1 or k >= n_features // n_shards:
    return _largest(h_BF, k)
  if n_features % n_shards or n_rows % mesh.shape["data"]:
    return _largest(h_BF, k)
  of_features = P("data", "model")
  value_BJ, index_BJ = jax.shard_map(lambda h_bf: _largest(h_bf, k), mesh=mesh, in_specs=of_features,
                                     out_specs=(of_features, of_features))(h_BF)
  index_BJ = index_BJ + n_features // n_shards * (jnp.arange(n_shards * k, dtype=jnp.int32) // k)[None]
  value_BK, place_BK = _top_k(value_BJ, k)
  return value_BK, jnp.take_along_axis(index_BJ, place_BK, axis=1)


def _largest(h_BF, k, block=16):
  """`lax.top_k`: the k blocks of features with the largest maxima hold the k largest entries."""
  n_rows, n_features = h_BF.shape
  if n_features % block or 2 * k * block > n_features:
    return _top_k(h_BF, k)
  h_BJL = h_BF.reshape(n_rows, n_features // block, block)
  _, block_BK = _top_k(h_BJL.max(2), k)
  candidates_BKL = jnp.take_along_axis(h_BJL, block_BK[:, :, None], axis=1)
  value_BK, place_BK = _top_k(candidates_BKL.reshape(n_rows, k * block), k)
  return value_BK, block * jnp.take_along_axis(block_BK, place_BK // block, axis=1) + place_BK % block


def _top_k(h_BF, k):
  """`lax.top_k` as XLA's CPU backend does not turn it into a whole sort: with no slice merged into it."""
  return tuple(jax.lax.optimization_barrier(part) for part in jax.lax.top_k(h_BF, k))


def cut_at(h: jax.Array, n: int) -> jax.Array:
  """A number above 0 that exactly n entries reach: fewer where fewer are above 0, more only for ties at the cut.

  It is searched for between 0 and the largest entry, each step counting the entries that reach a number in between.
  Two of three steps aim at where the count should be n if counts fell exponentially from one end to the other; the
  third halves the floats in between, in case they do not. A step is one count, whatever the sharding.
  """
  bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32)  # floats above 0 are ordered as their bits are
  number = lambda b: jax.lax.bitcast_convert_type(b, jnp.float32)
  count = lambda x: jnp.sum(jnp.sum(h >= x, axis=0, dtype=jnp.int32))

  def unfinished(state):  # at least n entries reach `low`, fewer than n `high`
    _, low, high, n_low, _ = state
    return (n_low > n) & (high - low > 1)

  def closer(state):
    i, low, high, n_low, n_high = state
    share = jnp.log(n_low / n) / jnp.log(n_low / jnp.maximum(n_high, 0.5))
    aimed = bits(number(low) + jnp.clip(share, 0.01, 0.99) * (number(high) - number(low)))
    middle = jnp.where(i % 3 == 2, low + (high - low) // 2, jnp.clip(aimed, low + 1, high - 1))
    found = count(number(middle))
    enough = found >= n
    return (i + 1, jnp.where(enough, middle, low), jnp.where(enough, high, middle),
            jnp.where(enough, found, n_low), jnp.where(enough, n_high, found))
  highest = bits(jnp.maximum(jnp.max(h), SMALLEST)) + 1
  start = jnp.int32(0), bits(jnp.float32(SMALLEST)), highest, count(SMALLEST), jnp.int32(0)
  return number(jax.lax.while_loop(unfinished, closer, start)[1])
