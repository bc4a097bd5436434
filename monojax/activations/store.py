"""Activations on disk: a sharded zarr3 store, written a whole shard at a time, read in chunks.

`docs/store-format.md` specifies the format. No other file imports tensorstore.
Axes: N rows of the store, R rows of one shard, M width of the activation.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import pathlib

import numpy as np
import tensorstore as ts

from monojax import files
from monojax.activations.config import DTYPES
from monojax.config import InputError, differences, require

FORMAT, VERSION = "monojax-activations", 1
WRITES_IN_FLIGHT = 2
READS_IN_FLIGHT = 8
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


def _sums(rows_RM):
  """Float64 sums over a shard's rows: of ||x||_2, of ||x||_2^2, and of x itself (M,)."""
  norm, square, vector_M = 0.0, 0.0, np.zeros(rows_RM.shape[1])
  for start in range(0, len(rows_RM), _SUM_ROWS):
    x_RM = rows_RM[start:start + _SUM_ROWS].astype(np.float64)
    square_R = np.einsum("rm,rm->r", x_RM, x_RM)
    norm += np.sqrt(square_R).sum()
    square += square_R.sum()
    vector_M += x_RM.sum(axis=0)
  return {"norm": np.float64(norm), "square": np.float64(square), "vector_M": vector_M}


class StoreWriter:
  """Writes a store shard by shard; a killed writer's successor continues at `shards_done`.

  `for index in range(writer.shards_done, writer.n_shards): writer.write_shard(...)`, then `finish`. A
  finished store may be finished again. A shard whose file is missing or cut short is not done, nor
  is any after it.

  Attributes:
    n_shards: shards in the whole store.
    shards_done: leading shards that are durable. It advances while writing.
  """

  def __init__(self, directory, n_rows, width, dtype, shard_rows, chunk_rows, identity):
    """Starts the store in `directory`, or continues it.

    Args:
      directory: the store's folder, made if need be.
      n_rows: N, rows of the whole store.
      width: M, numbers in a row.
      dtype: "float16", "bfloat16" or "float32".
      shard_rows: rows in one file, a multiple of `chunk_rows`.
      chunk_rows: rows that are read and checksummed together.
      identity: JSON-able dict saying what the rows are (site, subject fingerprint, ...).

    Raises:
      InputError: `directory` holds a store of another identity or shape, or cannot be written.
    """
    self._layout = Layout(n_rows, width, dtype, shard_rows, chunk_rows)
    self._directory = pathlib.Path(directory).absolute()
    self._header = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self._layout),
                    "identity": json.loads(json.dumps(identity))}
    self.n_shards = self._layout.n_shards
    self.shards_done = self._continue()
    self._next = self.shards_done
    self._arrays = self._layout.open_arrays(self._directory, create=True)
    self._executor = concurrent.futures.ThreadPoolExecutor(WRITES_IN_FLIGHT, "store-writer")
    self._pending = collections.deque()

  def _continue(self):
    """Leading shards that an earlier writer finished; begins progress.json where there is none."""
    progress = files.read_json(self._directory / "progress.json")
    if progress is None:
      if (self._directory / "rows").exists():
        raise InputError(f"{self._directory} holds arrays but no progress.json, so what they are is not "
                         f"known: delete that folder or name another")
      files.write_json(self._directory / "zarr.json", {"zarr_format": 3, "node_type": "group"})
      self._record(0)
      return 0
    recorded = progress.pop("shards_done")
    changed = differences(progress, self._header)
    if changed:
      raise InputError(f"{self._directory} holds another harvest ({'; '.join(changed)}): delete that "
                       f"folder or name another")
    done = 0
    while (done < recorded and self._layout.fault(self._directory, done) is None
           and self._sums_path(done).exists()):
      done += 1
    if done < self.n_shards:
      (self._directory / "meta.json").unlink(missing_ok=True)
    if done < recorded:
      self._record(done)
    return done

  def _record(self, shards_done):
    files.write_json(self._directory / "progress.json", {**self._header, "shards_done": shards_done})

  def _sums_path(self, index):
    return self._directory / "sums" / f"{index}.npz"

  def write_shard(self, index, rows_RM, positions_R):
    """Starts writing shard `index`; waits only while two writes are already under way.

    Args:
      index: `shards_done` at first, then one more each time.
      rows_RM: (R, M) rows in the store's dtype, copied before this returns; R = shard_rows, or what is
        left for the last shard.
      positions_R: (R,) integers, where in train.bin the token of each row is.

    Raises:
      ValueError: not the next shard, or arrays of another shape or dtype.
      InputError: an earlier shard could not be written, or holds a number that is not finite.
    """
    start, stop = self._layout.shard_span(index)
    needed = (stop - start, self._layout.width)
    if index != self._next or index >= self.n_shards:
      raise ValueError(f"shard {index} of {self.n_shards}: the next to be written is {self._next}")
    if rows_RM.shape != needed or rows_RM.dtype != self._arrays["rows"].dtype.numpy_dtype:
      raise ValueError(f"shard {index}: rows {rows_RM.dtype}{list(rows_RM.shape)}, needed "
                       f"{self._layout.dtype}{list(needed)}")
    if positions_R.shape != needed[:1]:
      raise ValueError(f"shard {index}: {positions_R.shape} positions, needed {needed[:1]}")
    while self._pending and (len(self._pending) >= WRITES_IN_FLIGHT or self._pending[0].done()):
      self._settle()
    self._next += 1
    self._pending.append(self._executor.submit(
      self._write, index, np.array(rows_RM), np.array(positions_R, np.int64)))

  def _write(self, index, rows_RM, positions_R):
    """Makes one shard and its sums durable."""
    span = slice(*self._layout.shard_span(index))
    writes = [self._arrays[name][span].write(values, can_reference_source_data_indefinitely=True)
              for name, values in (("rows", rows_RM), ("positions", positions_R))]
    sums = _sums(rows_RM)
    failures = [write.exception() for write in writes]
    if not np.isfinite(sums["square"]):
      raise InputError(f"shard {index} of {self._directory} was given activations that are not finite: "
                       f"beyond the range of {self._layout.dtype}, or the subject is broken; try "
                       f"dtype=bfloat16")
    for failure in failures:
      if failure is not None:
        raise InputError(f"cannot write shard {index} of {self._directory}: {failure}; once that is "
                         f"mended run the harvest again, it continues there") from failure
    files.write_npz(self._sums_path(index), sums)

  def _settle(self):
    """Waits for the oldest write and records it."""
    self._pending[0].result()
    self._pending.popleft()
    self.shards_done += 1
    self._record(self.shards_done)

  def finish(self, extra_meta):
    """Waits for every write, then writes stats.npz and, last of all, meta.json.

    Args:
      extra_meta: JSON-able dict of more entries for meta.json; it cannot replace the format's own.

    Returns:
      The dict in meta.json.

    Raises:
      ValueError: some shards have not been given to `write_shard`. InputError: as `write_shard`.
    """
    if self._next != self.n_shards:
      raise ValueError(f"{self._next} of {self.n_shards} shards were written: not finished")
    while self._pending:
      self._settle()
    self._executor.shutdown()
    total = files.read_npz(self._sums_path(0))
    for index in range(1, self.n_shards):
      sums = files.read_npz(self._sums_path(index))
      total = {name: total[name] + sums[name] for name in total}
    n_rows = self._layout.n_rows
    files.write_npz(self._directory / "stats.npz", {"mean_M": total["vector_M"] / n_rows})
    meta = {**extra_meta, **self._header, "mean_norm": float(total["norm"] / n_rows),
            "mean_square": float(total["square"] / (n_rows * self._layout.width)), "complete": True}
    files.write_json(self._directory / "meta.json", meta)
    return meta


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
    for index in range(self._layout.n_shards):
      if fault := self._layout.fault(directory, index):
        raise self._damaged(index, fault)
    self._arrays = self._layout.open_arrays(directory, create=False)
    self.dtype = self._arrays["rows"].dtype.numpy_dtype

  @classmethod
  def open(cls, directory, expected_identity=None):
    """Opens the store in `directory`; looks at every shard's size, and reads none.

    Args:
      directory: what the writer was given.
      expected_identity: where given, the identity the store must have.

    Raises:
      InputError: there is no store, it is unfinished, of another identity or version, or a shard is
        missing or has the wrong size.
    """
    directory = pathlib.Path(directory).absolute()
    meta = files.read_json(directory / "meta.json")
    progress = files.read_json(directory / "progress.json")
    if meta is None and progress is None:
      raise InputError(f"there is no activation store in {directory}: run the harvest first")
    found = meta or progress
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
      raise InputError(f"{directory} has format {found.get('format')!r} version {found.get('version')}, "
                       f"this version of monojax reads {FORMAT!r} version {VERSION}: harvest again")
    if expected_identity is not None:
      changed = differences(found["identity"], json.loads(json.dumps(expected_identity)))
      if changed:
        raise InputError(f"the store in {directory} was harvested from something else "
                         f"({'; '.join(changed)}): delete that folder and run the harvest again")
    if meta is None:
      n_shards = -(-progress["n_rows"] // progress["shard_rows"])
      raise InputError(f"the store in {directory} is unfinished, harvested {progress['shards_done']} of "
                       f"{n_shards} shards: run the harvest command again, it continues there")
    return cls(directory, meta)

  def _damaged(self, index, reason):
    paths = " and ".join(str(self._directory / name) for name in self._layout.shard_files(index))
    return InputError(f"shard {index} of the store in {self._directory} is damaged ({reason}): delete "
                      f"{paths} and {self._directory / 'meta.json'}, then run the harvest again, it "
                      f"continues at that shard")

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

  def mean(self):
    """(M,) float64 mean of the store's rows."""
    return files.read_npz(self._directory / "stats.npz")["mean_M"]
