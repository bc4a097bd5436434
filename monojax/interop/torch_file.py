"""PyTorch's files (`torch.save`), read without PyTorch, and without running what they say.

Such a file is a zip archive with a pickle, which says how the tensors are put together, and a file of bytes for each
storage. A pickle can call any function of Python's. Here it may name the few that make tensors and plain containers,
each of which is replaced by one of ours; whatever else it names is refused.
"""

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from monojax.config import InputError

# What torch calls its storages, and how the bytes are read; bfloat16 is the upper half of float32.
_STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
             "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
             "ByteStorage": "<u1", "BoolStorage": "?"}


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A type of storages."""
  name: str


def read(path: pathlib.Path) -> Any:
  """What `torch.save` wrote: dicts, lists and plain values, with tensors as NumPy arrays (bfloat16 as float32).

  Raises:
    InputError: it is no such file, is of PyTorch before 1.6, or names something else than tensors and containers.
    Exception: it is damaged, in one of many ways.
  """
  if not zipfile.is_zipfile(path):
    raise InputError(f"{path} is not a whole file of PyTorch 1.6 or later: fetch it again, or load it with torch and "
                     "save its state dict again")
  with zipfile.ZipFile(path) as archive:
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
      raise InputError(f"{path} is no file of torch.save: it has {len(pickles)} pickles where one belongs")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
      raise InputError(f"{path} was written on a machine with the other order of bytes: save it again as safetensors")
    return _Unpickler(path, archive, folder).load()


class _Unpickler(pickle.Unpickler):
  """Unpickles what is made of tensors and plain containers."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, folder: str):
    super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
    self._path, self._archive, self._folder = path, archive, folder
    self._read: dict[str, np.ndarray] = {}

  def find_class(self, module: str, name: str) -> Any:
    """Ours for each of the few functions and types that a file may name."""
    known: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _tensor(*given),
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch", "Size"): tuple}
    if (module, name) in known:
      return known[module, name]
    if module in ("torch", "torch.storage") and name in _STORAGES:
      return _Kind(name)
    raise InputError(f"{self._path} names {module}.{name}, and not only tensors and containers of them: load it where "
                     "you trust it, and save its state dict")

  def persistent_load(self, pid: Any) -> np.ndarray:
    """The numbers of a storage, flat."""
    tag, kind, key, _, n_numbers = pid
    if tag != "storage" or not isinstance(kind, _Kind):
      raise ValueError(f"unknown reference {tag!r}")
    if key not in self._read:
      raw = self._archive.read(f"{self._folder}data/{key}")
      dtype = _STORAGES[kind.name]
      numbers = ((np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16"
                 else np.frombuffer(raw, dtype))
      if len(numbers) != n_numbers:
        raise ValueError(f"a storage has {len(numbers)} numbers where {n_numbers} belong")
      self._read[key] = numbers
    return self._read[key]


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
  """The array of some shape whose element (i, j, ...) is storage[offset + i stride[0] + j stride[1] + ...]."""
  numbers = [offset, *size, *stride]
  if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
    raise ValueError("a tensor has no shape")
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if math.prod(size) and last >= len(storage):
    raise ValueError("a tensor reaches beyond its storage")
  strides = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()
