"""Arrays in .npy, .npz and .safetensors files, of which only the rows that are asked for are read.

Letters: N rows, M numbers in a row.
"""

import dataclasses
import math
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from monojax.activations.arrays import require_rows, rows_dtype
from monojax.config import InputError, require
from monojax.safetensors_header import DTYPES, read_header

SUFFIXES = (".npy", ".npz", ".safetensors")
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and its extra field
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


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
  return _open_npy_at(path, 0, str(path))


def _open_npz(path, key):
  """An array in a zip archive: stored as it is, it is a .npy file that begins further on."""
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
  return _open_npy_at(path, info.header_offset + _LOCAL_HEADER + int(lengths.sum()), f"{name} in {path}")


def _open_npy_at(path, offset, name):
  """The array of a .npy file that begins at byte `offset` of another."""
  with open(path, "rb") as file:
    file.seek(offset)
    version = np.lib.format.read_magic(file)
    require(version in _HEADER_READERS, f"version of {name}", version, "save it with a plain numeric type")
    shape, in_columns, dtype = _HEADER_READERS[version](file)
    offset = file.tell()
  require(not in_columns, f"shape of {name}", shape,
          "is kept in Fortran order, in which it cannot be read row by row: save it as np.ascontiguousarray(x), or "
          "give the array itself if it fits in memory")
  return _stored(path, offset, shape, dtype, name)


def _open_safetensors(path, key):
  entries = read_header(path).entries
  key = _chosen(path, entries, key)
  entry, name = entries[key], f"{key} in {path}"
  require(entry.kind in DTYPES, f"dtype of {name}", entry.kind, f"choose one of {', '.join(DTYPES)}")
  return _stored(path, entry.offset, entry.shape, entry.dtype, name)


def _stored(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Part:
  """The part whose rows lie one after the other in a file, from byte `offset` on.

  What is asked for is read and nothing else. Pages of a memory map would bring their neighbours along, on some disks
  megabytes of them for each chunk of an array.
  """
  served = rows_dtype(dtype, name)
  require_rows(shape, name)
  needed, found = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
  if found < needed:
    raise InputError(f"{name} is cut short: {path} has {found:,} bytes, and the array ends at {needed:,}")
  width = shape[-1]

  def read(start, stop):
    with open(path, "rb", buffering=0) as file:
      found = np.fromfile(file, dtype, (stop - start) * width, offset=offset + start * width * dtype.itemsize)
    if len(found) != (stop - start) * width:
      raise InputError("the file has become shorter since it was opened")
    return found.reshape(-1, width)
  return Part(name, math.prod(shape[:-1]), width, served, read)
