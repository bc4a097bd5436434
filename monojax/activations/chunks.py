"""Uncompressed arrays on a local disk: whole chunks read straight into the caller's memory, shards written from it.

All else is done by tensorstore, which computes checksums in software and copies what it reads and writes: on a disk as
fast as a core does that, this is the faster one, and it needs no memory of its own.
"""

import functools
import os

import google_crc32c
import numpy as np

from monojax import files

_INDEXES_KEPT = 256
_ABSENT = 2**64 - 1  # offset and size of a chunk that a short shard does not have


class LocalChunks:
  """Reads chunks of one array by their numbers, and writes its shards; safe to use from several threads."""

  def __init__(self, folder, name, array):
    """Opens nothing yet.

    Args:
      folder: the store's `Folder`, on a disk.
      name: the array's path in it.
      array: its `layout.Array`.
    """
    self._path = lambda shard: folder.path / "/".join([name, "c", str(shard), *["0"] * len(array.trailing)])
    self._array, self._in_shard = array, array.shard // array.chunk
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

  def write(self, shard, values):
    """Writes shard number `shard`, whole or not at all, from its entries in order; a last chunk is filled up.

    Raises:
      OSError: it cannot be written.
    """
    index, offset = np.full((self._in_shard, 2), _ABSENT, "<u8"), 0
    with files.replacing(self._path(shard), by_each=True) as file:
      for inner, start in enumerate(range(0, len(values), self._array.chunk)):
        part = values[start:start + self._array.chunk]
        if len(part) < self._array.chunk:
          whole = np.full((self._array.chunk, *self._array.trailing), float(self._array.fill)).astype(values.dtype)
          whole[:len(part)] = part
          part = whole
        n_bytes = self._write_checked(file, part)
        if hasattr(os, "posix_fadvise"):  # has Linux begin to write this to the disk: the end need not wait for all
          os.posix_fadvise(file.fileno(), offset, n_bytes, os.POSIX_FADV_DONTNEED)
        index[inner] = offset, n_bytes
        offset += n_bytes
      self._write_checked(file, index)

  def _write_checked(self, file, values):
    """Writes an array and its CRC-32C; returns their size."""
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    file.write(content)
    file.write(google_crc32c.value(content).to_bytes(4, "little"))
    return len(content) + 4

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


def local_chunks(folder, layout):
  """{path: `LocalChunks`} of a store's arrays; empty if they are compressed or not on a disk."""
  if folder.path is None or layout.compression != "none":
    return {}
  return {path: LocalChunks(folder, path, array) for path, array in layout.arrays.items()}
