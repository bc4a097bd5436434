"""Rows of activations that monojax did not make: arrays in memory and in files, opened for shuffled reading.

Letters: N rows, M numbers in a row, R rows that are read at once.
"""

import bisect
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from monojax.activations.array_files import SUFFIXES, Part, open_file, part_of
from monojax.activations.arrays import as_numpy, flat
from monojax.activations.source import RowStore
from monojax.activations.store import ActivationStore, all_finite
from monojax.config import InputError, require

# A chunk is a few rows, because neighbours in an array mostly come from one text and must not meet in a batch; it is
# read at once, so on a disk it should not be tiny either.
_CHUNK_BYTES, _MIN_CHUNKS = 2**17, 2048
_FINGERPRINT_ROWS = 1024


def open_rows(x: object, key: str | None = None) -> RowStore:
  """Opens activations for reading, wherever they are; `ShuffledRows` makes a source of the result.

  Args:
    x: one of
      an array of NumPy, JAX or PyTorch, or anything with `__array__` or `__dlpack__`: (N, M), or with more leading
        axes, for instance (sequences, positions, M), all of which count rows;
      the path of a .npy, .npz or .safetensors file, of which only the rows that are asked for are read (from a memory
        map of the file, some disks read far more);
      a folder of such files, whose rows follow each other in the order of the files' names;
      the folder or URL of a finished activation store;
      a `RowStore`, which is returned as it is.
    key: the name of the array, where a file holds several; of a store, the name of the site, by default the first.

  Returns:
    A `RowStore`. float16, bfloat16 and float32 rows stay what they are, other real numbers become float32.

  Raises:
    InputError: there is nothing there, or what is there is not rows of real numbers.
  """
  if isinstance(x, RowStore):
    return x
  if isinstance(x, (str, os.PathLike)):
    return _open_path(os.fspath(x), key)
  require(key is None, "key", key, "names an array in a file or a site of a store; this is an array itself")
  return ArrayRows([part_of(flat(as_numpy(x, "x"), "x"), "x")])


def _open_path(place, key):
  path = pathlib.Path(place)
  if "://" in place or any((path / name).exists() for name in ("header.json", "meta.json")):
    return ActivationStore.open(place, sites=None if key is None else [key])
  require(path.exists(), "path", place, "there is no such file or folder")
  if not path.is_dir():
    return ArrayRows([open_file(path, key)])
  files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
  require(files, "path", place, f"the folder holds no activation store and no files that end in {', '.join(SUFFIXES)}")
  return ArrayRows([open_file(file, key) for file in files])


def chunk_rows_of(n_rows: int, row_bytes: int) -> int:
  """Rows in a chunk: a power of two, at most 128 KiB, and so few that there are 2,048 chunks or one for each row."""
  most = min(_CHUNK_BYTES // row_bytes, n_rows // _MIN_CHUNKS)
  return 2 ** (max(most, 1).bit_length() - 1)


class ArrayRows:
  """The rows of some arrays, one array after the other: a `RowStore`.

  Attributes:
    n_rows, width, widths, chunk_rows, n_chunks, dtype: see `RowStore`; the arrays count as one site.
  """

  def __init__(self, parts: Sequence[Part]) -> None:
    """Reads nothing yet.

    Raises:
      InputError: the parts' rows differ in width.
    """
    for part in parts:
      require(part.width == parts[0].width, f"width of {part.name}", part.width,
              f"{parts[0].name} has rows of {parts[0].width} numbers, and all must have as many")
    self._parts = list(parts)
    self._start_P = [0, *itertools.accumulate(part.n_rows for part in parts)]
    dtypes = {part.dtype for part in parts}
    self.dtype: np.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    self.n_rows, self.width = self._start_P[-1], parts[0].width
    self.widths = (self.width,)
    self.chunk_rows = chunk_rows_of(self.n_rows, self.width * self.dtype.itemsize)
    self.n_chunks = -(-self.n_rows // self.chunk_rows)

  def chunk_span(self, chunk: int) -> tuple[int, int]:
    """(start, stop) of the rows in chunk number `chunk`."""
    return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n_rows)

  def rows(self, start: int, stop: int) -> np.ndarray:
    """(stop - start, M) rows.

    Raises:
      IndexError: not 0 <= start <= stop <= n_rows.
      InputError: a file cannot be read, or a number is not finite; the message names the row.
    """
    if not 0 <= start <= stop <= self.n_rows:
      raise IndexError(f"rows {start}:{stop} of {self.n_rows}")
    out_RM = np.empty((stop - start, self.width), self.dtype)
    self._fill([(start, stop)], out_RM)
    return out_RM

  def read_chunks(self, chunks: Iterable[int], out: np.ndarray) -> int:
    """Fills the leading rows of `out` with whole chunks, one after the other; returns the number of rows.

    Raises:
      InputError: as `rows`.
    """
    spans = [self.chunk_span(int(chunk)) for chunk in chunks]
    return self._fill(spans, out)

  def fingerprint(self) -> str:
    """16 hexadecimal digits: a hash of the number, width and type of the rows and of about a thousand of them.

    It is that of the rows and not of where they lie: an array, and the file that it was saved to, have the same.
    """
    found = hashlib.sha256(json.dumps([self.n_rows, self.width, self.dtype.name]).encode())
    for row in np.unique(np.linspace(0, self.n_rows - 1, _FINGERPRINT_ROWS).astype(np.int64)).tolist():
      found.update(self.rows(row, row + 1).tobytes())
    return found.hexdigest()[:16]

  def _fill(self, spans, out_RM):
    """Fills the leading rows of `out_RM` with spans of rows; returns the number of rows."""
    at = 0
    for start, stop in spans:
      for part, first, last in self._in_parts(start, stop):
        try:
          with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 becomes infinite, and is found
            out_RM[at:at + last - first] = part.read(first, last)
        except Exception as error:  # of a file that is gone or has changed
          raise InputError(f"cannot read rows {first} to {last - 1} of {part.name}: {error}") from error
        at += last - first
    if not all_finite(out_RM[:at]):
      self._refuse(spans, out_RM[:at])
    return at

  def _in_parts(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
    """(part, start in it, stop in it) of each part that some of the rows start..stop-1 lie in."""
    number = bisect.bisect_right(self._start_P, start) - 1
    while start < stop:
      last = min(stop, self._start_P[number + 1])
      yield self._parts[number], start - self._start_P[number], last - self._start_P[number]
      start, number = last, number + 1

  def _refuse(self, spans, found_RM):
    """Raises `InputError` for the first row that holds a number which is not finite."""
    finite_R = np.isfinite(found_RM.astype(np.float32)).all(axis=1)
    row = np.concatenate([np.arange(*span) for span in spans])[np.argmin(finite_R)]
    part, at, _ = next(self._in_parts(int(row), int(row) + 1))
    raise InputError(f"row {at} of {part.name} holds a number that is not finite (NaN, infinite, or too large for "
                     f"{self.dtype}): leave such rows out, or find out where they come from")
