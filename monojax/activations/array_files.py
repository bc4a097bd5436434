"""Arrays in .npy, .npz and .safetensors files, of which only the rows that are asked for are read.

Letters: N rows, M numbers in a row.
"""

import dataclasses
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from monojax.activations.arrays import require_rows, rows_dtype
from monojax.config import InputError, require

SUFFIXES = (".npy", ".npz", ".safetensors")
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and its extra field
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
                       "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
                       "U16": "uint16", "U8": "uint8", "BOOL": "bool"}


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows that lie in one array.

  Attributes:
    name: what a message calls the array.
    n_rows, width: N and M.
    dtype: NumPy type in which the rows are served.
    read: (start, stop) -> (stop - start, M) rows, in whichever type they are kept.
  """
  name: str
  n_rows: int
  width: int
  dtype: np.dtype
  read: Callable[[int, int], np.ndarray]


def part_of(array_NM: np.ndarray, name: str) -> Part:
  """The part that a two-dimensional array is."""
  n_rows, width = array_NM.shape
  return Part(name, n_rows, width, rows_dtype(array_NM.dtype, name), lambda start, stop: array_NM[start:stop])


def open_file(path: pathlib.Path, key: str | None = None) -> Part:
  """The array in a file; nothing but its description is read.

  Args:
    path: a .npy, .npz or .safetensors file.
    key: the name of the array in the file; needed where there are several.

  Raises:
    InputError: it is no such file, is damaged or compressed, has no such array, or what it holds is not rows.
  """
  opened = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}
  require(path.suffix in opened, "path", str(path),
          f"files that end in {', '.join(SUFFIXES)} can be read; load another kind yourself and give the array")
  try:
    return opened[path.suffix](path, key)
  except InputError:
    raise
  except Exception as error:  # a damaged file fails in many ways
    raise InputError(f"cannot read {path}: {error}") from error


def _chosen(path, names, key):
  """The name of the array to read: `key`, or the only one."""
  listed = ", ".join(sorted(names)) or "no array"
  require(key is None or key in names, "key", key, f"{path} holds {listed}")
  require(key is not None or len(names) == 1, "key", key, f"choose one of the arrays in {path}: {listed}")
  return next(iter(names)) if key is None else key


def _open_npy(path, key):
  require(key is None, "key", key, f"{path} holds one array, which has no name")
  return _open_mapped(path, 0, str(path))


def _open_npz(path, key):
  """An array in a zip archive: stored as it is, it can be mapped like a .npy file that begins further on."""
  with zipfile.ZipFile(path) as archive:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()
               if info.filename.endswith(".npy")}
  name = _chosen(path, members, key)
  info = members[name]
  if info.compress_type != zipfile.ZIP_STORED:
    raise InputError(f"{name} in {path} is compressed, so that it can only be read whole: save it with np.savez "
                     "instead of np.savez_compressed")
  with open(path, "rb") as file:
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
  lengths = np.frombuffer(header, "<u2", 2, 26)  # of the name and of the extra field, which follow
  return _open_mapped(path, info.header_offset + _LOCAL_HEADER + int(lengths.sum()), f"{name} in {path}")


def _open_mapped(path, offset, name):
  """The array of a .npy file that begins at byte `offset` of another."""
  with open(path, "rb") as file:
    file.seek(offset)
    version = np.lib.format.read_magic(file)
    require(version in _HEADER_READERS, f"version of {name}", version, "save it with a plain numeric type")
    shape, in_columns, dtype = _HEADER_READERS[version](file)
    offset = file.tell()
  served = rows_dtype(dtype, name)
  require_rows(shape, name)
  needed, found = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
  if found < needed:
    raise InputError(f"{name} is cut short: {path} has {found:,} bytes, and the array ends at {needed:,}")
  n_rows, width = math.prod(shape[:-1]), shape[-1]
  if in_columns:
    require(len(shape) == 2, f"shape of {name}", shape,
            "is kept in Fortran order, in which it cannot be read row by row: save it as np.ascontiguousarray(x)")
    read = lambda start, stop: np.memmap(path, dtype, "r", offset, shape, "F")[start:stop]
  else:  # only what is read is mapped, and only while it is read
    read = lambda start, stop: np.memmap(path, dtype, "r", offset + start * width * dtype.itemsize,
                                         (stop - start, width))
  return Part(name, n_rows, width, served, read)


def _open_safetensors(path, key):
  from safetensors import safe_open
  with safe_open(path, "np") as file:
    key = _chosen(path, file.keys(), key)
    entry = file.get_slice(key)
    shape, kind = tuple(entry.get_shape()), entry.get_dtype()
  name = f"{key} in {path}"
  require(kind in _SAFETENSORS_DTYPES, f"dtype of {name}", kind, f"choose one of {', '.join(_SAFETENSORS_DTYPES)}")
  dtype = rows_dtype(np.dtype(_SAFETENSORS_DTYPES[kind]), name)
  require_rows(shape, name)

  def read(start, stop):
    with safe_open(path, "np") as file:
      entry = file.get_slice(key)
      found = [entry[index].reshape(-1, shape[-1]) for index in _slices(shape[:-1], start, stop)]
    return found[0] if len(found) == 1 else np.concatenate(found)
  return Part(name, math.prod(shape[:-1]), shape[-1], dtype, read)


def _slices(leading: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
  """Indices of an array whose axes `leading` count rows, which together give rows start..stop-1.

  For instance rows 3..8 of a (2, 5, M) array are [0:1, 3:5] and [1:2, 0:4].
  """
  *outer, inner = leading
  while start < stop:
    block, first = divmod(start, inner)
    last = min(inner, first + stop - start)
    yield (*(slice(int(i), int(i) + 1) for i in np.unravel_index(block, outer)), slice(first, last))
    start += last - first
