"""Arrays of any library as NumPy arrays, and what makes an array usable as rows of activations.

Letters: N rows, M numbers in a row.
"""

import mmap
import sys

import numpy as np

from monojax.activations.layout import given_dtype
from monojax.config import InputError, require

_KEPT = tuple(map(given_dtype, ("float16", "bfloat16", "float32")))  # types that rows are served in


def as_numpy(x: object, name: str) -> np.ndarray:
  """An array of any library on the host, without a copy where the library allows it.

  Args:
    x: an array of NumPy, JAX or PyTorch (on any device; the gradient is left behind), or anything that has
      `__array__` or `__dlpack__`.
    name: what an error calls it.

  Raises:
    InputError: it is no such array.
  """
  torch = sys.modules.get("torch")
  try:
    if torch is not None and isinstance(x, torch.Tensor):
      return _of_torch(x, torch)
    if np.ma.isMaskedArray(x):
      raise InputError("it is a masked array: leave the masked rows out and give the rest as a plain array")
    if hasattr(x, "__array__"):
      return np.asarray(x)
    if hasattr(x, "__dlpack__"):
      return _of_dlpack(x)
  except Exception as error:  # each library fails in ways of its own
    raise InputError(f"{name}, a {_type_name(x)}, cannot be read as an array: {error}") from error
  raise InputError(f"{name} is a {_type_name(x)}: give an array of NumPy, JAX or PyTorch, or anything that has "
                   "__array__ or __dlpack__")


def _type_name(x):
  return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _of_torch(x, torch):
  x = x.detach().cpu()
  if x.dtype == torch.bfloat16:  # which torch.Tensor.numpy does not know
    return x.view(torch.int16).numpy().view(given_dtype("bfloat16"))
  return x.numpy(force=True)


def _of_dlpack(x):
  try:
    return np.from_dlpack(x)
  except (RuntimeError, TypeError, ValueError, BufferError):  # for instance bfloat16, or memory of an accelerator
    import jax.numpy as jnp
    return np.asarray(jnp.from_dlpack(x))


def rows_dtype(dtype: np.dtype, name: str) -> np.dtype:
  """The type in which rows that are kept as `dtype` are served.

  float16, bfloat16 and float32 stay as they are, other real numbers become float32.

  Raises:
    InputError: they are not real numbers.
  """
  native = dtype.newbyteorder("=")
  if native in _KEPT:
    return native
  if native.kind in "fiub":
    return np.dtype(np.float32)
  hint = ("; as NumPy saves bfloat16: save the array as .safetensors or as float32, or give "
          "np.load(path, mmap_mode='r').view(ml_dtypes.bfloat16)" if native == np.dtype("V2") else "")
  raise InputError(f"{name} holds {dtype} numbers: activations must be real numbers, for instance float32{hint}")


def require_rows(shape: tuple[int, ...], name: str) -> None:
  """Raises `InputError` unless an array of this shape holds rows: its last axis is the row, the others count them."""
  require(len(shape) >= 2, f"shape of {name}", tuple(shape),
          "rows are needed, (rows, width); give one row as x[None] and numbers of width 1 as x[:, None]")
  require(shape[-1] > 0, f"shape of {name}", tuple(shape), "the last axis is the width of a row and must not be 0")
  require(0 not in shape, f"shape of {name}", tuple(shape), "there are no rows in it")


def flat(x: np.ndarray, name: str) -> np.ndarray:
  """x_NM: an array whose leading axes all count rows, as rows; a view of what is mapped from a disk.

  Raises:
    InputError: it has no rows, or it lies on a disk in an order in which it would have to be read whole.
  """
  require_rows(x.shape, name)
  if not _is_mapped(x):
    return x.reshape(-1, x.shape[-1])
  try:
    return x.reshape(-1, x.shape[-1], copy=False)
  except ValueError as error:
    raise InputError(f"{name} has shape {x.shape} and lies on the disk in another order, so that it cannot be read "
                     "row by row: save it as np.ascontiguousarray(x)") from error


def _is_mapped(x):
  """Whether an array's memory is a mapped file."""
  while x is not None:
    if isinstance(x, (np.memmap, mmap.mmap)):
      return True
    x = getattr(x, "base", None)
  return False
