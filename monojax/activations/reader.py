"""Shuffled batches of a store's rows: a source whose state is the step's number.

Axes: B rows of a batch, M width of the activation, J places within a window.
"""

import concurrent.futures
import threading

import numpy as np

from monojax.config import require
from monojax.shuffle import permute, place_of


class ShuffledRows:
  """An endless shuffled sequence of a store's rows, each exactly once in an epoch.

  In every epoch the store's chunks are visited in a new random order. Each `buffer_rows` worth of
  visited chunks is a window, whose rows are permuted among themselves. A batch is a slice of the
  sequence, across the borders of windows and epochs. Any step may be asked for at any time and gives
  the same rows; in consecutive steps the next window is read while this one is used. Memory: two
  windows and a batch. Safe to call from several threads.

  Attributes:
    width: M.
  """

  def __init__(self, store, batch_rows, buffer_rows, seed):
    """Reads nothing yet.

    Args:
      store: an `ActivationStore`.
      batch_rows: B.
      buffer_rows: rows of a window, a multiple of the store's chunk_rows.
      seed: non-negative integer that names the order.

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
    self._n_windows = -(-store.n_chunks // self._window_chunks)
    shape = (min(self._window_chunks, store.n_chunks) * store.chunk_rows, store.width)
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
    x_BM = np.empty((self._batch_rows, self._store.width), self._store.dtype)
    at = 0
    with self._lock:
      for epoch, window, place_J in self._pieces(step):
        out_JM = x_BM[at:at + len(place_J)]
        self._window(epoch, window).take(place_J, axis=0, out=out_JM, mode="clip")
        at += len(place_J)
    return x_BM

  def indices(self, step):
    """int64 (B,) row numbers in the store: `batch(step)` is the rows with these numbers."""
    found = []
    for epoch, window, place_J in self._pieces(step):
      chunks = self._chunks(epoch, window)
      starts, stops = np.array([self._store.chunk_span(int(chunk)) for chunk in chunks]).T
      offsets = np.cumsum(stops - starts) - (stops - starts)
      slot_J = np.searchsorted(offsets, place_J, side="right") - 1
      found.append(starts[slot_J] + place_J - offsets[slot_J])
    return np.concatenate(found)

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
    """(epoch, window, places in the window) of batch `step`, in order; the batch is their sequence."""
    n_rows = self._store.n_rows
    at, end = step * self._batch_rows, (step + 1) * self._batch_rows
    while at < end:
      epoch, offset = divmod(at, n_rows)
      window = self._window_at(epoch, offset)
      first, last = self._first(epoch, window), self._first(epoch, window + 1)
      n = min(last - offset, end - at)
      place_J = permute(np.arange(offset - first, offset - first + n), last - first,
                        self._seed, epoch, window)
      yield epoch, window, place_J
      at += n

  def _chunks(self, epoch, window):
    """Numbers of the chunks in a window, in the order in which its rows are concatenated."""
    start = window * self._window_chunks
    visits = np.arange(start, min(start + self._window_chunks, self._store.n_chunks))
    return permute(visits, self._store.n_chunks, self._seed, epoch)

  def _first(self, epoch, window):
    """Offset in the epoch of a window's first row: every earlier chunk is full, but one may be short."""
    store = self._store
    start, short = store.chunk_span(store.n_chunks - 1)
    missing = store.chunk_rows - (short - start)
    visited = min(window * self._window_chunks, store.n_chunks)
    if missing and place_of(store.n_chunks - 1, store.n_chunks, self._seed, epoch) < visited:
      return visited * store.chunk_rows - missing
    return visited * store.chunk_rows

  def _window_at(self, epoch, offset):
    """The window that holds the row at `offset` in the epoch."""
    window = offset // (self._window_chunks * self._store.chunk_rows)
    return window + (offset >= self._first(epoch, window + 1))

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
      self._fills[other] = self._reader.submit(
        self._store.read_chunks, self._chunks(*key), self._buffers[other])
    return self._held.index(key)
