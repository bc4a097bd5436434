"""What a store consists of: its arrays, their shards, numbers in 8 bits (docs/reference/store-format.md).

Axes: N rows of the store, R rows of one shard or chunk, M width of a site.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
import tensorstore as ts

from monojax.activations.config import COMPRESSIONS, DTYPES
from monojax.activations.folder import Folder, context
from monojax.config import InputError, require, require_positive

# What a row of "places" says of the token that the activations were taken at.
PLACE = ("token", "document", "position", "domain")
# A large store has shards of so many bytes, a smaller one this many shards, so that a killed harvest goes on nearby.
_SHARD_BYTES, _MIN_SHARDS = 2**30, 16
# Each has so many chunks, of at most 16 MiB: large ones are read fast, and many mix the rows of many shards.
_CHUNKS, _MIN_CHUNK_ROWS = 64, 16
_LARGEST_INT8 = 127
_BLOCK_ROWS = 256  # rows that are scaled at once: few enough for the cache, and so many that threads rarely meet
_SIZED_ROWS = 512  # rows of a chunk, evenly spread, by which the size of its columns is judged


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a store: `n` entries of shape `trailing`, `shard` of them in a file and `chunk` read together."""
  n: int
  trailing: tuple
  dtype: str
  fill: object
  shard: int
  chunk: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a store: everything that its files' names, and without compression their sizes, follow from."""
  n_rows: int
  sites: dict  # width of each
  dtype: str
  compression: str
  shard_rows: int
  chunk_rows: int

  def __post_init__(self):
    require_positive(self, "", "n_rows", "shard_rows", "chunk_rows")
    require(self.sites and all(width > 0 for width in self.sites.values()), "sites", self.sites, "must have a width")
    require(self.dtype in DTYPES, "dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")
    require(self.compression in COMPRESSIONS, "compression", self.compression,
            f"must be one of {', '.join(COMPRESSIONS)}")
    require(self.shard_rows % self.chunk_rows == 0, "shard_rows", self.shard_rows,
            f"must be a multiple of chunk_rows={self.chunk_rows}")

  @classmethod
  def sized(cls, n_rows: int, sites: Mapping[str, int], dtype: str, compression: str = "none", shard_rows: int = 0,
            chunk_rows: int = 0) -> "Layout":
    """A layout of shards of `shard_rows` and chunks of `chunk_rows`, where these are not 0.

    By default a shard has 1 GiB of the widest site in memory, or a sixteenth of the rows if that is less, in 64 chunks.
    """
    power_of_2 = lambda n: 2 ** int(math.log2(n))
    if shard_rows:
      chunk_rows = chunk_rows or math.gcd(shard_rows, power_of_2(max(1, shard_rows // _CHUNKS)))
    else:
      row_bytes = max(sites.values()) * given_dtype(dtype).itemsize  # as they are in memory
      shard_rows = max(1, min(_SHARD_BYTES // row_bytes, -(-n_rows // _MIN_SHARDS)))
      chunk_rows = chunk_rows or power_of_2(max(_MIN_CHUNK_ROWS, shard_rows // _CHUNKS))
      shard_rows = -(-shard_rows // chunk_rows) * chunk_rows
    return cls(n_rows, dict(sites), dtype, compression, shard_rows, chunk_rows)

  @classmethod
  def of(cls, header: Mapping) -> "Layout":
    """The layout that a header.json or meta.json describes."""
    return cls(**{field.name: header[field.name] for field in dataclasses.fields(cls)})

  @property
  def n_shards(self) -> int:
    return -(-self.n_rows // self.shard_rows)

  @property
  def given_dtype(self) -> np.dtype:
    """The numpy dtype of the rows as they are given and read."""
    return given_dtype(self.dtype)

  def shard_span(self, index: int) -> tuple[int, int]:
    """(start, stop) of the rows in shard `index`; the last shard may be short."""
    return index * self.shard_rows, min((index + 1) * self.shard_rows, self.n_rows)

  @functools.cached_property
  def arrays(self) -> dict[str, Array]:
    """{path below the store's folder: `Array`}."""
    by_row = lambda trailing, dtype, fill: Array(self.n_rows, trailing, dtype, fill, self.shard_rows, self.chunk_rows)
    found = {}
    for site, width in self.sites.items():
      if self.dtype == "int8":
        n_chunks = -(-self.n_rows // self.chunk_rows)
        found[f"sites/{site}"] = by_row((width,), "int8", -128)
        found[f"row_scales/{site}"] = by_row((), "float32", "NaN")
        found[f"column_scales/{site}"] = Array(n_chunks, (width,), "float32", "NaN",
                                               self.shard_rows // self.chunk_rows, 1)
      else:
        found[f"sites/{site}"] = by_row((width,), self.dtype, "NaN")
    found["places"] = by_row((len(PLACE),), "int32", -2)
    return found

  def shard_files(self, index: int) -> dict[str, int]:
    """{path below the store's folder: bytes} of the files that hold shard `index`, uncompressed."""
    start, stop = self.shard_span(index)
    found = {}
    for path, array in self.arrays.items():
      n_chunks = -(-(stop - start) // self.chunk_rows)
      chunk_bytes = array.chunk * math.prod(array.trailing) * _itemsize(array.dtype)
      name = "/".join([path, "c", str(index), *["0"] * len(array.trailing)])
      found[name] = n_chunks * (chunk_bytes + 4) + 16 * (array.shard // array.chunk) + 4
    return found

  def fault(self, folder: Folder, index: int) -> str | None:
    """What is wrong with the files of shard `index`, judged by their sizes; `None` if nothing is.

    In an object store, whose files are whole or not there, nothing is looked at.
    """
    for name, n_bytes in self.shard_files(index).items() if folder.path else ():
      found = folder.size(name)
      if found is None:
        return f"{folder.named(name)} is missing"
      if found != n_bytes and self.compression == "none":
        return f"{folder.named(name)} has {found:,} bytes instead of {n_bytes:,}"
    return None

  def open_arrays(self, folder: Folder, create: bool = False, described: bool = True) -> dict[str, ts.TensorStore]:
    """{path: tensorstore handle} of all arrays.

    Args:
      folder: the store's.
      create: makes the arrays that are not there.
      described: each array has, or with `create` gets, its zarr.json. Without, that file is neither read nor written:
        for a store that grows, whose arrays' shape is not known yet.

    Raises:
      InputError: they cannot be opened, or have another shape.
    """
    opened = {}
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
    packed = [{"name": "zstd", "configuration": {"level": 1}}] if self.compression == "zstd" else []
    checked = [{"name": "crc32c"}]
    for path, array in self.arrays.items():
      sharding = {"chunk_shape": [array.chunk, *array.trailing], "codecs": plain + packed + checked,
                  "index_codecs": plain + checked, "index_location": "end"}
      spec = {
        "driver": "zarr3",
        "kvstore": folder.array_spec(path),
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
        "metadata": {
          "shape": [array.n, *array.trailing], "data_type": array.dtype, "fill_value": array.fill,
          "chunk_grid": {"name": "regular",
                         "configuration": {"chunk_shape": [array.shard, *array.trailing]}},
          "chunk_key_encoding": {"name": "default"},
          "codecs": [{"name": "sharding_indexed", "configuration": sharding}]},
      }
      opened[path] = ts.open(spec, open=True, create=create, assume_metadata=not described, context=context())
    try:
      return {path: future.result() for path, future in opened.items()}
    except (ValueError, OSError) as error:
      raise InputError(f"cannot open the arrays of {folder}: {error}; if nothing else mends it, delete that folder "
                       "and write it again") from error


def given_dtype(dtype: str) -> np.dtype:
  """The numpy dtype outside of a store of `dtype`: 8-bit numbers are float32 there."""
  return ts.dtype("float32" if dtype == "int8" else dtype).numpy_dtype


def _itemsize(dtype):
  return ts.dtype(dtype).numpy_dtype.itemsize


def to_int8(x_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A chunk's rows in 8 bits: (q_RM int8, row_R float32, column_M float32), x ~ q * row * column.

  Rows are first divided by their length, the fourth root of the mean fourth power, in which each column counts by its
  own size, (mean of sqrt|x|)^2 over some 512 of the rows. Then a column's scale is its largest entry, and a row's is
  what makes its largest scaled entry 127. So what is unlike the rest takes no resolution from it:

  * a very long row, as at the start of a text, since rows are divided by their length;
  * a very large column, as in a residual stream, since columns have a scale of their own;
  * a neuron that fires on one row in a thousand: a column counts by the size of the whole chunk if its own is less, or
    this neuron would make up all of that row's length;
  * a neuron that is huge on a few rows: by the fourth power it makes up their length. They lose their small numbers, so
    that other rows keep this neuron.
  """
  x_RM = x_RM.astype(np.float32, copy=False)
  blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, len(x_RM), _BLOCK_ROWS)]
  scaled_BM, size_BM = (np.empty((min(len(x_RM), _BLOCK_ROWS), x_RM.shape[1]), np.float32) for _ in range(2))
  root_M = np.sqrt(np.abs(x_RM[::max(1, len(x_RM) // _SIZED_ROWS)])).mean(axis=0)
  weight_M = 1 / _or_1(np.square(np.maximum(root_M, root_M.mean())))
  column_M = np.zeros_like(weight_M)
  for block in blocks:
    part_RM = x_RM[block]
    scaled_RM, size_RM = scaled_BM[:len(part_RM)], size_BM[:len(part_RM)]
    np.square(np.multiply(part_RM, weight_M, out=size_RM), out=size_RM)
    length_R = (np.einsum("rm,rm->r", size_RM, size_RM) / x_RM.shape[1]) ** 0.25
    np.multiply(part_RM, (1 / _or_1(length_R))[:, None], out=scaled_RM)
    np.maximum(column_M, _largest(scaled_RM, size_RM, axis=0), out=column_M)
  column_M = _or_1(column_M)
  q_RM, row_R = np.empty(x_RM.shape, np.int8), np.empty(len(x_RM), np.float32)
  for block in blocks:
    part_RM = x_RM[block]
    scaled_RM, size_RM = scaled_BM[:len(part_RM)], size_BM[:len(part_RM)]
    np.multiply(part_RM, 1 / column_M, out=scaled_RM)
    row_R[block] = _or_1(_largest(scaled_RM, size_RM, axis=1) / _LARGEST_INT8)
    scaled_RM *= (1 / row_R[block])[:, None]
    q_RM[block] = np.rint(scaled_RM, out=scaled_RM)
  return q_RM, row_R, column_M


def _largest(x_RM, size_RM, axis):
  """The largest |x| of each row or column; fills `size_RM`. Sizes are compared as integers, by their bits: faster."""
  bits_RM = np.bitwise_and(x_RM.view(np.int32), 0x7FFFFFFF, out=size_RM.view(np.int32))
  return bits_RM.max(axis=axis).view(np.float32)


def _or_1(x):
  """Sizes, and 1 in the place of 0 and of what is so small that its inverse is infinite."""
  return np.where(x >= np.finfo(np.float32).tiny, x, 1).astype(np.float32)


def from_int8(q_RM: np.ndarray, row_R: np.ndarray, column_M: np.ndarray, out_RM: np.ndarray) -> None:
  """Fills `out_RM`, float32, with what `to_int8` was given, to within half a step."""
  for start in range(0, len(out_RM), _BLOCK_ROWS):
    block = slice(start, start + _BLOCK_ROWS)
    out_RM[block] = q_RM[block]
    out_RM[block] *= row_R[block, None]
    out_RM[block] *= column_M[None]
