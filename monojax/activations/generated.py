"""Activations of a subject on inputs that are drawn as they are needed: a source without a store or an end."""

import jax
import jax.numpy as jnp
import numpy as np


class Generated:
  """An endless sequence of activations of a subject; a source whose batches are born on the device.

  Attributes:
    widths: of the sites, in their order; a batch holds them side by side.
  """

  def __init__(self, draw, sites_of, sites, batch_rows, seed=0):
    """Makes nothing yet.

    Args:
      draw: (key, n_rows) -> inputs; to be traced.
      sites_of: inputs -> {site: activations with a row for each input}; to be traced.
      sites: names of the sites wanted.
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

  def batch(self, step):
    """x_BW: batch number `step`."""
    return self._rows(jax.random.fold_in(self._key, step), self._batch_rows)

  def sample(self, n_rows, seed):
    """(n_rows, W) further rows, for estimates such as a geometric median."""
    key = jax.random.fold_in(jax.random.fold_in(self._key, 2**31 - 1), seed)
    return np.asarray(self._rows(key, n_rows))
