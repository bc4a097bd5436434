"""Documents, streamed in a fixed order from files or a Hugging Face dataset in bounded memory."""

import dataclasses
import glob
import io
import json
import lzma
import os
import pathlib
import typing
import zlib

import zstandard

from monojax.config import InputError

SAMPLE = "sample"  # the name of the source that an empty list of paths means
_SAMPLE_PATH = pathlib.Path(__file__).parent / "sample" / "sample.jsonl.xz"
_HUGGINGFACE = "hf:"
_COMPRESSED = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}
_DECOMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_COMPRESSION_RATIO = 4  # a guess at text bytes per compressed byte, for progress bars only
_PLAIN_CHARACTERS = 16 * 1024  # a longer plain file becomes several documents of up to this length
_LONGEST_CHARACTERS = 1024 * 1024  # so does a longer document of any other source
_PLAIN_LINE_BYTES = 1024 * 1024  # a longer line is read in pieces
_JSON_LINE_BYTES = 256 * 1024 * 1024  # a longer line is malformed
_FIELDS_REMEMBERED = 20


class Document(typing.NamedTuple):
  """A text that UTF-8 can encode, and the name of its domain or `None`."""
  text: str
  domain: str | None


@dataclasses.dataclass(frozen=True)
class Source:
  """A file or dataset to read: `name` as reported, `path` as opened, `n_bytes` its estimated text."""
  name: str
  path: str
  n_bytes: int


class Problems:
  """What was skipped or repaired while reading: for each kind its count and first location."""

  def __init__(self):
    self.counts = {}
    self.first = {}
    self.fields = set()

  def add(self, kind, location):
    """Counts one problem; `location` is for instance "file:line"."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    self.first.setdefault(kind, location)

  def saw_fields(self, names):
    """Remembers the fields of a record that lacks the text, for the error message."""
    if len(self.fields) < _FIELDS_REMEMBERED:
      self.fields.update(sorted(names)[:_FIELDS_REMEMBERED])

  def summary(self):
    """{kind: {"count": ..., "first": "file:line"}}, for JSON."""
    return {kind: {"count": n, "first": self.first[kind]} for kind, n in sorted(self.counts.items())}

  def message(self):
    """One line for people; empty where there was no problem."""
    lines = [f"{n} x {kind} (first: {self.first[kind]})" for kind, n in sorted(self.counts.items())]
    return "; ".join(lines)

  def no_documents(self):
    """The `InputError` for a corpus in which nothing usable was found."""
    cause = self.message() or "the files hold no text"
    if self.fields:
      cause += f"; fields seen: {', '.join(sorted(self.fields))} (choose with --tokens.text_field)"
    return InputError(f"tokens.paths: no usable document: {cause}")


def resolve(paths):
  """The sources that `paths` name, each once, sorted by path.

  Args:
    paths: files, directories (searched recursively), globs, "hf:NAME[:SPLIT]"; empty: the sample.

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


def _expand(path):
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


def _kind(path):
  """(".jsonl", ".txt" or "", the compression's suffix or "") of a file name."""
  stem, suffix = os.path.splitext(path)
  compression = suffix if suffix in _COMPRESSED else ""
  kind = os.path.splitext(stem)[1] if compression else suffix
  return kind if kind in (".jsonl", ".txt") else "", compression


def _check_file(path):
  """The estimated bytes of text in a file that can be read."""
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


def _open_dataset(path):
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


def documents(config, problems):
  """Yields every usable `Document` of the corpus, always in the same order.

  A long plain file, or a document longer than about a million characters, becomes several documents,
  cut after a paragraph, a line or a word.

  Args:
    config: a `TextConfig`.
    problems: a `Problems` that counts what is repaired or skipped.

  Raises:
    InputError: as `resolve`; or, when the end is reached, nothing usable was found.
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


def _read(source, config, problems):
  """Yields (location, Document) from one source."""
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


def _from_plain(lines, source, domain):
  """Yields (location, Document) for the pieces of a plain file."""
  text, start = "", f"{source.name}:1"
  for location, line in lines:
    text += line
    while len(text) > _PLAIN_CHARACTERS:
      cut = _cut(text, _PLAIN_CHARACTERS)
      yield start, Document(text[:cut], domain)
      text, start = text[cut:], location
  if text:
    yield start, Document(text, domain)


def _from_record(record, location, file_domain, config, problems):
  """Yields (location, Document) for the pieces of one JSON object or dataset row."""
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


def _encodable(text, location, problems):
  """`text` with the lone surrogates that JSON's escapes permit replaced."""
  try:
    text.encode()
    return text
  except UnicodeEncodeError:
    problems.add("lone surrogate (replaced)", location)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut(text, bound):
  """Where to cut `text`: after the last paragraph, line or word in the second half before `bound`."""
  for mark in ("\n\n", "\n", " "):
    at = text.rfind(mark, bound // 2, bound)
    if at >= 0:
      return at + len(mark)
  return bound


def _lines(source, compression, limit, problems):
  """Yields ("file:line", decoded line with its end) of a file; lines past `limit` bytes come in pieces."""
  raw = open(source.path, "rb", buffering=0)
  if compression:
    raw = _Decompressed(raw, _COMPRESSED[compression])
  number = 1
  with io.BufferedReader(raw, 1 << 18) as file:
    while True:
      location = f"{source.name}:{number}"
      try:
        line = file.readline(limit)
        for _ in range(3):  # a cut never falls inside a character
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
  """The decompressed bytes of a file of one or more compressed streams.

  Unlike the libraries' own file objects it reads every format alike and notices a truncated end.
  """

  def __init__(self, raw, new_decompressor):
    self._raw = raw
    self._blocks = self._decompress(new_decompressor)
    self._block = memoryview(b"")

  def _decompress(self, new_decompressor):
    decompressor = None
    while chunk := self._raw.read(1 << 16):
      while chunk:
        if decompressor is None:
          chunk = chunk.lstrip(b"\0")  # padding between streams
          if not chunk:
            break
          decompressor = new_decompressor()
        yield decompressor.decompress(chunk)
        chunk = decompressor.unused_data if decompressor.eof else b""
        decompressor = None if decompressor.eof else decompressor
    if decompressor is not None:
      raise EOFError("the compressed stream is truncated")

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self._block:
      block = next(self._blocks, None)
      if block is None:
        return 0
      self._block = memoryview(block)
    n = min(len(buffer), len(self._block))
    buffer[:n] = self._block[:n]
    self._block = self._block[n:]
    return n

  def close(self):
    self._raw.close()
    super().close()
