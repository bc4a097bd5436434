"""Writes an activation store, a whole shard at a time.

Axes: N rows of the store, R rows of one shard, M width of a site.
"""

import collections
import concurrent.futures
import dataclasses
import json

import numpy as np

from monojax.activations.chunks import local_chunks
from monojax.activations.folder import Folder
from monojax.activations.layout import PLACE, from_int8, to_int8
from monojax.activations.store import (
  FORMAT,
  SAMPLE_ROWS,
  SUMMED_ROWS,
  VERSION,
  all_finite,
  missing_shards,
  sums_name,
  sums_of,
)
from monojax.config import InputError, differences

WRITES_IN_FLIGHT = 3  # so that the disk has work while a processor sums and checks


class StoreWriter:
  """Writes a store shard by shard; a killed writer's successor writes what is missing.

  `for index in writer.todo: writer.write_shard(...)`, then `finish`. A finished store may be finished again.

  Attributes:
    layout: the store's `Layout`.
    todo: the shards for this writer that are not there yet, rising.
  """

  def __init__(self, place, layout, identity, process=0, n_processes=1):
    """Starts the store in `place`, or continues it.

    Args:
      place: a folder, made if need be, or s3://BUCKET/PATH or gs://BUCKET/PATH.
      layout: `Layout`.
      identity: JSON-able dict saying what the rows are (sites, subject fingerprint, ...).
      process, n_processes: this writer does every `n_processes`-th shard, from number `process` on.

    Raises:
      InputError: `place` holds a store of another identity or shape, or cannot be written.
    """
    self.layout = layout
    self._folder = Folder(place)
    self._header = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(layout),
                    "identity": json.loads(json.dumps(identity))}
    self._begin()
    missing = missing_shards(self._folder, layout)
    self.todo = [index for index in missing if index % n_processes == process]
    if missing:
      self._folder.delete("meta.json")
    self._next = 0
    self._arrays = layout.open_arrays(self._folder, create=True)
    self._local = local_chunks(self._folder, layout)
    self._executor = concurrent.futures.ThreadPoolExecutor(WRITES_IN_FLIGHT, "store-writer")
    self._pending = collections.deque()

  def _begin(self):
    """Writes header.json, or compares with the one that is there."""
    header = self._folder.read_json("header.json")
    if header is not None:
      if changed := differences(header, self._header):
        raise InputError(f"{self._folder} holds another harvest ({'; '.join(changed)}): delete that "
                         f"folder or name another")
    elif self._folder.names("sites"):
      raise InputError(f"{self._folder} holds arrays but no header.json, so what they are is not "
                       f"known: delete that folder or name another")
    else:
      self._folder.write_json("zarr.json", {"zarr_format": 3, "node_type": "group"})
      self._folder.write_json("header.json", self._header)

  def write_shard(self, index, rows, places_RP):
    """Starts writing shard `index`; waits only while three writes are already under way.

    Args:
      index: the next of `todo`.
      rows: {site: (R, M) rows in the layout's `given_dtype`}; R = shard_rows, or what is left for the last shard.
        They must stay as they are until `flush`.
      places_RP: (R, 4) int32, as `ActivationStore.places`.

    Raises:
      ValueError: not the next shard, or arrays of another shape or dtype.
      InputError: an earlier shard could not be written, or holds a number that is not finite.
    """
    start, stop = self.layout.shard_span(index)
    if index not in self.todo[self._next:self._next + 1]:
      raise ValueError(f"shard {index} of {self.layout.n_shards}: next to be written are {self.todo[self._next:][:3]}")
    found = {site: (rows_RM.shape, rows_RM.dtype) for site, rows_RM in rows.items()}
    needed = {site: ((stop - start, width), self.layout.given_dtype) for site, width in self.layout.sites.items()}
    if found != needed:
      raise ValueError(f"shard {index}: rows {found}, needed {needed}")
    if (places_RP.shape, places_RP.dtype) != ((stop - start, len(PLACE)), np.int32):
      raise ValueError(f"shard {index}: places {places_RP.dtype}{places_RP.shape}, needed one of int32 a row")
    while self._pending and (len(self._pending) >= WRITES_IN_FLIGHT or self._pending[0].done()):
      self._settle()
    self._next += 1
    self._pending.append(self._executor.submit(self._write, index, rows, places_RP))

  def _write(self, index, rows, places_RP):
    """Makes one shard and its sums durable."""
    start, stop = self.layout.shard_span(index)
    parts, kept = {"places": (start, stop, places_RP)}, {}
    n_sampled = -(-SAMPLE_ROWS // self.layout.n_shards)
    for site, rows_RM in rows.items():
      if not all_finite(rows_RM):
        raise InputError(f"shard {index} of {self._folder} was given activations of {site} that are not finite: "
                         f"beyond the range of {self.layout.dtype}, or the subject is broken; try dtype=bfloat16")
      if self.layout.dtype == "int8":
        more, rows_RM, kept[f"{site}/rounding"] = self._int8_parts(site, start, rows_RM)
        parts |= more
      else:
        parts[f"sites/{site}"] = start, stop, rows_RM
      kept |= {f"{site}/{name}": value for name, value in sums_of(rows_RM).items()}
      kept[f"{site}/sample_RM"] = np.array(rows_RM[:n_sampled], np.float32)
    try:
      self._write_arrays(index, parts)
    except (ValueError, OSError) as error:
      raise InputError(f"cannot write shard {index} of {self._folder}: {error}; once that is "
                       f"mended run the harvest again, it continues there") from error
    self._folder.write_npz(sums_name(index), kept, by_each=True)

  def _write_arrays(self, index, parts):
    """Writes a shard's part of each array."""
    if self._local:
      for path, (_, _, values) in parts.items():
        self._local[path].write(index, values)
      return
    writes = [self._arrays[path][first:last].write(values, can_reference_source_data_indefinitely=True)
              for path, (first, last, values) in parts.items()]
    for failure in [write.exception() for write in writes]:  # once all have ended
      if failure is not None:
        raise failure

  def _int8_parts(self, site, start, rows_RM):
    """A site's rows in 8 bits.

    Returns:
      {array's path: (first, last, values)}; the first `SUMMED_ROWS` rows as they will be read; and the sum of the
      squares of what rounding changed in those.
    """
    step, n_rows, width = self.layout.chunk_rows, *rows_RM.shape
    n_chunks, first = -(-n_rows // step), start // step
    q_RM, row_R = np.empty(rows_RM.shape, np.int8), np.empty(n_rows, np.float32)
    column_CM = np.empty((n_chunks, width), np.float32)
    read_RM = np.empty((min(n_rows, SUMMED_ROWS), width), np.float32)
    rounding = 0.0
    for i, at in enumerate(range(0, n_rows, step)):
      here = slice(at, at + step)
      q_RM[here], row_R[here], column_CM[i] = to_int8(rows_RM[here])
      part_RM = read_RM[here]
      if len(part_RM):
        summed = slice(at, at + len(part_RM))
        from_int8(q_RM[summed], row_R[summed], column_CM[i], part_RM)
        changed_RM = part_RM - rows_RM[summed]
        rounding += np.einsum("rm,rm->", changed_RM, changed_RM, dtype=np.float64)
    return {f"sites/{site}": (start, start + n_rows, q_RM), f"row_scales/{site}": (start, start + n_rows, row_R),
            f"column_scales/{site}": (first, first + n_chunks, column_CM)}, read_RM, np.float64(rounding)

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
      ValueError: some shards have not been given to `write_shard`.
      InputError: as `write_shard`, or what was written is gone.
    """
    if self._next != len(self.todo):
      raise ValueError(f"{self._next} of {len(self.todo)} missing shards were written: not finished")
    self.flush()
    self._executor.shutdown()
    if missing := missing_shards(self._folder, self.layout):
      raise InputError(f"shards {missing[:5]} of {self._folder} have vanished since they were written: "
                       "run the harvest again, it makes them once more")
    total, samples = {}, collections.defaultdict(list)
    for index in range(self.layout.n_shards):
      for name, value in self._folder.read_npz(sums_name(index)).items():
        if name.endswith("/sample_RM"):
          samples[name].append(value)
        else:
          total[name] = total.get(name, 0.0) + value
    self._folder.write_npz("stats.npz", {
        **{f"{site}/mean_M": total[f"{site}/vector_M"] / total[f"{site}/n_rows"] for site in self.layout.sites},
        **{name: np.concatenate(parts) for name, parts in samples.items()}})
    scale = {site: {"mean_norm": float(total[f"{site}/norm"] / total[f"{site}/n_rows"]),
                    "mean_square": float(total[f"{site}/square"] / (total[f"{site}/n_rows"] * width))}
             for site, width in self.layout.sites.items()}
    if self.layout.dtype == "int8":
      for site in scale:
        changed = total[f"{site}/rounding"] / (total[f"{site}/n_rows"] * self.layout.sites[site])
        scale[site]["rounding_error"] = float(np.sqrt(changed / max(scale[site]["mean_square"], 1e-300)))
    meta = {**extra_meta, **self._header, "scale": scale, "complete": True}
    self._folder.write_json("meta.json", meta)
    return meta
