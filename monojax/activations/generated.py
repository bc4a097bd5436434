"""Activations of a subject on inputs that are drawn at random as they are needed: a source that keeps nothing.

Letters: B rows of a batch, N rows, W numbers in a row, which holds the sites side by side.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


class Generated:
  """An endless sequence of activations of a subject; a `Source` whose batches are computed on the device.

  Attributes:
    widths: the width of each site, in the order in which a batch holds them side by side.
  """

  def __init__(self, draw: Callable[[jax.Array, int], jax.Array],
               sites_of: Callable[[jax.Array], Mapping[str, jax.Array]], sites: Sequence[str], batch_rows: int,
               seed: int = 0) -> None:
    """Computes nothing yet.

    Args:
      draw: (key, n_rows) -> inputs; to be traced.
      sites_of: inputs -> {site: activations with a row for each input}; to be traced.
      sites: the names of the sites that a row holds.
      batch_rows: B.
      seed: of the inputs.
    """
    self._key, self._batch_rows = jax.random.key(seed), batch_rows

    def rows(key, n_rows):
      found = sites_of(draw(key, n_rows))
      return jnp.concatenate([found[site] for site in sites], axis=1)
    self._rows = jax.jit(rows, static_argnums=1)
    found = jax.eval_shape(lambda key: sites_of(draw(key, 1)), self._key)
    self.widths = tuple(found[site].shape[1] for site in sites)

  def batch(self, step: int) -> jax.Array:
    """x_BW: batch number `step`, on one device; the same in every process of a job."""
    return self._rows(jax.random.fold_in(self._key, step), self._batch_rows)

  def sample(self, n_rows: int, seed: int) -> np.ndarray:
    """x_NW: `n_rows` further rows, which no batch holds, for estimates such as a geometric median."""
    key = jax.random.fold_in(jax.random.fold_in(self._key, 2**31 - 1), seed)
    return np.asarray(self._rows(key, n_rows))
