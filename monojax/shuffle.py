"""Random orders that need no memory: a permutation of 0..n-1 that can be computed at any index by itself."""

from typing import Any

import numpy as np

_ROUNDS = 6  # of the Feistel network


def _mix(x: Any) -> Any:
  """The finaliser of splitmix64: a bijection of 64-bit integers that scatters nearby inputs."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


class _Feistel:
  """A permutation, or several: a balanced Feistel network on the smallest even number of bits that holds a size.

  A network cuts the bits of an index into halves of equal length, left and right. Each round gives (right, left xor
  f(right + the round's key)), which is a bijection whatever f is.
  """

  def __init__(self, size: int, key: tuple[Any, ...]) -> None:
    self.size = np.uint64(size)
    self._half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    self._mask = np.uint64((1 << int(self._half)) - 1)
    seed = np.uint64(0x9E3779B97F4A7C15)
    for part in key:
      seed = _mix(np.asarray(seed ^ np.asarray(part, np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    self._keys = [_mix(seed + np.uint64(r + 1) * np.uint64(0xD1B54A32D192ED03)) for r in range(_ROUNDS)]

  def _forward(self, x: np.ndarray, keys: list[Any]) -> Any:
    left, right = x >> self._half, x & self._mask
    for key in keys:
      left, right = right, left ^ (_mix(right + key) & self._mask)
    return (left << self._half) | right

  def _looked_up(self, index: Any) -> np.ndarray:
    """The same as `_forward`, faster for many indices: it first makes a table of each round's f over all halves."""
    half, mask = int(self._half), int(self._mask)
    index = np.asarray(index, np.int64)
    left, right = index >> half, index & mask
    halves = np.arange(mask + 1, dtype=np.uint64)
    for key in self._keys:
      # The shape of the table is (halves,), or (permutations, halves).
      table = (_mix(halves + key) & self._mask).astype(np.int64)
      at = right if table.ndim == 1 else right + (np.arange(len(table)) << half)[:, None]
      left, right = right, left ^ table.reshape(-1).take(at)
    return ((left << half) | right).astype(np.uint64)

  def walk(self, index: Any) -> np.ndarray:
    """The images of indices below the size: the network is applied until its result is below the size, too.

    That is a bijection. For example, for a size of 5 the network permutes 0..15. If it takes 2 to 9 and 9 to 4, the
    image of 2 is 4: no other index below 5 can lead to 9, nor to 4.
    """
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


def permute(index: Any, size: int, *key: Any) -> np.ndarray:
  """The images of indices under one of many permutations of 0..size-1, which a key chooses.

  It is a balanced Feistel network on the smallest even number of bits that holds `size`, applied until its result is
  below `size` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Every index costs the same and
  nothing is stored, so that an order over billions of rows is a pure function of key and index.

  Args:
    index: integers in 0..size-1, of any shape.
    size: the number of items to permute.
    *key: integers that are not negative, for instance a seed and the number of an epoch; or arrays that broadcast with
      `index`, which then take part in several permutations.

  Returns:
    The images, an int64 array of the shape of `index`.
  """
  with np.errstate(over="ignore"):
    return _Feistel(size, key).walk(index)
