"""What an analysis has collected so far, kept on the disk, so that one that was interrupted goes on from there.

Letters: P firings, J features of a batch.
"""

import collections.abc
import math
import pathlib
import time
import typing
import zlib

import numpy as np

from monojax import files
from monojax.config import InputError

_STATE = "state.npz"
_PATIENCE = 20  # times as long as it took last, so that a large state is kept less often
_FORMAT = 1     # of the files; of another one nothing is taken up
Arrays = dict[str, np.ndarray]


class Stateful(typing.Protocol):
  """What adds up batches: the names of its attributes that hold sums, each an array, a whole number or None so far."""
  STATE: typing.ClassVar[tuple[str, ...]]


class Progress:
  """The batches of `codes.collect` so far: their firings, and the sums of whatever watches them.

  Every now and then the firings since the last time are written to a new file, and then the sums, whose file has the
  checksums of all such files. It is put in place as a whole, so that what is there is of one moment.

  Attributes:
    n_batches, n_rows: how many batches have been collected, and their rows.
  """

  def __init__(self, folder: pathlib.Path, identity: str, sums: collections.abc.Mapping[str, Stateful],
               every_seconds: float = 20.0):
    """Takes up what is in the folder, if it has the same identity; `restored` gives its firings.

    Args:
      folder: is made when something is kept, and removed by `remove`.
      identity: of the settings and inputs of the collection.
      sums: {name: what adds up batches}, which gets the values that were kept.
      every_seconds: how often something is kept at most.
    """
    self.n_batches, self.n_rows = 0, 0
    self._sums_of_files: list[int] = []
    self._folder, self._identity, self._sums, self._every = folder, f"{_FORMAT} {identity}", sums, every_seconds
    self._new: list[np.ndarray] = []
    self._kept_at, self._took = time.monotonic(), 0.0
    self._restore()

  def restored(self) -> collections.abc.Iterator[list[np.ndarray]]:
    """The arrays that `add` was given for each batch that was taken up."""
    for number in range(len(self._sums_of_files)):
      found = np.load(self._file(number))
      start = 0
      while start < len(found):
        n_arrays = found[start]
        ends = start + 1 + n_arrays + np.cumsum(found[start + 1:start + 1 + n_arrays])
        yield [found[end - n:end] for end, n in zip(ends.tolist(), found[start + 1:start + 1 + n_arrays], strict=True)]
        start = int(ends[-1])

  def add(self, arrays: collections.abc.Sequence[np.ndarray], n_rows: int) -> None:
    """Keeps a batch's firings, int32 arrays, once it is time; the sums must hold the batch already.

    Args:
      arrays: what `restored` is to give.
      n_rows: the rows of all batches so far.
    """
    self._new.append(np.concatenate([np.array([len(arrays), *map(len, arrays)], np.int32), *arrays]))
    self.n_batches, self.n_rows = self.n_batches + 1, n_rows
    if time.monotonic() - self._kept_at < max(self._every, _PATIENCE * self._took):
      return
    began = time.monotonic()
    try:
      self._keep()
    except OSError as error:  # such as a full disk
      print(f"what has been analysed so far is not kept: {error}", flush=True)
      self._every = math.inf
      self.remove()
    self._kept_at = time.monotonic()
    self._took = self._kept_at - began

  def remove(self) -> None:
    """Removes what was kept."""
    files.remove(self._folder)

  def _file(self, number: int) -> pathlib.Path:
    return self._folder / f"{number:05d}.npy"

  def _keep(self) -> None:
    self._folder.mkdir(parents=True, exist_ok=True)
    numbers = np.concatenate(self._new)
    with files.replacing(self._file(len(self._sums_of_files))) as file:
      np.save(file, numbers)
    self._new = []
    self._sums_of_files.append(zlib.crc32(numbers.data))
    state: Arrays = {"identity": np.array(self._identity), "n_batches": np.array(self.n_batches),
                     "n_rows": np.array(self.n_rows), "files": np.array(self._sums_of_files, np.uint32)}
    for name, sums in self._sums.items():
      values = {f"{name}.{field}": getattr(sums, field) for field in sums.STATE}
      state |= {key: np.asarray(value) for key, value in values.items() if value is not None}
    files.write_npz(self._folder / _STATE, state)

  def _restore(self) -> None:
    try:
      state = files.read_npz(self._folder / _STATE)
      if str(state["identity"]) != self._identity:
        return
      sums = state["files"].tolist()
      whole = all(zlib.crc32(np.load(self._file(number)).data) == one for number, one in enumerate(sums))
    except (InputError, KeyError, OSError, ValueError):  # there is nothing, or what is there is damaged
      return
    if not whole:
      return
    self.n_batches, self.n_rows, self._sums_of_files = int(state["n_batches"]), int(state["n_rows"]), sums
    for name, sums in self._sums.items():
      for field in sums.STATE:
        value = state.get(f"{name}.{field}")
        if value is not None:
          setattr(sums, field, int(value) if isinstance(getattr(sums, field), int) else value)
