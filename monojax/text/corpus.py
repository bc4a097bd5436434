"""The corpus: documents from files or a Hugging Face dataset, read one by one in a fixed order and bounded memory."""

import dataclasses
import glob
import io
import json
import lzma
import os
import pathlib
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import zstandard

from monojax.config import InputError
from monojax.text.config import TextConfig

SAMPLE = "sample"  # the name of the source that is read where no paths are given
_SAMPLE_PATH = pathlib.Path(__file__).parent / "sample" / "sample.jsonl.xz"
_HUGGINGFACE = "hf:"
_COMPRESSED: dict[str, Callable[[], typing.Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}
_DECOMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_COMPRESSION_RATIO = 4  # a guess at text bytes per compressed byte, for progress bars only
_PLAIN_CHARACTERS = 16 * 1024  # the longest document of a plain file; longer files become several documents
_LONGEST_CHARACTERS = 1024 * 1024  # the longest document of any other source; longer ones become several
_PLAIN_LINE_BYTES = 1024 * 1024  # the longest line of a plain file that is read at once; longer ones come in pieces
_JSON_LINE_BYTES = 256 * 1024 * 1024  # the longest line of JSON; longer ones count as malformed
_FIELDS_REMEMBERED = 20  # names of fields that an error message lists at most


class Document(typing.NamedTuple):
  """A document of the corpus.

  Attributes:
    text: its text, which UTF-8 can encode.
    domain: the name of its domain, or `None`.
  """
  text: str
  domain: str | None


@dataclasses.dataclass(frozen=True)
class Source:
  """A file or dataset to read.

  Attributes:
    name: what messages and records call it.
    path: what is opened.
    n_bytes: an estimate of the bytes of text in it.
  """
  name: str
  path: str
  n_bytes: int


class Problems:
  """What was skipped or repaired while reading: how many problems of each kind there were, and where the first was."""

  def __init__(self) -> None:
    self.counts: dict[str, int] = {}
    self.first: dict[str, str] = {}
    self.fields: set[str] = set()

  def add(self, kind: str, location: str) -> None:
    """Counts one problem; `location` says where it is, for instance "file:line"."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    self.first.setdefault(kind, location)

  def saw_fields(self, names: Iterable[str]) -> None:
    """Remembers the names of the fields of a record without text, so that an error message can list them."""
    if len(self.fields) < _FIELDS_REMEMBERED:
      self.fields.update(sorted(names)[:_FIELDS_REMEMBERED])

  def summary(self) -> dict[str, dict[str, typing.Any]]:
    """The problems for JSON: {kind: {"count": number, "first": "file:line"}}."""
    return {kind: {"count": n, "first": self.first[kind]} for kind, n in sorted(self.counts.items())}

  def message(self) -> str:
    """The problems as one line for people, which is empty where there were none."""
    lines = [f"{n} x {kind} (first: {self.first[kind]})" for kind, n in sorted(self.counts.items())]
    return "; ".join(lines)

  def no_documents(self) -> InputError:
    """The error for a corpus in which no document can be used."""
    cause = self.message() or "the files hold no text"
    if self.fields:
      cause += f"; fields seen: {', '.join(sorted(self.fields))} (choose with --tokens.text_field)"
    return InputError(f"tokens.paths: no usable document: {cause}")


def resolve(paths: Sequence[str]) -> list[Source]:
  """The sources that paths name, each once, sorted by path.

  Args:
    paths: files, directories, which are searched with all they contain, globs, or "hf:NAME[:SPLIT]". An empty list
      stands for the sample that comes with monojax.

  Raises:
    InputError: a path is missing, unreadable or of an unknown kind, a directory or glob holds nothing
      to read, or every file is empty.
  """
  if not paths:
    return [Source(SAMPLE, str(_SAMPLE_PATH), _SAMPLE_PATH.stat().st_size * _COMPRESSION_RATIO)]
  sources = {}
  for path in paths:
    if path.startswith(_HUGGINGFACE):
      sources[path] = Source(path, path, _open_dataset(path).info.dataset_size or 0)
      continue
    for file in map(os.path.normpath, _expand(path)):
      sources[file] = Source(file, file, _check_file(file))
  found = [sources[path] for path in sorted(sources)]
  if not any(source.n_bytes or source.path.startswith(_HUGGINGFACE) for source in found):
    raise InputError(f"tokens.paths={list(paths)}: every file is empty ({len(found)} read)")
  return found


def _expand(path: str) -> list[str]:
  """The files that a file name, directory or glob stands for."""
  if os.path.isdir(path):
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
             if _kind(name)[0]]
    if not found:
      raise InputError(f"tokens.paths: the directory {path!r} holds no *.jsonl or *.txt file "
                       "(optionally .gz, .xz or .zst)")
    return found
  if os.path.exists(path):
    return [path]
  if glob.has_magic(path):
    found = [file for file in glob.glob(path, recursive=True) if not os.path.isdir(file)]
    if not found:
      raise InputError(f"tokens.paths: no file matches {path!r}")
    return found
  raise InputError(f"tokens.paths: there is no file {path!r}")


def _kind(path: str) -> tuple[str, str]:
  """The kind of a file by its name, ".jsonl", ".txt" or "" for any other, and the suffix of its compression or ""."""
  stem, suffix = os.path.splitext(path)
  compression = suffix if suffix in _COMPRESSED else ""
  kind = os.path.splitext(stem)[1] if compression else suffix
  return kind if kind in (".jsonl", ".txt") else "", compression


def _check_file(path: str) -> int:
  """An estimate of the bytes of text in a file; raises `InputError` if it cannot be read."""
  kind, compression = _kind(path)
  if not kind:
    raise InputError(f"tokens.paths: {path!r} must end in .jsonl or .txt, optionally followed by "
                     f"{', '.join(_COMPRESSED)}")
  if not os.path.isfile(path):
    raise InputError(f"tokens.paths: {path!r} is not a regular file")
  try:
    with open(path, "rb"):
      return os.path.getsize(path) * (_COMPRESSION_RATIO if compression else 1)
  except OSError as error:
    raise InputError(f"tokens.paths: {path!r} cannot be read: {error.strerror}") from error


def _open_dataset(path: str) -> typing.Any:
  """The streamed Hugging Face dataset that "hf:NAME[:SPLIT]" names."""
  try:
    import datasets
  except ImportError as error:
    raise InputError(f"tokens.paths: {path!r} needs: pip install 'monojax[huggingface]'") from error
  name, _, split = path.removeprefix(_HUGGINGFACE).partition(":")
  try:
    return datasets.load_dataset(name, split=split or "train", streaming=True)
  except Exception as error:  # the library raises many kinds, network errors among them
    raise InputError(f"tokens.paths: {path!r} cannot be opened: {type(error).__name__}: {error}") from error


def documents(config: TextConfig, problems: Problems) -> Iterator[Document]:
  """Yields every document of the corpus that can be used, always in the same order.

  A plain file of more than about 16,000 characters, and any other document of more than about a million, becomes
  several documents, cut after a paragraph, a line or a word.

  Args:
    config: which text is read.
    problems: counts what is repaired or skipped.

  Raises:
    InputError: paths are wrong (see `resolve`), or the corpus has been read and held no document that can be used.
  """
  n_bytes = n_documents = 0
  for source in resolve(config.paths):
    for location, document in _read(source, config, problems):
      if not document.text or document.text.isspace():
        problems.add("empty document", location)
        continue
      yield document
      n_documents += 1
      n_bytes += len(document.text.encode())
      if config.max_bytes and n_bytes >= config.max_bytes:
        return
  if not n_documents:
    raise problems.no_documents()


def _read(source: Source, config: TextConfig, problems: Problems) -> Iterator[tuple[str, Document]]:
  """Yields the documents of one source, each with its location."""
  if source.path.startswith(_HUGGINGFACE):
    for i, record in enumerate(_open_dataset(source.path)):
      yield from _from_record(record, f"{source.name}:{i}", source.name, config, problems)
    return
  kind, compression = _kind(source.path)
  limit = _PLAIN_LINE_BYTES if kind == ".txt" else _JSON_LINE_BYTES
  lines = _lines(source, compression, limit, problems)
  file_domain = os.path.basename(source.path).removesuffix(compression).removesuffix(kind)
  if kind == ".txt":
    yield from _from_plain(lines, source, file_domain)
    return
  for location, line in lines:
    try:
      record = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
      problems.add("malformed JSON line", location)
      continue
    if record is not None:
      yield from _from_record(record, location, file_domain, config, problems)


def _from_plain(lines: Iterable[tuple[str, str]], source: Source, domain: str) -> Iterator[tuple[str, Document]]:
  """Yields the documents that a plain file is cut into, each with its location."""
  text, start = "", f"{source.name}:1"
  for location, line in lines:
    text += line
    while len(text) > _PLAIN_CHARACTERS:
      cut = _cut(text, _PLAIN_CHARACTERS)
      yield start, Document(text[:cut], domain)
      text, start = text[cut:], location
  if text:
    yield start, Document(text, domain)


def _from_record(record: typing.Any, location: str, file_domain: str, config: TextConfig,
                 problems: Problems) -> Iterator[tuple[str, Document]]:
  """Yields the documents that one JSON object, or row of a dataset, is cut into, each with its location."""
  if not isinstance(record, dict):
    problems.add("JSON line that is not an object", location)
    return
  text = record.get(config.text_field)
  if not isinstance(text, str):
    missing = config.text_field not in record
    problems.add(f"no field {config.text_field!r}" if missing else f"{config.text_field!r} is not a string",
                 location)
    problems.saw_fields(map(str, record))
    return
  text = _encodable(text, location, problems)
  domain = record.get(config.domain_field, file_domain) if config.domain_field else file_domain
  if domain is not None:
    domain = _encodable(str(domain), location, problems)
  while len(text) > _LONGEST_CHARACTERS:
    cut = _cut(text, _LONGEST_CHARACTERS)
    yield location, Document(text[:cut], domain)
    text = text[cut:]
  yield location, Document(text, domain)


def _encodable(text: str, location: str, problems: Problems) -> str:
  """A text that UTF-8 can encode: halves of surrogate pairs, which JSON's escapes can leave alone, are replaced."""
  try:
    text.encode()
    return text
  except UnicodeEncodeError:
    problems.add("lone surrogate (replaced)", location)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut(text: str, bound: int) -> int:
  """Where to cut a text: after the last paragraph, else line, else word that ends between bound / 2 and `bound`."""
  for mark in ("\n\n", "\n", " "):
    at = text.rfind(mark, bound // 2, bound)
    if at >= 0:
      return at + len(mark)
  return bound


def _lines(source: Source, compression: str, limit: int, problems: Problems) -> Iterator[tuple[str, str]]:
  """Yields each line of a file as ("file:line", text with its end); lines longer than `limit` bytes come in pieces."""
  raw: io.RawIOBase = open(source.path, "rb", buffering=0)
  if compression:
    raw = _Decompressed(raw, _COMPRESSED[compression])
  number = 1
  with io.BufferedReader(raw, 1 << 18) as file:
    while True:
      location = f"{source.name}:{number}"
      try:
        line = file.readline(limit)
        for _ in range(3):  # a piece ends with a whole character, of which UTF-8 can need three more bytes
          if len(line) >= limit and file.peek(1)[:1] and file.peek(1)[0] & 0xC0 == 0x80:
            line += file.read(1)
      except _DECOMPRESSION_ERRORS as error:
        problems.add("file broken off", f"{location}: {type(error).__name__}: {error}")
        return
      if not line:
        return
      try:
        text = line.decode()
      except UnicodeDecodeError:
        problems.add("line with broken UTF-8 (replaced)", location)
        text = line.decode(errors="replace")
      yield location, text.removeprefix("\ufeff") if number == 1 else text
      number += line.endswith(b"\n")


class _Decompressed(io.RawIOBase):
  """A file of the decompressed bytes of another, which holds one or more compressed streams.

  It reads every format alike, and unlike the file objects of some libraries it raises an error where the last stream is
  cut short.
  """

  def __init__(self, raw: io.RawIOBase, new_decompressor: Callable[[], typing.Any]) -> None:
    self._raw = raw
    self._blocks = self._decompress(new_decompressor)
    self._block = memoryview(b"")

  def _decompress(self, new_decompressor: Callable[[], typing.Any]) -> Iterator[bytes]:
    decompressor = None
    while chunk := self._raw.read(1 << 16):
      while chunk:
        if decompressor is None:
          chunk = chunk.lstrip(b"\0")  # zeros between streams are padding
          if not chunk:
            break
          decompressor = new_decompressor()
        yield decompressor.decompress(chunk)
        chunk = decompressor.unused_data if decompressor.eof else b""
        decompressor = None if decompressor.eof else decompressor
    if decompressor is not None:
      raise EOFError("the compressed stream is truncated")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: typing.Any) -> int:
    while not self._block:
      block = next(self._blocks, None)
      if block is None:
        return 0
      self._block = memoryview(block)
    n = min(len(buffer), len(self._block))
    buffer[:n] = self._block[:n]
    self._block = self._block[n:]
    return n

  def close(self) -> None:
    self._raw.close()
    super().close()
