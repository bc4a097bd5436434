"""Arrays as other libraries have them, for the tests of what takes arrays of any library."""

import numpy as np


class OnlyArray:
  """What another library's array may look like."""

  def __init__(self, x):
    self._x = x

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self._x, dtype)


class OnlyDLPack:
  """What an array that is not in host memory, or has no NumPy type, may look like."""

  def __init__(self, x):
    self._x = x

  def __dlpack__(self, **given):
    return self._x.__dlpack__(**given)

  def __dlpack_device__(self):
    return self._x.__dlpack_device__()
