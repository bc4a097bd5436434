"""Whole chunks of an uncompressed array on a local disk, read straight into the caller's memory.

All else is read by tensorstore, which computes checksums in software and copies what it reads: on a disk as fast as a
core does that, this is the faster one.
"""

import functools
import os

import google_crc32c
import numpy as np

_INDEXES_KEPT = 256


class LocalChunks:
  """Reads chunks of one array by their numbers; safe to use from several threads."""

  def __init__(self, folder, name, array):
    """Opens nothing yet.

    Args:
      folder: the store's `Folder`, on a disk.
      name: the array's path in it.
      array: its `layout.Array`.
    """
    self._path = lambda shard: folder.path / "/".join([name, "c", str(shard), *["0"] * len(array.trailing)])
    self._in_shard = array.shard // array.chunk
    self._index = functools.lru_cache(_INDEXES_KEPT)(self._read_index)

  def read(self, chunk, out):
    """Fills `out`, contiguous and as large as a whole chunk, with chunk number `chunk`.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is cut short or fails its checksum.
    """
    shard, inner = divmod(chunk, self._in_shard)
    offset, n_bytes = self._index(shard)[inner].tolist()
    content = out.reshape(-1).view(np.uint8)
    if n_bytes != len(content) + 4:
      raise ValueError(f"{self._path(shard)}: chunk {chunk} has {n_bytes} bytes instead of {len(content) + 4}")
    descriptor = os.open(self._path(shard), os.O_RDONLY)
    try:
      self._read_checked(descriptor, content, offset, shard)
    finally:
      os.close(descriptor)

  def _read_index(self, shard):
    """(offset, bytes) of each chunk in a shard's file: at its end, with a checksum."""
    index = np.empty(16 * self._in_shard, np.uint8)
    descriptor = os.open(self._path(shard), os.O_RDONLY)
    try:
      self._read_checked(descriptor, index, os.fstat(descriptor).st_size - len(index) - 4, shard)
    finally:
      os.close(descriptor)
    return index.view("<u8").reshape(-1, 2)

  def _read_checked(self, descriptor, content, offset, shard):
    """Fills `content` from a file and compares its CRC-32C, which follows."""
    checksum = bytearray(4)
    if offset < 0 or os.preadv(descriptor, [content, checksum], offset) != len(content) + 4:
      raise ValueError(f"{self._path(shard)} ends too soon")
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
      raise ValueError(f"{self._path(shard)} fails its CRC-32C checksum")
