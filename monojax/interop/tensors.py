"""Tensors in other tools' files: .safetensors, .npz and PyTorch's, read as float32, each error one line."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError
from monojax.interop import torch_file
from monojax.safetensors_header import read_header

Tensors = dict[str, np.ndarray]

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
           "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


def bfloat16(raw: Any) -> np.ndarray:
  """The float32 array of numbers that are in bfloat16: the upper half of float32."""
  return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path: pathlib.Path) -> tuple[Tensors, dict[str, str]]:
  """(tensors by name, metadata) of a .safetensors file; float16 and bfloat16 are widened to float32, without loss.

  Raises:
    InputError: it is damaged, for instance cut off, or has tensors of another type.
  """
  import safetensors
  content = _bytes(path)
  try:
    entries = safetensors.deserialize(content)
  except Exception as error:
    raise _damaged(path, error) from error
  del content  # of which the entries are copies
  found = {}
  for name, entry in entries:
    kind, shape = entry["dtype"], entry["shape"]
    if kind != "BF16" and kind not in _DTYPES:
      raise InputError(f"{path} has the tensor {name} of the type {kind}, which monojax does not read: save it as "
                       "float32")
    found[name] = (bfloat16(entry["data"]) if kind == "BF16" else
                   np.frombuffer(entry["data"], np.dtype(_DTYPES[kind]).newbyteorder("<"))).reshape(shape)
  return found, header(path)[1]


def header(path: pathlib.Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
  """(shapes of the tensors by name, metadata) of a .safetensors file, without reading the tensors.

  Raises:
    InputError: it is damaged.
  """
  try:
    found = read_header(path)
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise _damaged(path, error) from error
  return {name: entry.shape for name, entry in found.entries.items()}, found.metadata


def read_npz(path: pathlib.Path) -> Tensors:
  """The arrays in an .npz file, by name.

  Raises:
    InputError: it is damaged.
  """
  return _read(path, lambda: files.unpacked(_bytes(path), path))


def read_torch(path: pathlib.Path) -> Any:
  """What a file of PyTorch's holds; see `torch_file`.

  Raises:
    InputError: it is damaged, or holds more than tensors and plain values.
  """
  return _read(path, lambda: torch_file.read(path))


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
                      ) -> None:
  """Writes tensors as a .safetensors file, which gets its name once it is whole."""
  import safetensors.numpy
  content = safetensors.numpy.save({name: np.array(value, order="C") for name, value in tensors.items()}, metadata)
  with files.replacing(path) as file:
    file.write(content)


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    InputError: there is no such file, or it holds something else.
  """
  found = files.read_json(path)
  if not isinstance(found, dict):
    raise InputError(f"{path} is missing" if found is None else f"{path} holds no JSON object")
  return found


def taken(tensors: Mapping[str, Any], path: pathlib.Path, names: Iterable[str], optional: Iterable[str] = ()
          ) -> Tensors:
  """Some tensors of a file as float32, by name; those that are optional only where they are there.

  Raises:
    InputError: one is missing, or none of numbers.
  """
  found: Tensors = {}
  for name in [*names, *(name for name in optional if name in tensors)]:
    if name not in tensors:
      raise InputError(f"{path} has no tensor {name}: it has {', '.join(sorted(map(str, tensors))) or 'none'}")
    value = tensors[name]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
      raise InputError(f"{path}: {name} is no tensor of numbers")
    found[name] = value.astype(np.float32, copy=False)
  return found


def number(value: Any, what: str, path: pathlib.Path) -> int:
  """A whole number above 0 that a file says, also as a tensor of one.

  Raises:
    InputError: it is none.
  """
  value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
  if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
    raise InputError(f"{path}: {what} is {value!r}, and must be a whole number above 0")
  return int(value)


def _read(path: pathlib.Path, function: Callable[[], Any]) -> Any:
  try:
    return function()
  except InputError:
    raise
  except Exception as error:  # a damaged file fails in many ways
    raise _damaged(path, error) from error


def _bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _damaged(path: pathlib.Path, error: object) -> InputError:
  return InputError(f"{path} is damaged or not whole ({' '.join(str(error).split())[:200]}): fetch it again")
