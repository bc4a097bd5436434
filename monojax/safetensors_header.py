"""What a .safetensors file says of its tensors: their types, shapes and places, so that parts of one can be read.

The package `safetensors` reads whole tensors, or parts of them through a memory map, which brings along more of a file
than is asked for and has no bfloat16 of NumPy.
"""

import dataclasses
import json
import math
import os
import pathlib
import re

import numpy as np

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
          "BOOL": "bool"}
_BYTES = {kind: 1 if kind == "BOOL" else int(re.sub(r"\D", "", kind)) // 8 for kind in DTYPES}  # of one number


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of a file.

  Attributes:
    kind: its type, as the file calls it: "F32", "BF16" and so on.
    shape: its shape; numbers lie in C order, little-endian.
    offset: the byte of the file at which it begins.
  """
  kind: str
  shape: tuple[int, ...]
  offset: int

  @property
  def dtype(self) -> np.dtype:
    """NumPy's type of its numbers; bfloat16 is known once `ml_dtypes` or jax is imported.

    Raises:
      KeyError: it is of a type that is not in `DTYPES`.
    """
    return np.dtype(DTYPES[self.kind]).newbyteorder("<")


@dataclasses.dataclass(frozen=True)
class Header:
  """The header of a file.

  Attributes:
    entries: {name: tensor}.
    metadata: {name: text} that whoever wrote the file added.
    n_bytes: bytes of the file up to the first tensor's.
  """
  entries: dict[str, Entry]
  metadata: dict[str, str]
  n_bytes: int


def read_header(path: str | os.PathLike[str]) -> Header:
  """The header of a .safetensors file, of which nothing else is read.

  Raises:
    OSError: it cannot be read.
    ValueError: it has no such header, is cut short, or has tensors whose sizes contradict their shapes.
  """
  path = pathlib.Path(path)
  size = path.stat().st_size
  with open(path, "rb") as file:
    n_bytes = 8 + int.from_bytes(file.read(8), "little")
    if n_bytes > size:
      raise ValueError(f"it is cut short: its header should have {n_bytes - 8:,} bytes, and the file has {size:,}")
    try:
      found = json.loads(file.read(n_bytes - 8))
      metadata = found.pop("__metadata__", {})
      ends = {name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
      raise ValueError("it has no header") from error
  for name, (kind, shape, start, stop) in ends.items():
    if kind in DTYPES and stop - start != math.prod(shape) * _BYTES[kind]:
      raise ValueError(f"its header says that {name} has the shape {list(shape)} and {stop - start:,} bytes of type "
                       f"{kind}, which contradict each other")
  last = n_bytes + max((stop for *_, stop in ends.values()), default=0)
  if last > size:
    raise ValueError(f"it is cut short: its tensors end at byte {last:,}, and the file has {size:,}")
  return Header({name: Entry(kind, shape, n_bytes + start) for name, (kind, shape, start, _) in ends.items()}, metadata,
                n_bytes)
