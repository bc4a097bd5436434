"""Writes an activation store, a whole shard at a time.

Axes: N rows of the store, R rows of one shard, M width of a site.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Mapping

import numpy as np

from monojax import files
from monojax.activations.chunks import local_chunks
from monojax.activations.folder import Folder
from monojax.activations.layout import PLACE, Layout, from_int8, to_int8
from monojax.activations.store import (
  FORMAT,
  SAMPLE_ROWS,
  SUMMED_ROWS,
  VERSION,
  all_finite,
  largest_16,
  missing_shards,
  read_description,
  sums_name,
  sums_of,
)
from monojax.config import InputError, differences

_SMALL = 1e-5  # numbers below this have errors of more than 0.3 % in float16
WRITES_IN_FLIGHT = 3  # so that the disk has work while a processor sums and checks


def header_of(layout: Layout, identity: Mapping) -> dict:
  """The content of header.json."""
  return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(layout),
          "identity": json.loads(json.dumps(identity))}


def begin(folder: Folder, header: dict) -> None:
  """Writes the first files of a store, which say what it is to be.

  Raises:
    InputError: there are arrays of which no header.json says what they are, or the folder cannot be written.
  """
  if folder.names("sites"):
    raise InputError(f"{folder} holds arrays but no header.json, so what they are is not known: delete that folder or "
                     "name another")
  folder.write_json("zarr.json", {"zarr_format": 3, "node_type": "group"})
  folder.write_json("header.json", files.sealed(header))


class ShardSink:
  """Makes shards durable, several at a time, in threads of its own; it does not ask whether they are needed."""

  def __init__(self, folder: Folder, layout: Layout, arrays: Mapping) -> None:
    """Writes nothing yet.

    Args:
      folder: the store's.
      layout: `Layout`.
      arrays: what `Layout.open_arrays` returned.
    """
    self._folder, self._layout, self._arrays = folder, layout, arrays
    self._local = local_chunks(folder, layout)
    self._executor = concurrent.futures.ThreadPoolExecutor(WRITES_IN_FLIGHT, "store-writer")
    self._pending: collections.deque[concurrent.futures.Future] = collections.deque()

  def put(self, index: int, rows: Mapping[str, np.ndarray], places_RP: np.ndarray, sample_rows: int) -> None:
    """Starts writing shard `index`; waits only while three writes are already under way.

    Args:
      index: of the shard.
      rows: {site: (R, M) rows in the layout's `given_dtype`}; only the last shard of a store has less than shard_rows.
        They must stay as they are until `flush`.
      places_RP: (R, 4) int32, as `ActivationStore.places`.
      sample_rows: the first rows that are kept beside the shard's sums.

    Raises:
      OSError: an earlier shard could not be written.
      InputError: an earlier shard holds a number that is not finite.
    """
    self.settle(WRITES_IN_FLIGHT - 1)
    self._pending.append(self._executor.submit(self._write, index, rows, places_RP, sample_rows))

  def settle(self, most_left: int) -> int:
    """Waits until at most so many writes are under way; returns how many still are, later ones perhaps done.

    Raises:
      OSError, InputError: as `put`.
    """
    while self._pending and (len(self._pending) > most_left or self._pending[0].done()):
      self._pending[0].result()
      self._pending.popleft()
    return len(self._pending)

  def close(self) -> None:
    """Ends the threads once what they write is written."""
    self._executor.shutdown()

  def _write(self, index, rows, places_RP, sample_rows):
    """Makes one shard and its sums durable."""
    start = index * self._layout.shard_rows
    stop = start + len(places_RP)
    parts, kept = {"places": (start, stop, places_RP)}, {}
    for site, rows_RM in rows.items():
      if not all_finite(rows_RM):
        raise InputError(f"shard {index} of {self._folder} was given activations of {site} that are not finite: "
                         f"beyond the range of {self._layout.dtype}, or the subject is broken; try dtype=bfloat16")
      if self._layout.dtype == "int8":
        more, rows_RM, kept[f"{site}/rounding"] = self._int8_parts(site, start, rows_RM)
        parts |= more
      else:
        parts[f"sites/{site}"] = start, stop, rows_RM
      if self._layout.dtype == "float16" and 0 < largest_16(rows_RM) < _SMALL:
        raise InputError(f"shard {index} of {self._folder} was given activations of {site} that are too small for "
                         "float16, which rounds what is below 6e-8 to 0: take dtype=bfloat16, or multiply them")
      kept |= {f"{site}/{name}": value for name, value in sums_of(rows_RM).items()}
      kept[f"{site}/sample_RM"] = np.array(rows_RM[:sample_rows], np.float32)
    try:
      self._write_arrays(index, parts)
    except (ValueError, OSError) as error:
      raise OSError(f"cannot write shard {index} of {self._folder}: {error}; once that is mended run the same again, "
                    "it continues there") from error
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
    step, (n_rows, width) = self._layout.chunk_rows, rows_RM.shape
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


class ShardWriter:
  """Writes a store whose number of rows is known, shard by shard; after a kill the next one writes what is missing.

  `for index in writer.todo: writer.write_shard(...)`, then `finish`. A finished store may be finished again.

  Attributes:
    layout: the store's `Layout`.
    todo: the shards for this writer that are not there yet, rising.
  """

  def __init__(self, place: str | os.PathLike, layout: Layout, identity: Mapping, process: int = 0,
               n_processes: int = 1) -> None:
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
    self._folder.reach(to_write=True)
    self._header = header_of(layout, identity)
    found = read_description(self._folder, "header.json")
    if found is None:
      begin(self._folder, self._header)
    elif changed := differences({**found, "version": VERSION}, self._header):
      raise InputError(f"{self._folder} holds another store ({'; '.join(changed)}): delete that folder or name another")
    missing = missing_shards(self._folder, layout)
    self.todo = [index for index in missing if index % n_processes == process]
    if missing:
      self._folder.delete("meta.json")
    self._next = 0
    self._sink = ShardSink(self._folder, layout, layout.open_arrays(self._folder, create=True))

  def write_shard(self, index: int, rows: Mapping[str, np.ndarray], places_RP: np.ndarray) -> None:
    """Starts writing shard `index`; waits only while three writes are already under way.

    Args:
      index: the next of `todo`.
      rows: {site: (R, M) rows in the layout's `given_dtype`}; R = shard_rows, or what is left for the last shard.
        They must stay as they are until `flush`.
      places_RP: (R, 4) int32, as `ActivationStore.places`.

    Raises:
      ValueError: not the next shard, or arrays of another shape or dtype.
      OSError: an earlier shard could not be written.
      InputError: an earlier shard holds a number that is not finite.
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
    self._sink.put(index, rows, places_RP, -(-SAMPLE_ROWS // self.layout.n_shards))
    self._next += 1

  def flush(self) -> None:
    """Waits until this writer's shards are durable.

    Raises:
      OSError, InputError: as `write_shard`.
    """
    self._sink.settle(0)

  def finish(self, extra_meta: Mapping) -> dict:
    """Once every shard is durable, writes stats.npz and, last of all, meta.json.

    Args:
      extra_meta: JSON-able dict of more entries for meta.json; it cannot replace the format's own.

    Returns:
      The dict in meta.json.

    Raises:
      ValueError: some shards have not been given to `write_shard`.
      OSError, InputError: as `write_shard`, or what was written is gone.
    """
    if self._next != len(self.todo):
      raise ValueError(f"{self._next} of {len(self.todo)} missing shards were written: not finished")
    self.flush()
    self._sink.close()
    if missing := missing_shards(self._folder, self.layout):
      raise InputError(f"shards {missing[:5]} of {self._folder} have vanished since they were written: "
                       "run the same again, it makes them once more")
    return finish_store(self._folder, self.layout, self._header, extra_meta)


def finish_store(folder: Folder, layout: Layout, header: dict, extra_meta: Mapping) -> dict:
  """Adds up the shards' sums and samples, and writes stats.npz and then meta.json, whose dict it returns."""
  n_sampled = -(-SAMPLE_ROWS // layout.n_shards)
  total: dict[str, np.ndarray] = {}
  samples: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  for index in range(layout.n_shards):
    for name, value in folder.read_npz(sums_name(index)).items():
      if name.endswith("/sample_RM"):
        samples[name].append(value[:n_sampled])
      else:
        total[name] = total.get(name, 0.0) + value
  folder.write_npz("stats.npz", {
      **{f"{site}/mean_M": total[f"{site}/vector_M"] / total[f"{site}/n_rows"] for site in layout.sites},
      **{name: np.concatenate(parts) for name, parts in samples.items()}})
  scale = {site: {"mean_norm": float(total[f"{site}/norm"] / total[f"{site}/n_rows"]),
                  "mean_square": float(total[f"{site}/square"] / (total[f"{site}/n_rows"] * width))}
           for site, width in layout.sites.items()}
  if layout.dtype == "int8":
    for site in scale:
      changed = total[f"{site}/rounding"] / (total[f"{site}/n_rows"] * layout.sites[site])
      scale[site]["rounding_error"] = float(np.sqrt(changed / max(scale[site]["mean_square"], 1e-300)))
  meta = {**extra_meta, **header, "scale": scale, "complete": True}
  folder.write_json("meta.json", files.sealed(meta))
  return meta
