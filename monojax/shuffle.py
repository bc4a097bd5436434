"""A keyed permutation of 0..n-1, evaluated at any index in constant memory."""

import numpy as np

_ROUNDS = 6


def _mix(x):
  """The finaliser of splitmix64: a bijection of 64-bit integers that scatters nearby inputs."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


class _Feistel:
  """A balanced Feistel network on the smallest even number of bits that holds a size, keyed."""

  def __init__(self, size, key):
    self.size = np.uint64(size)
    self._half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    self._mask = np.uint64((1 << int(self._half)) - 1)
    seed = np.uint64(0x9E3779B97F4A7C15)
    for part in key:
      seed = _mix(np.asarray(seed ^ np.asarray(part, np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    self._keys = [_mix(seed + np.uint64(r + 1) * np.uint64(0xD1B54A32D192ED03)) for r in range(_ROUNDS)]

  def _forward(self, x, keys):
    left, right = x >> self._half, x & self._mask
    for key in keys:
      left, right = right, left ^ (_mix(right + key) & self._mask)
    return (left << self._half) | right

  def _looked_up(self, index):
    """`_forward` of many indices: there are so few halves that a round's values are tabled first."""
    half, mask = int(self._half), int(self._mask)
    index = np.asarray(index, np.int64)
    left, right = index >> half, index & mask
    halves = np.arange(mask + 1, dtype=np.uint64)
    for key in self._keys:
      table = (_mix(halves + key) & self._mask).astype(np.int64)  # (halves,), or (permutations, halves)
      at = right if table.ndim == 1 else right + (np.arange(len(table)) << half)[:, None]
      left, right = right, left ^ table.reshape(-1).take(at)
    return ((left << half) | right).astype(np.uint64)

  def walk(self, index):
    """Steps until it lands below the size: from below it, that is a bijection."""
    n_permutations = max(np.size(key) for key in self._keys)
    by_row = n_permutations == 1 or (np.ndim(index) == 2 and np.shape(self._keys[0]) == (len(index), 1))
    if by_row and np.size(index) > 2 * n_permutations << int(self._half):
      result = self._looked_up(index)
    else:
      result = np.asarray(self._forward(np.asarray(index, np.uint64), self._keys))
    shape, result = result.shape, result.reshape(-1)
    outside = np.flatnonzero(result >= self.size)
    while len(outside):
      keys = [np.broadcast_to(key, shape).reshape(-1)[outside] if np.ndim(key) else key for key in self._keys]
      result[outside] = self._forward(result[outside], keys)
      outside = outside[result[outside] >= self.size]
    return result.reshape(shape).astype(np.int64)


def permute(index, size, *key):
  """The images of `index` under the permutation of 0..size-1 that `key` names.

  A balanced Feistel network on the smallest even number of bits that holds `size`, walked along its
  cycle until it lands below `size` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
  2002). Any index costs the same and nothing is stored, so an order over billions of rows is a pure
  function of (key, index).

  Args:
    index: integers in 0..size-1, any shape.
    size: how many there are to permute.
    *key: non-negative integers, for instance a seed and an epoch; or arrays that broadcast with
      `index`, which then has several permutations.

  Returns:
    int64 array of `index`'s shape, a bijection of 0..size-1.
  """
  with np.errstate(over="ignore"):
    return _Feistel(size, key).walk(index)
