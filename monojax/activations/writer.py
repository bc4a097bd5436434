"""Writes an activation store, a whole shard at a time.

Axes: N rows of the store, R rows of one shard, M width of the activation.
"""

import collections
import concurrent.futures
import dataclasses
import json
import pathlib

import numpy as np

from monojax import files
from monojax.activations.store import FORMAT, VERSION, Layout, missing_shards, sums_of, sums_path
from monojax.config import InputError, differences

WRITES_IN_FLIGHT = 2


class StoreWriter:
  """Writes a store shard by shard; a killed writer's successor writes what is missing.

  `for index in writer.todo: writer.write_shard(...)`, then `finish`. A finished store may be finished again.

  Attributes:
    n_shards: shards in the whole store.
    todo: the shards for this writer that are not there yet, rising.
  """

  def __init__(self, directory, n_rows, width, dtype, shard_rows, chunk_rows, identity,
               process=0, n_processes=1):
    """Starts the store in `directory`, or continues it.

    Args:
      directory: the store's folder, made if need be.
      n_rows: N, rows of the whole store.
      width: M, numbers in a row.
      dtype: "float16", "bfloat16" or "float32".
      shard_rows: rows in one file, a multiple of `chunk_rows`.
      chunk_rows: rows that are read and checksummed together.
      identity: JSON-able dict saying what the rows are (site, subject fingerprint, ...).
      process, n_processes: this writer does every `n_processes`-th shard, from number `process` on.

    Raises:
      InputError: `directory` holds a store of another identity or shape, or cannot be written.
    """
    self._layout = Layout(n_rows, width, dtype, shard_rows, chunk_rows)
    self._directory = pathlib.Path(directory).absolute()
    self._header = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self._layout),
                    "identity": json.loads(json.dumps(identity))}
    self.n_shards = self._layout.n_shards
    self._begin()
    missing = missing_shards(self._directory, self._layout)
    self.todo = [index for index in missing if index % n_processes == process]
    if missing:
      (self._directory / "meta.json").unlink(missing_ok=True)
    self._next = 0
    self._arrays = self._layout.open_arrays(self._directory, create=True)
    self._executor = concurrent.futures.ThreadPoolExecutor(WRITES_IN_FLIGHT, "store-writer")
    self._pending = collections.deque()

  def _begin(self):
    """Writes header.json, or compares with the one that is there."""
    header = files.read_json(self._directory / "header.json")
    if header is not None:
      if changed := differences(header, self._header):
        raise InputError(f"{self._directory} holds another harvest ({'; '.join(changed)}): delete that "
                         f"folder or name another")
    elif (self._directory / "rows").exists():
      raise InputError(f"{self._directory} holds arrays but no header.json, so what they are is not "
                       f"known: delete that folder or name another")
    else:
      files.write_json(self._directory / "zarr.json", {"zarr_format": 3, "node_type": "group"})
      files.write_json(self._directory / "header.json", self._header)

  def write_shard(self, index, rows_RM, positions_R):
    """Starts writing shard `index`; waits only while two writes are already under way.

    Args:
      index: the next of `todo`.
      rows_RM: (R, M) rows in the store's dtype, copied before this returns; R = shard_rows, or what is
        left for the last shard.
      positions_R: (R,) integers, where in train.bin the token of each row is.

    Raises:
      ValueError: not the next shard, or arrays of another shape or dtype.
      InputError: an earlier shard could not be written, or holds a number that is not finite.
    """
    start, stop = self._layout.shard_span(index)
    needed = (stop - start, self._layout.width)
    if index not in self.todo[self._next:self._next + 1]:
      raise ValueError(f"shard {index} of {self.n_shards}: next to be written are {self.todo[self._next:][:3]}")
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
    sums = sums_of(rows_RM)
    failures = [write.exception() for write in writes]
    if not np.isfinite(sums["square"]):
      raise InputError(f"shard {index} of {self._directory} was given activations that are not finite: "
                       f"beyond the range of {self._layout.dtype}, or the subject is broken; try "
                       f"dtype=bfloat16")
    for failure in failures:
      if failure is not None:
        raise InputError(f"cannot write shard {index} of {self._directory}: {failure}; once that is "
                         f"mended run the harvest again, it continues there") from failure
    files.write_json(sums_path(self._directory, index), sums, by_each=True)

  def _settle(self):
    """Waits for the oldest write."""
    self._pending[0].result()
    self._pending.popleft()

  def flush(self):
    """Waits until this writer's shards are durable.

    Raises:
      InputError: as `write_shard`.
    """
    while self._pending:
      self._settle()

  def finish(self, extra_meta):
    """Once every shard is durable, writes stats.npz and, last of all, meta.json.

    Args:
      extra_meta: JSON-able dict of more entries for meta.json; it cannot replace the format's own.

    Returns:
      The dict in meta.json.

    Raises:
      ValueError: some shards have not been given to `write_shard`. InputError: as `write_shard`.
    """
    if self._next != len(self.todo):
      raise ValueError(f"{self._next} of {len(self.todo)} missing shards were written: not finished")
    self.flush()
    self._executor.shutdown()
    norm, square, vector_M = 0.0, 0.0, np.zeros(self._layout.width)
    for index in range(self.n_shards):
      sums = files.read_json(sums_path(self._directory, index))
      norm, square, vector_M = norm + sums["norm"], square + sums["square"], vector_M + np.array(sums["vector_M"])
    n_rows = self._layout.n_rows
    files.write_npz(self._directory / "stats.npz", {"mean_M": vector_M / n_rows})
    meta = {**extra_meta, **self._header, "mean_norm": norm / n_rows,
            "mean_square": square / (n_rows * self._layout.width), "complete": True}
    files.write_json(self._directory / "meta.json", meta)
    return meta
