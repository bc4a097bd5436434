"""How much rows vary around their mean, and which share of that a reconstruction explains.

E[y^2] - E[y]^2 loses all digits where the mean is large: float32 holds 7 digits, so that of rows around 3,000 that vary
by 1 nothing is left. Here the first row that counts is subtracted from all, which is exact for rows close to it, then
the mean of what is left, and only then are squares summed.

A sum over many batches is made of one `Spread` for each, on the device, which the host joins in float64.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

_EPSILON = float(np.finfo(np.float32).eps)
Array = Any  # jax.Array or np.ndarray


@flax.struct.dataclass
class Spread:
  """The mean of some rows, and how much they vary around it.

  Attributes:
    n_rows: the number of rows, or the sum of their weights.
    near_O, beyond_O: the mean is their sum. Apart they keep digits that float32 has no room for in the sum.
    square: the squared distances of the rows from their mean, summed over rows and columns.
  """
  n_rows: Array
  near_O: Array
  beyond_O: Array
  square: Array

  @property
  def varies(self) -> Array:
    """Whether the rows differ by more than float32 rounds: equal ones do not, even where they were just scaled."""
    return self.square > self.n_rows * ((_EPSILON * self.near_O)**2).sum()


def spread(y_NO: Array, weight_N: Array | None = None) -> Spread:
  """The `Spread` of rows, in their dtype; of JAX arrays, also inside of `jax.jit`, or of NumPy arrays.

  Args:
    y_NO: rows, at least one.
    weight_N: how much each row counts, 0 or 1; by default all count.
  """
  weight_N1 = 1.0 if weight_N is None else weight_N[:, None]
  n_rows: Any = len(y_NO) if weight_N is None else weight_N.sum()
  # A row that does not count may be an attention sink, of a norm that would cost the others their digits.
  near_O = y_NO[0 if weight_N is None else weight_N.argmax()]
  apart_NO = y_NO - near_O[None]
  beyond_O = (weight_N1 * apart_NO).sum(0) / (n_rows if weight_N is None else n_rows.clip(1))
  return Spread(n_rows, near_O, beyond_O, (weight_N1 * (apart_NO - beyond_O[None])**2).sum())


def joined(a: Spread | None, b: Spread) -> Spread:
  """The `Spread`, in float64 on the host, of the rows of two; the first may be None for no rows."""
  b = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), b)
  if a is None:
    return b
  apart_O = (b.near_O - a.near_O) + (b.beyond_O - a.beyond_O)
  n_rows = a.n_rows + b.n_rows
  between = np.square(apart_O).sum() * a.n_rows * b.n_rows / n_rows
  return Spread(n_rows, a.near_O, a.beyond_O + apart_O * (b.n_rows / n_rows), a.square + b.square + between)


def explained_variance(y_NO: jax.Array, error_NO: jax.Array) -> jax.Array:
  """1 - the summed squared error over the targets' summed squared distance from their mean; NaN where they are equal.

  Args:
    y_NO: the targets.
    error_NO: reconstruction minus target.
  """
  rows = spread(y_NO)
  return jnp.where(rows.varies, 1.0 - jnp.square(error_NO).sum() / rows.square, jnp.nan)


def share_unexplained(square_error: float | np.ndarray, rows: Spread) -> float | None:
  """The summed squared error over the rows' summed squared distance from their mean; None where all rows are equal."""
  return float(square_error / rows.square) if rows.varies else None
