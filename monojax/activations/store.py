"""Activations on disk: a sharded zarr3 store, its layout and its reader; `writer.py` fills it.

`docs/store-format.md` specifies the format. No other file imports tensorstore.
Axes: N rows of the store, R rows of one shard, M width of the activation.
"""

import collections
import dataclasses
import functools
import json
import pathlib

import numpy as np
import tensorstore as ts

from monojax import files
from monojax.activations.config import DTYPES
from monojax.config import InputError, differences, require

FORMAT, VERSION = "monojax-activations", 2
READS_IN_FLIGHT = 8
_LOOKED_AT = 1000  # shards whose sizes opening looks at: many would take long, and reading finds any damage
_SUM_ROWS = 256  # rows converted to float64 at once: stays in the cache


@functools.cache
def _context():
  """The process's tensorstore context: each chunk is read once, so none is kept."""
  return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 4},
                     "file_io_concurrency": {"limit": READS_IN_FLIGHT}})


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a store: everything that its files' names and sizes follow from."""
  n_rows: int
  width: int
  dtype: str
  shard_rows: int
  chunk_rows: int

  def __post_init__(self):
    for name in ("n_rows", "width", "shard_rows", "chunk_rows"):
      require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
    require(self.dtype in DTYPES, "dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")
    require(self.shard_rows % self.chunk_rows == 0, "shard_rows", self.shard_rows,
            f"must be a multiple of chunk_rows={self.chunk_rows}")

  @property
  def n_shards(self):
    return -(-self.n_rows // self.shard_rows)

  def shard_span(self, index):
    """(start, stop) of the rows in shard `index`; the last shard may be short."""
    return index * self.shard_rows, min((index + 1) * self.shard_rows, self.n_rows)

  def shard_files(self, index):
    """{path below the store's directory: bytes} of the two files that hold shard `index`."""
    start, stop = self.shard_span(index)
    n_chunks = -(-(stop - start) // self.chunk_rows)
    index_bytes = 16 * (self.shard_rows // self.chunk_rows) + 4
    row_bytes = self.width * ts.dtype(self.dtype).numpy_dtype.itemsize
    return {f"rows/c/{index}/0": n_chunks * (self.chunk_rows * row_bytes + 4) + index_bytes,
            f"positions/c/{index}": n_chunks * (self.chunk_rows * 8 + 4) + index_bytes}

  def fault(self, directory, index):
    """What is wrong with the files of shard `index`, judged by their sizes; `None` if nothing is."""
    for name, n_bytes in self.shard_files(index).items():
      try:
        found = (directory / name).stat().st_size
      except FileNotFoundError:
        return f"{directory / name} is missing"
      if found != n_bytes:
        return f"{directory / name} has {found:,} bytes instead of {n_bytes:,}"
    return None

  def open_arrays(self, directory, create):
    """{"rows": (N, M), "positions": (N,) int64} as tensorstore handles."""
    opened = {}
    for name, trailing, dtype, fill in (("rows", [self.width], self.dtype, "NaN"),
                                        ("positions", [], "int64", -1)):
      checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
      sharding = {"chunk_shape": [self.chunk_rows, *trailing], "codecs": checked,
                  "index_codecs": checked, "index_location": "end"}
      spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory / name}/"},
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
        "metadata": {
          "shape": [self.n_rows, *trailing], "data_type": dtype, "fill_value": fill,
          "chunk_grid": {"name": "regular",
                         "configuration": {"chunk_shape": [self.shard_rows, *trailing]}},
          "chunk_key_encoding": {"name": "default"},
          "codecs": [{"name": "sharding_indexed", "configuration": sharding}]},
      }
      try:
        opened[name] = ts.open(spec, open=True, create=create, context=_context()).result()
      except (ValueError, OSError) as error:
        raise InputError(f"cannot open the array {directory / name}: {error}; if nothing else mends it, "
                         f"delete {directory} and run the harvest again") from error
    return opened


def sums_of(rows_RM):
  """Float64 sums over a shard's rows: of ||x||_2, of ||x||_2^2, and of x itself (M,)."""
  norm, square, vector_M = 0.0, 0.0, np.zeros(rows_RM.shape[1])
  for start in range(0, len(rows_RM), _SUM_ROWS):
    x_RM = rows_RM[start:start + _SUM_ROWS].astype(np.float64)
    square_R = np.einsum("rm,rm->r", x_RM, x_RM)
    norm += np.sqrt(square_R).sum()
    square += square_R.sum()
    vector_M += x_RM.sum(axis=0)
  return {"norm": float(norm), "square": float(square), "vector_M": vector_M.tolist()}


def sums_path(directory, index):
  """The sums over a shard's rows; the file is written last and says that the shard is durable."""
  return directory / "sums" / f"{index}.json"


def missing_shards(directory, layout):
  """The shards that are not durable, or whose files are gone or cut short since."""
  return [index for index in range(layout.n_shards)
          if not sums_path(directory, index).exists() or layout.fault(directory, index) is not None]


def faults(directory):
  """Reads every shard of a store, finished or not: yields (shard, what is wrong with it or `None`).

  Sizes, each chunk's checksum, and the sums over the rows are compared with what the writer left.

  Raises:
    InputError: there is no store.
  """
  directory = pathlib.Path(directory).absolute()
  header = files.read_json(directory / "header.json")
  if header is None:
    raise InputError(f"there is no activation store in {directory}: run the harvest first")
  layout = Layout(**{field.name: header[field.name] for field in dataclasses.fields(Layout)})
  arrays = layout.open_arrays(directory, create=False)
  for index in range(layout.n_shards):
    yield index, _fault_of(directory, layout, arrays, index)


def _fault_of(directory, layout, arrays, index):
  if not sums_path(directory, index).exists():
    return "it has not been harvested"
  if fault := layout.fault(directory, index):
    return fault
  span = slice(*layout.shard_span(index))
  try:
    rows_RM, _ = (arrays[name][span].read().result() for name in ("rows", "positions"))
    written = files.read_json(sums_path(directory, index))
  except (ValueError, OSError) as error:
    return str(error)
  return None if sums_of(rows_RM) == written else "its rows are not those that were summed when they were written"


def forget(directory, index):
  """Has the next harvest make a shard again; the store is unfinished until then."""
  directory = pathlib.Path(directory)
  (directory / "meta.json").unlink(missing_ok=True)
  sums_path(directory, index).unlink(missing_ok=True)


class ActivationStore:
  """A finished store, open for reading; safe to use from several threads.

  Attributes:
    meta: the dict in meta.json.
    n_rows, width, chunk_rows: N, M, and rows that are read together.
    n_chunks: chunks of the whole store; the last may be short.
    dtype: numpy dtype of the rows.
  """

  def __init__(self, directory, meta):
    """Use `ActivationStore.open`, which checks what it opens."""
    self.meta = meta
    self._directory = directory
    self._layout = Layout(**{field.name: meta[field.name] for field in dataclasses.fields(Layout)})
    self.n_rows, self.width = self._layout.n_rows, self._layout.width
    self.chunk_rows = self._layout.chunk_rows
    self.n_chunks = -(-self.n_rows // self.chunk_rows)
    for index in range(min(self._layout.n_shards, _LOOKED_AT)):
      if fault := self._layout.fault(directory, index):
        raise self._damaged(index, fault)
    self._arrays = self._layout.open_arrays(directory, create=False)
    self.dtype = self._arrays["rows"].dtype.numpy_dtype

  @classmethod
  def open(cls, directory, expected_identity=None):
    """Opens the store in `directory`; looks at the sizes of the first thousand shards, and reads none.

    Args:
      directory: what the writer was given.
      expected_identity: where given, the identity the store must have.

    Raises:
      InputError: there is no store, it is unfinished, of another identity or version, or a shard is
        missing or has the wrong size.
    """
    directory = pathlib.Path(directory).absolute()
    meta = files.read_json(directory / "meta.json")
    header = files.read_json(directory / "header.json")
    if meta is None and header is None:
      raise InputError(f"there is no activation store in {directory}: run the harvest first")
    found = meta or header
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
      raise InputError(f"{directory} has format {found.get('format')!r} version {found.get('version')}, "
                       f"this version of monojax reads {FORMAT!r} version {VERSION}: harvest again")
    if expected_identity is not None:
      changed = differences(found["identity"], json.loads(json.dumps(expected_identity)))
      if changed:
        raise InputError(f"the store in {directory} was harvested from something else "
                         f"({'; '.join(changed)}): delete that folder and run the harvest again")
    if meta is None:
      layout = Layout(**{field.name: header[field.name] for field in dataclasses.fields(Layout)})
      n_done = layout.n_shards - len(missing_shards(directory, layout))
      raise InputError(f"the store in {directory} is unfinished, harvested {n_done} of "
                       f"{layout.n_shards} shards: run the harvest command again, it continues there")
    return cls(directory, meta)

  def _damaged(self, index, reason):
    return InputError(f"shard {index} of the store in {self._directory} is damaged ({reason}): "
                      "experiments/check_store.py --repair finds all that are and harvests them again")

  def _read(self, name, spans, out):
    """Fills `out` with the rows of `spans`, one after the other, several reads at a time.

    Args:
      name: "rows" or "positions".
      spans: (start, stop) pairs, each inside one shard.
      out: array of as many rows as the spans together.
    """
    pending, at = collections.deque(), 0
    try:
      for start, stop in spans:
        if len(pending) == READS_IN_FLIGHT:
          self._settle(*pending.popleft())
        target = ts.array(out[at:at + stop - start], context=_context(), copy=False)
        pending.append((start, target.write(self._arrays[name][start:stop])))
        at += stop - start
      while pending:
        self._settle(*pending.popleft())
    finally:  # after an error the other reads must not go on writing into `out`
      for _, read in pending:
        read.exception()

  def _settle(self, start, read):
    try:
      read.result()
    except (ValueError, OSError) as error:
      index = start // self._layout.shard_rows
      raise self._damaged(index, self._layout.fault(self._directory, index) or error) from error

  def _span(self, name, start, stop, shape):
    if not 0 <= start <= stop <= self.n_rows:
      raise IndexError(f"rows {start}:{stop} of a store of {self.n_rows}")
    out = np.empty((stop - start, *shape), self._arrays[name].dtype.numpy_dtype)
    borders = range(start // self.chunk_rows * self.chunk_rows, stop, self.chunk_rows)
    self._read(name, [(max(at, start), min(at + self.chunk_rows, stop)) for at in borders], out)
    return out

  def rows(self, start, stop):
    """(stop - start, M) rows in the store's dtype.

    Raises:
      IndexError: not 0 <= start <= stop <= n_rows.
      InputError: a shard is missing, cut short or fails its checksum; the message names it.
    """
    return self._span("rows", start, stop, (self.width,))

  def positions(self, start, stop):
    """(stop - start,) int64 positions in train.bin of the tokens these rows belong to."""
    return self._span("positions", start, stop, ())

  def chunk_span(self, chunk):
    """(start, stop) of the rows in chunk number `chunk`."""
    return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n_rows)

  def read_chunks(self, chunks, out):
    """Fills the leading rows of `out` with whole chunks, one after the other; returns their number.

    Args:
      chunks: numbers of chunks, each 0..n_chunks-1.
      out: (at least as many rows, M) in the store's dtype.

    Raises:
      InputError: as `rows`.
    """
    spans = [self.chunk_span(int(chunk)) for chunk in chunks]
    self._read("rows", spans, out)
    return sum(stop - start for start, stop in spans)
