"""Reads an activation store, a sharded zarr3 group, and finds what is wrong with one.

The documentation's page "The activation store" specifies the format; `writer.py` writes stores that are harvested,
`own.py` those that are filled by a loop of the user's.

Axes: N rows of the store, R rows of one shard, M width of the sites read.
"""

import collections
import concurrent.futures
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorstore as ts

from monojax import files
from monojax.activations.chunks import local_chunks
from monojax.activations.folder import IN_FLIGHT, Folder, context
from monojax.activations.layout import PLACE, Layout, from_int8
from monojax.config import InputError, differences, fingerprint, require

FORMAT, VERSION = "monojax-activations", 3
OLDEST_VERSION = 2  # that is read: its header.json and meta.json had no checksum
OWN = "monojax.StoreWriter"  # in the identity of a store that a loop of the user's filled
TOKEN_STRINGS = "token_strings.json"  # what each token id reads like, if the writer was told
SAMPLE_ROWS = 1024  # of the whole store, kept with its statistics
_LOOKED_AT = 1000  # shards whose sizes opening looks at: many would take long, and reading finds any damage
SUMMED_ROWS = 16_384  # of a shard, for its sums: rows of a shard are in random order
_SUM_ROWS = 256  # rows converted to float32 at once: stays in the cache
_SAME = 1e-5  # sums of two machines agree to this
MOST_ROWS = 2**50  # stands for the number of rows while it is not known


def sums_of(rows_RM: np.ndarray) -> dict[str, np.ndarray | np.float64]:
  """Float64 sums over a shard's first rows: their number, of ||x||_2 and ||x||_2^2, shape (), and of x itself, (M,)."""
  norm, square, vector_M, n_rows = 0.0, 0.0, np.zeros(rows_RM.shape[1]), min(len(rows_RM), SUMMED_ROWS)
  for start in range(0, n_rows, _SUM_ROWS):
    x_RM = widened(rows_RM[start:min(start + _SUM_ROWS, n_rows)])
    square_R = np.einsum("rm,rm->r", x_RM, x_RM).astype(np.float64)
    norm += np.sqrt(square_R).sum()
    square += square_R.sum()
    vector_M += x_RM.sum(axis=0)
  return {"n_rows": np.float64(n_rows), "norm": np.float64(norm), "square": np.float64(square), "vector_M": vector_M}


@functools.cache
def _values(dtype):
  """All values of a type of 16 bits, as float32."""
  return np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)


def widened(x: np.ndarray) -> np.ndarray:
  """An array as float32. For 16 bits a table is many times as fast as NumPy's conversion."""
  if x.dtype.itemsize != 2:
    return x.astype(np.float32)
  return np.take(_values(x.dtype), np.ascontiguousarray(x).view(np.uint16), mode="clip")


def all_finite(rows_RM: np.ndarray) -> bool:
  """Whether no number is infinite or NaN. Of 16 bits the exponents are looked at, many times as fast as `isfinite`."""
  if rows_RM.dtype.itemsize != 2:
    return all(np.isfinite(rows_RM[i:i + _SUM_ROWS]).all() for i in range(0, len(rows_RM), _SUM_ROWS))
  infinite = np.array(np.inf, rows_RM.dtype).view(np.uint16)
  bits_RM = np.ascontiguousarray(rows_RM).view(np.uint16)
  return all((bits_RM[i:i + _SUM_ROWS] & 0x7FFF).max() < infinite for i in range(0, len(rows_RM), _SUM_ROWS))


def largest_16(rows_RM: np.ndarray) -> float:
  """The largest |x| of finite numbers of 16 bits, found by their bits, as NumPy is slow with them."""
  bits_RM = np.ascontiguousarray(rows_RM).view(np.uint16)
  largest = max((bits_RM[i:i + _SUM_ROWS] & 0x7FFF).max() for i in range(0, len(rows_RM), _SUM_ROWS))
  return float(largest.view(rows_RM.dtype))


def sums_name(index: int) -> str:
  """The file of a shard's sums; it is written last and says that the shard is durable."""
  return f"sums/{index}.npz"


def missing_shards(folder: Folder, layout: Layout) -> list[int]:
  """The shards that are not durable, or whose files are gone or cut short since."""
  durable = set(folder.names("sums"))
  return [index for index in range(layout.n_shards)
          if sums_name(index).removeprefix("sums/") not in durable or layout.fault(folder, index) is not None]


def faults(place: str | os.PathLike) -> Iterator[tuple[int, str | None]]:
  """Reads every shard of a store, finished or not: yields (shard, what is wrong with it or `None`).

  Sizes, each chunk's checksum, and the sums over the rows are compared with what the writer left. Of a store that
  still grows, only the shards that are written are looked at.

  Raises:
    InputError: there is no store.
  """
  folder = Folder(place)
  folder.reach()
  header = read_description(folder, "header.json")
  if header is None:
    raise _no_store(folder)
  growing = header["n_rows"] is None
  if growing:
    header = {**header, "n_rows": durable_rows(folder, header)}
    if not header["n_rows"]:
      return
  store = ActivationStore(folder, header, list(header["sites"]), described=not growing)
  for index in range(store.layout.n_shards):
    yield index, _fault_of(store, folder, index)


def read_description(folder: Folder, name: str) -> dict | None:
  """What a store's header.json or meta.json says, verified; `None` where there is no such file.

  Raises:
    InputError: it is damaged, or of a version that cannot be read.
  """
  found = folder.read_json(name)
  if found is None:
    return None
  if not isinstance(found, dict):
    raise files.damaged(folder.named(name), "it is no JSON object")
  if found.get("format") != FORMAT or found.get("version") not in range(OLDEST_VERSION, VERSION + 1):
    raise InputError(f"{folder} has format {found.get('format')!r} version {found.get('version')}, "
                     f"this version of monojax reads {FORMAT!r} version {OLDEST_VERSION} to {VERSION}: harvest again")
  return files.unsealed(found, folder.named(name), without=OLDEST_VERSION)


def durable_rows(folder: Folder, header: dict) -> int:
  """Rows of a store that still grows which need not be written again: those of its shards up to the first gap."""
  durable, index = set(folder.names("sums")), 0
  growing = Layout.of({**header, "n_rows": MOST_ROWS})
  while sums_name(index).removeprefix("sums/") in durable and growing.fault(folder, index) is None:
    index += 1
  return index * growing.shard_rows


def _no_store(folder):
  return InputError(f"there is no activation store in {folder}: run the harvest first, or write one with "
                    "monojax.StoreWriter")


def _fault_of(store, folder, index):
  try:
    written = folder.read_npz(sums_name(index))
    if written is None:
      return "it has not been written"
    rows, _ = store.rows(*store.layout.shard_span(index)), store.places(*store.layout.shard_span(index))
  except ValueError as error:  # an InputError, too
    return str(error)
  first = 0
  for site, width in store.layout.sites.items():
    for name, value in sums_of(rows[:, first:first + width]).items():
      if not np.allclose(written.get(f"{site}/{name}", np.nan), value, rtol=_SAME, atol=_SAME * len(rows)):
        return "its rows are not those that were summed when they were written"
    first += width
  return None


def forget(place: str | os.PathLike, index: int) -> None:
  """Has the next run of what wrote the store write a shard again; the store is unfinished until then."""
  folder = Folder(place)
  folder.delete("meta.json")
  folder.delete(sums_name(index))


class ActivationStore:
  """A finished store, open for reading; safe to use from several threads.

  Attributes:
    meta: the dict in meta.json.
    layout: its `Layout`.
    sites: names of the sites that are read, side by side.
    widths: their widths.
    n_rows, width, chunk_rows: N, M = sum of `widths`, and rows that are read together.
    n_chunks: chunks of the whole store; the last may be short.
    dtype: numpy dtype of the rows read; float32 for a store of 8-bit numbers.
  """

  def __init__(self, folder: Folder, meta: dict, sites: Sequence[str], described: bool = True) -> None:
    """Use `ActivationStore.open`, which checks what it opens; `described`: see `Layout.open_arrays`."""
    self.meta, self.layout, self.sites = meta, Layout.of(meta), tuple(sites)
    for site in self.sites:
      require(site in self.layout.sites, "site", site, f"the store in {folder} has {', '.join(self.layout.sites)}")
    self._folder = folder
    self.widths = tuple(self.layout.sites[site] for site in self.sites)
    self.n_rows, self.width, self.chunk_rows = self.layout.n_rows, sum(self.widths), self.layout.chunk_rows
    self.n_chunks = -(-self.n_rows // self.chunk_rows)
    self.dtype = self.layout.given_dtype
    self._arrays = self.layout.open_arrays(folder, described=described)
    self._local = local_chunks(folder, self.layout)
    self._readers = concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, "chunk-reader")

  @classmethod
  def open(cls, place: str | os.PathLike, expected_identity: dict | None = None,
           sites: Sequence[str] | None = None) -> "ActivationStore":
    """Opens the store in `place`; on a disk it looks at the sizes of the first thousand shards, and reads none.

    Args:
      place: what the writer was given: a folder, s3://BUCKET/PATH or gs://BUCKET/PATH.
      expected_identity: where given, the identity the store must have.
      sites: names of the sites to read; by default its first.

    Raises:
      InputError: there is no store, it is unfinished, of another identity or version, has no such site, or a
        shard is missing or has the wrong size.
    """
    folder = Folder(place)
    folder.reach()
    meta, header = read_description(folder, "meta.json"), read_description(folder, "header.json")
    found = meta or header
    if found is None:
      raise _no_store(folder)
    if expected_identity is not None:
      changed = differences(found["identity"], json.loads(json.dumps(expected_identity)))
      if changed:
        raise InputError(f"the store in {folder} was harvested from something else "
                         f"({'; '.join(changed)}): delete that folder and run the harvest again")
    if meta is None and found["identity"].get("written_by") == OWN:
      raise InputError(f"the store in {folder} is unfinished, {durable_rows(folder, found):,} rows are written: run "
                       "again the loop that fills it, which can skip those, and have it call the writer's finish()")
    if meta is None:
      layout = Layout.of(found)
      n_done = layout.n_shards - len(missing_shards(folder, layout))
      raise InputError(f"the store in {folder} is unfinished, harvested {n_done} of "
                       f"{layout.n_shards} shards: run the harvest command again, it continues there")
    store = cls(folder, meta, sites or [next(iter(meta["sites"]))])
    for index in range(min(store.layout.n_shards, _LOOKED_AT)):
      if fault := store.layout.fault(folder, index):
        raise store._damaged(index, fault)
    return store

  def of_sites(self, sites: Sequence[str]) -> "ActivationStore":
    """The same store with other sites to read.

    Raises:
      InputError: it does not have one of them.
    """
    return self if tuple(sites) == self.sites else ActivationStore(self._folder, self.meta, sites)

  def statistics(self) -> dict[str, np.ndarray]:
    """{"SITE/mean_M": the mean row, "SITE/sample_RM": up to 1,024 rows from all over the store}.

    Raises:
      InputError: the file that holds them is damaged or gone.
    """
    found = self._folder.read_npz("stats.npz")
    if found is None:
      raise files.damaged(self._folder.named("stats.npz"), "it is missing")
    return found

  def token_strings(self) -> list[str] | None:
    """What each token id reads like, the string of id i at place i; `None` if the writer was not told."""
    found = self._folder.read_json(TOKEN_STRINGS)
    if found is None or isinstance(found, list):  # version 2 kept the list alone
      return found
    return files.unsealed(found, self._folder.named(TOKEN_STRINGS), without=-1)["strings"]

  def fingerprint(self) -> str:
    """16 hexadecimal digits that stand for the rows: a hash of meta.json and the sites that are read."""
    return fingerprint({"meta": self.meta, "sites": self.sites})

  def _damaged(self, index, reason):
    mend = "experiments/check_store.py --repair finds all that are and harvests them again"
    if self.meta["identity"].get("written_by") == OWN:
      mend = ("monojax.activations.store.faults(PATH) lists all that are; forget(PATH, SHARD) there and another run of "
              "the loop that filled the store write them again")
    return InputError(f"shard {index} of the store in {self._folder} is damaged ({reason}): {mend}")

  def _read(self, begin, spans, out):
    """Fills `out` with what `begin(start, stop, part of out)` starts to read for `spans`, several at a time.

    Args:
      begin: returns (reads under way, what is to be called once they are done).
      spans: (start, stop) pairs of rows, each inside one chunk.
      out: array of as many rows as the spans together.
    """
    pending: collections.deque = collections.deque()
    at = 0
    try:
      for start, stop in spans:
        if len(pending) == IN_FLIGHT:
          self._settle(*pending.popleft())
        pending.append((start, *begin(start, stop, out[at:at + stop - start])))
        at += stop - start
      while pending:
        self._settle(*pending.popleft())
    finally:  # after an error the other reads must not go on writing into `out`
      for _, reads, _ in pending:
        for read in reads:
          read.exception()

  def _settle(self, start, reads, finish):
    failures = [error for read in reads if (error := read.exception()) is not None]
    if failures:
      if not isinstance(failures[0], (ValueError, OSError)):
        raise failures[0]
      index = start // self.layout.shard_rows
      raise self._damaged(index, self.layout.fault(self._folder, index) or failures[0]) from failures[0]
    finish()

  def _begin_array(self, path, start, stop, out):
    """Starts reading entries of an array, of one chunk."""
    array = self.layout.arrays[path]
    if path in self._local and start % array.chunk == 0 and stop - start == array.chunk and out.flags.c_contiguous:
      return [self._readers.submit(self._local[path].read, start // array.chunk, out)], lambda: None
    target = ts.array(out, context=context(), copy=False)
    return [target.write(self._arrays[path][start:stop])], lambda: None

  def _begin_rows(self, start, stop, out_RM):
    """Starts reading the sites' rows, which lie in one chunk, into columns side by side."""
    reads: list = []
    finishes: list = []
    first = 0
    for site, width in zip(self.sites, self.widths, strict=True):
      part_RM = out_RM[:, first:first + width]
      begin = self._begin_int8 if self.layout.dtype == "int8" else self._begin_array
      more, finish = begin(f"sites/{site}", start, stop, part_RM)
      reads, finishes, first = reads + more, [*finishes, finish], first + width
    return reads, lambda: [finish() for finish in finishes]

  def _begin_int8(self, path, start, stop, out_RM):
    site, chunk = path.removeprefix("sites/"), start // self.chunk_rows
    q_RM, row_R = np.empty(out_RM.shape, np.int8), np.empty(len(out_RM), np.float32)
    column_1M = np.empty((1, out_RM.shape[1]), np.float32)
    parts = ((path, start, stop, q_RM), (f"row_scales/{site}", start, stop, row_R),
             (f"column_scales/{site}", chunk, chunk + 1, column_1M))
    return [self._begin_array(*part)[0][0] for part in parts], lambda: from_int8(q_RM, row_R, column_1M[0], out_RM)

  def _span(self, begin, start, stop, shape, dtype):
    if not 0 <= start <= stop <= self.n_rows:
      raise IndexError(f"rows {start}:{stop} of a store of {self.n_rows}")
    out = np.empty((stop - start, *shape), dtype)
    borders = range(start // self.chunk_rows * self.chunk_rows, stop, self.chunk_rows)
    self._read(begin, [(max(at, start), min(at + self.chunk_rows, stop)) for at in borders], out)
    return out

  def rows(self, start: int, stop: int) -> np.ndarray:
    """(stop - start, M) rows, the sites side by side.

    Raises:
      IndexError: not 0 <= start <= stop <= n_rows.
      InputError: a shard is missing, cut short or fails its checksum; the message names it.
    """
    return self._span(self._begin_rows, start, stop, (self.width,), self.dtype)

  def places(self, start: int, stop: int) -> np.ndarray:
    """(stop - start, 4) int32: the id of each row's token, its document, its position there, the document's domain.

    -1 where it is not known.
    """
    begin = lambda first, last, out: self._begin_array("places", first, last, out)
    return self._span(begin, start, stop, (len(PLACE),), np.int32)

  def chunk_span(self, chunk: int) -> tuple[int, int]:
    """(start, stop) of the rows in chunk number `chunk`."""
    return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n_rows)

  def read_chunks(self, chunks: Iterable[int], out: np.ndarray) -> int:
    """Fills the leading rows of `out` with whole chunks, one after the other; returns their number.

    Args:
      chunks: numbers of chunks, each 0..n_chunks-1.
      out: (at least as many rows, M) of the store's `dtype`.

    Raises:
      InputError: as `rows`.
    """
    spans = [self.chunk_span(int(chunk)) for chunk in chunks]
    self._read(self._begin_rows, spans, out)
    return sum(stop - start for start, stop in spans)
