"""Shuffled batches of a store's rows: a source whose state is the step's number.

Axes: B rows of a batch, M width of the activation, L lanes, J rows of a batch from one lane, H rows of a batch from
one window.
"""

import concurrent.futures
import functools
import math
import threading

import numpy as np

from monojax.config import require
from monojax.shuffle import permute


class ShuffledRows:
  """An endless shuffled sequence of a store's rows, each exactly once in an epoch.

  In every epoch the store's chunks are visited in a new random order, a short last chunk at the end. Each
  `buffer_rows` worth of visited chunks is a window. A window's chunks are dealt to lanes, whose rows are permuted
  among themselves, and a batch takes as many rows of each lane: so a process of several, which needs some rows of
  each batch, reads some lanes. A batch is a slice of the sequence, across the borders of windows and epochs.

  Any step may be asked for at any time and gives the same rows; in consecutive steps the next window is read
  while this one is used. Memory: two windows and a batch. Safe to call from several threads.

  Attributes:
    width: M.
    n_lanes: lanes; they divide the batch and the window's chunks.
  """

  def __init__(self, store, batch_rows, buffer_rows, seed, slots=None):
    """Reads nothing yet.

    Args:
      store: an `ActivationStore`.
      batch_rows: B.
      buffer_rows: rows of a window, a multiple of the store's chunk_rows.
      seed: non-negative integer that names the order.
      slots: (first, last) of the places in a batch that are filled, the others staying 0; by default all. It
        changes what is read and nothing else.

    Raises:
      InputError: a setting breaks its rule.
    """
    require(batch_rows > 0, "batch_rows", batch_rows, "must be positive")
    require(buffer_rows > 0 and buffer_rows % store.chunk_rows == 0, "sae.buffer_rows", buffer_rows,
            f"must be a positive multiple of the store's chunk_rows={store.chunk_rows}")
    require(seed >= 0, "seed", seed, "must not be negative")
    self._store, self._batch_rows, self._seed = store, batch_rows, seed
    self.width = store.width
    self._window_chunks = buffer_rows // store.chunk_rows
    self.n_lanes = math.gcd(batch_rows, self._window_chunks)
    self._lane_chunks, self._lane_slots = self._window_chunks // self.n_lanes, batch_rows // self.n_lanes
    first, last = slots or (0, batch_rows)
    self._lanes = first // self._lane_slots, -(-last // self._lane_slots)
    self._lane_L1 = np.arange(*self._lanes)[:, None]
    self._slot_LJ = self._lane_L1 * self._lane_slots + np.arange(self._lane_slots)
    self._wanted_LJ = (self._slot_LJ >= first) & (self._slot_LJ < last)
    # Row i of the sequence is one of lane i mod n_lanes, and in its batch it stands among that lane's slots.
    self._inside_LJ = np.arange(self._lane_slots) * self.n_lanes + self._lane_L1
    # Whole windows are dealt to lanes; what is left, if anything, is one more window that every process reads.
    self._n_full = store.n_rows // store.chunk_rows
    self._n_dealt = self._n_full // self._window_chunks
    self._window_rows = self._window_chunks * store.chunk_rows
    self._n_windows = -(-store.n_rows // self._window_rows)
    shape = (min(self._window_chunks, store.n_chunks) * store.chunk_rows, store.width)
    self._order = functools.lru_cache(3)(self._make_order)
    self._buffers = [np.empty(shape, store.dtype) for _ in range(2)]
    self._held = [None, None]  # which (epoch, window) each buffer holds or is being given
    self._fills = [None, None]  # the future of that
    self._current = 0
    self._reader = concurrent.futures.ThreadPoolExecutor(1, "store-reader")
    self._lock = threading.Lock()

  def batch(self, step):
    """x_BM, batch number `step` in the store's dtype.

    Raises:
      InputError: a shard turned out to be damaged, here or while reading ahead.
    """
    whole = self._wanted_LJ.sum() == self._batch_rows
    x_BM = (np.empty if whole else np.zeros)((self._batch_rows, self._store.width), self._store.dtype)
    with self._lock:
      for epoch, window, slot_H, place_H in self._pieces(step):
        buffer_NM = self._window(epoch, window)
        if window < self._n_dealt:
          place_H = place_H - self._lanes[0] * self._lane_chunks * self._store.chunk_rows
        if len(slot_H) == self._batch_rows:
          buffer_NM.take(place_H, axis=0, out=x_BM, mode="clip")  # copied once
        else:
          x_BM[slot_H] = buffer_NM[place_H]
    return x_BM

  def indices(self, step):
    """int64 (B,) row numbers in the store: `batch(step)` is the rows with these numbers; -1 where it is not filled."""
    row_B = np.full(self._batch_rows, -1, np.int64)
    for epoch, window, slot_H, place_H in self._pieces(step):
      visit_H, offset_H = np.divmod(place_H, self._store.chunk_rows)
      row_B[slot_H] = self._chunk(epoch, window * self._window_chunks + visit_H) * self._store.chunk_rows + offset_H
    return row_B

  def sample(self, n_rows, seed):
    """(n_rows, M) different rows, or all there are, from as many random chunks as a window has or more.

    Reads one chunk at a time. For estimates such as a geometric median.

    Raises:
      InputError: a damaged shard.
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

  def _pieces(self, step):
    """(epoch, window, slots of the batch, places in the window) of batch `step`, window by window."""
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
        place_H = order[np.nonzero(here_LJ)[0], inside_LJ[here_LJ] // n_lanes]
      else:
        place_H = order[inside_LJ[here_LJ]]
      yield epoch, window, self._slot_LJ[here_LJ], place_H

  def _make_order(self, epoch, window):
    """Places in a window of each lane's rows in turn, (L, rows of a lane); of all rows where it is not dealt."""
    if window >= self._n_dealt:
      n_rows = self._store.n_rows - window * self._window_rows
      return permute(np.arange(n_rows), n_rows, self._seed, epoch, window).astype(np.int32)
    lane_rows = self._window_rows // self.n_lanes
    index_LW = np.broadcast_to(np.arange(lane_rows), (len(self._lane_L1), lane_rows))
    order_LW = permute(index_LW, lane_rows, self._seed, epoch, window, self._lane_L1)
    return (order_LW + self._lane_L1 * lane_rows).astype(np.int32)

  def _chunk(self, epoch, visit_J):
    """Numbers of the chunks that an epoch visits as its `visit_J`-th."""
    short_J = visit_J == self._n_full  # it comes last
    return np.where(short_J, visit_J, permute(np.where(short_J, 0, visit_J), max(self._n_full, 1), self._seed, epoch))

  def _chunks(self, epoch, window):
    """Numbers of the chunks of a window that are read, in the order in which its rows are concatenated."""
    first, last = 0, self._window_chunks
    if window < self._n_dealt:
      first, last = (lane * self._lane_chunks for lane in self._lanes)
    start = window * self._window_chunks
    return self._chunk(epoch, np.arange(start + first, min(start + last, self._store.n_chunks)))

  def _window(self, epoch, window):
    """The buffer that holds a window, once it is read; begins reading the one after it."""
    self._current = self._request((epoch, window))
    try:
      self._fills[self._current].result()
    except BaseException:
      self._held[self._current] = None
      raise
    self._request((epoch, window + 1) if window + 1 < self._n_windows else (epoch + 1, 0))
    return self._buffers[self._current]

  def _request(self, key):
    """Number of the buffer that holds or will hold `key`; never gives up the current buffer's."""
    if key not in self._held:
      other = 1 - self._current
      self._held[other] = key
      self._fills[other] = self._reader.submit(self._fill, key, self._buffers[other])
    return self._held.index(key)

  def _fill(self, key, buffer_NM):
    """Reads a window's chunks, and has its order at hand."""
    self._order(*key)
    self._store.read_chunks(self._chunks(*key), buffer_NM)
