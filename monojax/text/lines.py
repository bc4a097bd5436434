"""The lines of a text file, whatever its compression and encoding, read in bounded memory.

A file is read in blocks. Each compressed block is small, since a kilobyte of zstd can stand for 32 megabytes of text.
"""

import codecs
import io
import lzma
import typing
import zlib
from collections.abc import Iterator

import zstandard

from monojax.config import InputError
from monojax.text.problems import Problems
from monojax.text.sources import Source

_COMPRESSED_BLOCK = 1 << 10
_BLOCK = 1 << 20  # the most text bytes that a decompressor is asked for at a time, where it can be asked
_BUFFER = 1 << 18
_HEAD = 1 << 16  # the bytes of a file by which its encoding is told
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` needs to be decompressed
_XZ_MEMORY = 1 << 30
_DECOMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def lines(source: Source, compression: str, limit: int, in_pieces: bool,
          problems: Problems) -> Iterator[tuple[str, str]]:
  """Yields each line of a file as ("file:line", text with its end).

  Args:
    source: the file.
    compression: the suffix of its compression, or "".
    limit: the bytes of the longest line that is read at once.
    in_pieces: whether longer lines come in pieces, each of which counts as a line; otherwise they are skipped.
    problems: counts what is repaired or skipped.

  Raises:
    InputError: the file is not in an encoding that is known.
    OSError: the file cannot be read; the error names it.
  """
  number, is_first = 1, True
  try:
    with open_text(source, compression) as file:
      while True:
        location = f"{source.name}:{number}"
        line = file.readline(limit)
        if not line:
          return
        if len(line) >= limit:
          line = _completed(file, line)
        number += line.endswith(b"\n")
        if len(line) >= limit and not in_pieces and not line.endswith(b"\n"):
          problems.add(f"line of more than {limit:,} bytes (skipped)", location)
          while line and not line.endswith(b"\n"):
            line = file.readline(_BLOCK)
          number += 1
          continue
        try:
          text = line.decode()
        except UnicodeDecodeError:
          problems.add("line with broken UTF-8 (replaced)", location)
          text = line.decode(errors="replace")
        if is_first:
          text, is_first = text.removeprefix("\ufeff"), False
        yield location, text
  except _DECOMPRESSION_ERRORS as error:
    problems.add("file broken off", f"{source.name}:{number}: {type(error).__name__}: {error}")
  except OSError as error:
    raise OSError(error.errno, f"cannot be read: {error.strerror}", source.name) from error


def _completed(file: "io.BufferedReader[typing.Any]", line: bytes) -> bytes:
  """The beginning of a line, and what follows it of its last character, or of an end of line of two characters."""
  for _ in range(3):  # a character of UTF-8 can need three more bytes
    after = file.peek(1)[:1]
    if after and (after[0] & 0xC0 == 0x80 or line.endswith(b"\r") and after == b"\n"):
      line += file.read(1)
  return line


def check(source: Source, compression: str) -> None:
  """Raises `InputError` if a file's first bytes are not text in an encoding that is known."""
  try:
    open_text(source, compression).close()
  except _DECOMPRESSION_ERRORS:  # `lines` reads as far as it can, and counts the problem
    pass


def open_text(source: Source, compression: str) -> "io.BufferedReader[typing.Any]":
  """A file's text in UTF-8, open for reading.

  Raises:
    InputError: the file is not in an encoding that is known.
  """
  raw: io.BufferedReader[typing.Any] = io.BufferedReader(io.FileIO(source.path), _BUFFER)
  if compression:
    raw = io.BufferedReader(_Blocks(_decompressed(raw, compression), raw), _BUFFER)
  try:
    encoding = encoding_of(raw.peek(_HEAD)[:_HEAD], source.name)
  except BaseException:
    raw.close()
    raise
  if encoding == "utf-16":
    return io.BufferedReader(_Blocks(_transcoded(raw), raw), _BUFFER)
  return raw


def encoding_of(head: bytes, name: str) -> str:
  """The encoding of a file, "utf-8" or "utf-16", by its first bytes.

  Raises:
    InputError: it is another one, or the file is not text. The message calls the file by `name`.
  """
  remedy = "convert it to UTF-8, for instance with iconv, or leave it out"
  if head.startswith(_UTF32):
    raise InputError(f"tokens.paths: {name!r} is in UTF-32: {remedy}")
  if head.startswith(_UTF16):
    return "utf-16"
  if head.count(0) * 100 > len(head):
    raise InputError(f"tokens.paths: {name!r} is not text, or in UTF-16 or UTF-32 without a byte order mark: "
                     f"{head.count(0):,} of its first {len(head):,} bytes are zero: {remedy}")
  if any(escape in head for escape in (b"\x1b$B", b"\x1b$@", b"\x1b$)C")):
    raise InputError(f"tokens.paths: {name!r} is in ISO-2022: {remedy}")
  text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
  broken = text.count("\ufffd") - head.count("\ufffd".encode())
  whole = sum(not c.isascii() for c in text) - text.count("\ufffd") if broken >= 3 else 0
  if broken >= 3 and broken > whole:
    raise InputError(f"tokens.paths: {name!r} is not in UTF-8, but in Latin-1 or another encoding, or is not text: "
                     f"in its first {len(head):,} bytes, {broken:,} characters are broken and {whole:,} beyond ASCII "
                     f"are whole: {remedy}")
  return "utf-8"


def _transcoded(file: "io.BufferedReader[typing.Any]") -> Iterator[bytes]:
  """Yields a file in UTF-16, whose byte order mark is read from it, as blocks of UTF-8."""
  decoder = codecs.getincrementaldecoder("utf-16")("replace")
  while block := file.read(_BUFFER):
    yield decoder.decode(block).encode()
  yield decoder.decode(b"", final=True).encode()


def _decompressed(file: "io.BufferedReader[typing.Any]", compression: str) -> Iterator[bytes]:
  """Yields blocks of the decompressed bytes of a file, which holds one or more compressed streams.

  It reads every format alike, and unlike the file objects of some libraries it raises an error where the last stream is
  cut short.
  """
  zstd = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
  new = {".gz": lambda: zlib.decompressobj(wbits=31), ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
         ".zst": zstd.decompressobj}[compression]
  decompressor: typing.Any = None
  while block := file.read(_COMPRESSED_BLOCK):
    while block:
      if decompressor is None:
        block = block.lstrip(b"\0")  # zeros between streams are padding
        if not block:
          break
        decompressor = new()
      yield from _bounded(decompressor, block, compression)
      block = decompressor.unused_data if decompressor.eof else b""
      decompressor = None if decompressor.eof else decompressor
  if decompressor is not None:
    raise EOFError("the compressed stream is truncated")


def _bounded(decompressor: typing.Any, block: bytes, compression: str) -> Iterator[bytes]:
  """Yields what a compressed block stands for, in blocks of about `_BLOCK` bytes; zstd's have at most 32 megabytes."""
  if compression == ".zst":
    yield decompressor.decompress(block)
  elif compression == ".xz":
    yield decompressor.decompress(block, _BLOCK)
    while not decompressor.eof and not decompressor.needs_input:
      yield decompressor.decompress(b"", _BLOCK)
  else:
    text = decompressor.decompress(block, _BLOCK)
    yield text
    while len(text) == _BLOCK:
      text = decompressor.decompress(decompressor.unconsumed_tail, _BLOCK)
      yield text


class _Blocks(io.RawIOBase):
  """A file that consists of blocks of bytes; an error of their iterator is raised once all before it is read."""

  def __init__(self, blocks: Iterator[bytes], raw: "io.BufferedReader[typing.Any]") -> None:
    self._raw = raw
    self._blocks = blocks
    self._block = memoryview(b"")
    self._error: Exception | None = None

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: typing.Any) -> int:
    n_read = 0
    while n_read < len(buffer) and self._error is None:
      if not self._block:
        try:
          block = next(self._blocks, None)
        except Exception as error:
          self._error = error
          break
        if block is None:
          break
        self._block = memoryview(block)
      n = min(len(buffer) - n_read, len(self._block))
      buffer[n_read:n_read + n] = self._block[:n]
      self._block = self._block[n:]
      n_read += n
    if not n_read and self._error is not None:
      raise self._error
    return n_read

  def close(self) -> None:
    self._raw.close()
    super().close()
