"""Arrays that must be the same to the last bit, where XLA compiles as it does for users."""

import os

import jax
import numpy as np


def require_same(found, expected, rtol=1e-3, atol=1e-5):
  """Requires two trees of arrays to be the same to the bit; of the suite's quick programs, to be close.

  With the flags of conftest.py, two programs that do the same to the same numbers may round otherwise, which some
  hundred steps of training make larger: differences up to 5e-6 were seen in parameters of size 0.1 to 1. `make newest`
  has no flags.
  """
  found, expected = jax.device_get(found), jax.device_get(expected)
  if os.environ.get("XLA_FLAGS"):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), found, expected)
  else:
    jax.tree.map(np.testing.assert_array_equal, found, expected)
