"""Random batches of rows that are kept: a source which reads every row once an epoch, and never all at a time.

Letters: B rows of a batch, M numbers in a row, L lanes, J rows of a batch from one lane, R rows of a batch from one
window.
"""

import concurrent.futures
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from monojax.activations.source import RowStore
from monojax.config import require
from monojax.shuffle import permute

# How batches come about, with 10 rows in chunks of 2, batch_rows = 4, buffer_rows = 4 and seed 0:
#
#   chunks as epoch 0 visits them    0      3   |   1      2   |   4
#   their rows                      0 1    6 7  |  2 3    4 5  |  8 9
#   windows                          window 0   |   window 1   |  window 2
#   lanes                          lane 0 lane 1| lane 0 lane 1|  none
#   rows in random order            1 0    6 7  |  2 3    4 5  |  9 8
#   one after the other             1  6  0  7  |  2  4  3  5  |  9 8, and then epoch 1: 5 0 ...
#   batches                         1 0    6 7     2 3    4 5     9 5    8 0
#
# A window is the 4 / 2 = 2 chunks that are in memory together. It has gcd(4, 2) = 2 lanes, and the sequence of rows
# takes one row of each lane in turn. The last window has less than two whole chunks, so it has no lanes: the sequence
# takes its rows in one random order, here 9 8. Every four rows of the sequence are a batch, and in it each lane's rows
# stand together. So a process that holds the second half of each batch needs lane 1 only, and reads half of the chunks.


class ShuffledRows:
  """The rows of a store in an endless random sequence, in which each epoch holds every row exactly once: a `Source`.

  Rows are read in chunks, and every epoch visits the chunks in another random order; a short last chunk comes at its
  end. As many visited chunks as hold `buffer_rows` rows are a window: they are in memory together. The chunks of a
  window are divided among lanes, the rows of each lane are put in a random order, and the sequence takes one row of
  each lane in turn. Batch number `step` is `batch_rows` rows of that sequence, from `step * batch_rows` on; it may
  begin in one window or epoch and end in the next. Lanes are there for jobs of several processes: one that holds a part
  of each batch reads only the chunks of the lanes in that part.

  Any step may be asked for at any time, and gives the same rows. When steps are asked for in turn, the next window is
  read while this one is used. Memory holds two windows and a batch. It is safe to call from several threads.

  Attributes:
    width: M.
    widths: the widths of the sites, which a row holds side by side.
    n_lanes: lanes of a window, a divisor of the rows in a batch and of the chunks in a window.
  """

  def __init__(self, store: RowStore, batch_rows: int, buffer_rows: int, seed: int,
               slots: tuple[int, int] | None = None) -> None:
    """Reads nothing yet.

    Args:
      store: the rows, for instance an `ActivationStore` or what `open_rows` returns.
      batch_rows: B.
      buffer_rows: rows of a window, a multiple of the store's chunk_rows. The more, the better rows are mixed, and the
        more memory is taken.
      seed: non-negative integer that names the order.
      slots: (first, last) of the places in a batch that are filled, for instance `mesh.local_rows(mesh, batch_rows)`;
        the others stay 0. All by default. It changes which chunks are read, and no row's place.

    Raises:
      InputError: a setting breaks its rule.
    """
    require(batch_rows > 0, "batch_rows", batch_rows, "must be positive")
    require(buffer_rows > 0 and buffer_rows % store.chunk_rows == 0, "sae.buffer_rows", buffer_rows,
            f"must be a positive multiple of the store's chunk_rows={store.chunk_rows}")
    require(seed >= 0, "seed", seed, "must not be negative")
    self._store, self._batch_rows, self._seed = store, batch_rows, seed
    self.width, self.widths = store.width, store.widths
    self._window_chunks = buffer_rows // store.chunk_rows
    self.n_lanes = math.gcd(batch_rows, self._window_chunks)
    self._lane_chunks, self._lane_slots = self._window_chunks // self.n_lanes, batch_rows // self.n_lanes
    first, last = slots or (0, batch_rows)
    self._lanes = first // self._lane_slots, -(-last // self._lane_slots)
    self._lane_L1 = np.arange(*self._lanes)[:, None]
    self._slot_LJ = self._lane_L1 * self._lane_slots + np.arange(self._lane_slots)
    self._wanted_LJ = (self._slot_LJ >= first) & (self._slot_LJ < last)
    # Each row's place among the batch's rows in the sequence: row i of the sequence is of lane i mod n_lanes.
    self._inside_LJ = np.arange(self._lane_slots) * self.n_lanes + self._lane_L1
    # Windows of whole chunks are dealt to lanes; what is left, if anything, is one more, which every process reads.
    self._n_full = store.n_rows // store.chunk_rows
    self._n_dealt = self._n_full // self._window_chunks
    self._window_rows = self._window_chunks * store.chunk_rows
    self._n_windows = -(-store.n_rows // self._window_rows)
    shape = (min(self._window_chunks, store.n_chunks) * store.chunk_rows, store.width)
    self._order = functools.lru_cache(3)(self._make_order)
    self._buffers = [np.empty(shape, store.dtype) for _ in range(2)]
    self._held: list[tuple[int, int] | None] = [None, None]  # which (epoch, window) each buffer holds or is being given
    self._fills: list[Any] = [None, None]  # the future of that
    self._current = 0
    self._reader = concurrent.futures.ThreadPoolExecutor(1, "store-reader")
    self._lock = threading.Lock()

  def batch(self, step: int) -> np.ndarray:
    """x_BM: batch number `step`, in the store's dtype; 0 outside `slots`.

    Raises:
      InputError: rows cannot be read, for instance of a damaged shard; also if that was found while reading ahead.
    """
    whole = self._wanted_LJ.sum() == self._batch_rows
    x_BM = (np.empty if whole else np.zeros)((self._batch_rows, self._store.width), self._store.dtype)
    with self._lock:
      for epoch, window, slot_R, place_R in self._pieces(step):
        buffer_NM = self._window(epoch, window)
        if window < self._n_dealt:
          place_R = place_R - self._lanes[0] * self._lane_chunks * self._store.chunk_rows
        if len(slot_R) == self._batch_rows:
          buffer_NM.take(place_R, axis=0, out=x_BM, mode="clip")  # copied once
        else:
          x_BM[slot_R] = buffer_NM[place_R]
    return x_BM

  def indices(self, step: int) -> np.ndarray:
    """int64 (B,): the numbers, in the store, of the rows that `batch(step)` holds; -1 outside `slots`."""
    row_B = np.full(self._batch_rows, -1, np.int64)
    for epoch, window, slot_R, place_R in self._pieces(step):
      visit_R, offset_R = np.divmod(place_R, self._store.chunk_rows)
      row_B[slot_R] = self._chunk(epoch, window * self._window_chunks + visit_R) * self._store.chunk_rows + offset_R
    return row_B

  def sample(self, n_rows: int, seed: int) -> np.ndarray:
    """x_NM: `n_rows` different rows, or all there are, in random order; for estimates such as a geometric median.

    They come from as many random chunks as a window has, or more. One chunk at a time is read.

    Raises:
      InputError: `n_rows` is not positive, or rows cannot be read.
    """
    store = self._store
    require(n_rows > 0, "n_rows", n_rows, "must be positive")
    n_rows = min(n_rows, store.n_rows)
    n_chunks = min(store.n_chunks, max(self._window_chunks, -(-n_rows // store.chunk_rows) + 1))
    chunks = permute(np.arange(n_chunks), store.n_chunks, seed, 0, 0, 0)
    spans = [store.chunk_span(int(chunk)) for chunk in chunks]
    offsets = np.cumsum([0] + [stop - start for start, stop in spans])
    place_J = permute(np.arange(n_rows), int(offsets[-1]), seed, 0, 0, 1)
    sampled = np.empty((n_rows, store.width), store.dtype)
    for (start, stop), offset, end in zip(spans, offsets, offsets[1:], strict=False):
      here = np.flatnonzero((place_J >= offset) & (place_J < end))
      if len(here):
        sampled[here] = store.rows(start, stop)[place_J[here] - offset]
    return sampled

  def _pieces(self, step: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """The parts of batch `step`, one of each window: (epoch, window, places in the batch, places in the window)."""
    n_rows, n_lanes = self._store.n_rows, self.n_lanes
    epoch_LJ, offset_LJ = np.divmod(step * self._batch_rows + self._inside_LJ, n_rows)
    window_LJ = epoch_LJ * self._n_windows + np.minimum(offset_LJ // self._window_rows, self._n_windows - 1)
    for number in range(window_LJ.min(), window_LJ.max() + 1):
      epoch, window = divmod(number, self._n_windows)
      here_LJ = self._wanted_LJ & (window_LJ == number)
      if not here_LJ.any():
        continue
      inside_LJ = offset_LJ - window * self._window_rows
      order = self._order(epoch, window)
      if window < self._n_dealt:
        place_R = order[np.nonzero(here_LJ)[0], inside_LJ[here_LJ] // n_lanes]
      else:
        place_R = order[inside_LJ[here_LJ]]
      yield epoch, window, self._slot_LJ[here_LJ], place_R

  def _make_order(self, epoch, window):
    """The random order of a window's rows, as places in it: (L, rows of a lane), or (rows,) if it is not dealt."""
    if window >= self._n_dealt:
      n_rows = self._store.n_rows - window * self._window_rows
      return permute(np.arange(n_rows), n_rows, self._seed, epoch, window).astype(np.int32)
    lane_rows = self._window_rows // self.n_lanes
    index_LW = np.broadcast_to(np.arange(lane_rows), (len(self._lane_L1), lane_rows))
    order_LW = permute(index_LW, lane_rows, self._seed, epoch, window, self._lane_L1)
    return (order_LW + self._lane_L1 * lane_rows).astype(np.int32)

  def _chunk(self, epoch, visit_J):
    """The numbers of the chunks that an epoch visits as its `visit_J`-th, counted from 0."""
    short_J = visit_J == self._n_full  # a short last chunk is visited last
    return np.where(short_J, visit_J, permute(np.where(short_J, 0, visit_J), max(self._n_full, 1), self._seed, epoch))

  def _chunks(self, epoch, window):
    """The numbers of the chunks of a window that are read, in the order in which the buffer holds them."""
    first, last = 0, self._window_chunks
    if window < self._n_dealt:
      first, last = (lane * self._lane_chunks for lane in self._lanes)
    start = window * self._window_chunks
    return self._chunk(epoch, np.arange(start + first, min(start + last, self._store.n_chunks)))

  def _window(self, epoch, window):
    """The buffer that holds a window, once it is read; begins to read the next window into the other buffer."""
    self._current = self._request((epoch, window))
    try:
      self._fills[self._current].result()
    except BaseException:
      self._held[self._current] = None
      raise
    self._request((epoch, window + 1) if window + 1 < self._n_windows else (epoch + 1, 0))
    return self._buffers[self._current]

  def _request(self, key):
    """The number of the buffer that holds or will hold the window `key`: if need be, the one that is not in use."""
    if key not in self._held:
      other = 1 - self._current
      self._held[other] = key
      self._fills[other] = self._reader.submit(self._fill, key, self._buffers[other])
    return self._held.index(key)

  def _fill(self, key, buffer_NM):
    """Reads the chunks of a window; its order is computed meanwhile, before anybody waits for it."""
    self._order(*key)
    self._store.read_chunks(self._chunks(*key), buffer_NM)
