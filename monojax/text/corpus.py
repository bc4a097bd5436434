"""The corpus: documents from files or a Hugging Face dataset, read one by one in a fixed order and bounded memory."""

import hashlib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Sequence

from monojax.config import InputError, require
from monojax.text import lines, sources
from monojax.text.chat import Render
from monojax.text.config import DOMAIN_FIELD, TextConfig
from monojax.text.problems import Problems
from monojax.text.sources import Source, resolve

END_OF_TEXT = "<|endoftext|>"  # what stands between the documents of many plain files, and a trained tokenizer's end
_TAGS = ("</s>", "<s>")  # end tokens that are also tags of HTML, and separate documents only if they are asked to
_PLAIN_CHARACTERS = 16 * 1024  # the longest document of a plain file; longer files become several documents
_LONGEST_CHARACTERS = 1024 * 1024  # the longest document of any other source; longer ones become several
_PLAIN_LINE_BYTES = 1024 * 1024  # the longest line of a plain file that is read at once; longer ones come in pieces
_JSON_LINE_BYTES = 64 * 1024 * 1024  # the longest line of JSON
_TABLE_ROWS = 256  # rows of a table that are read at a time
_LABEL_CHARACTERS = 200  # the longest name of a domain; longer ones are cut
_RECORDS_SEEN = 100  # of so many records the names of the fields are remembered, for messages


class Document(typing.NamedTuple):
  """A document of the corpus.

  Attributes:
    text: its text, which UTF-8 can encode.
    domain: the name of its domain, or `None`.
  """
  text: str
  domain: str | None


def draw(text: bytes, seed: int, purpose: str) -> int:
  """The number in [0, 2**64) that a document's text draws; other seeds and purposes give independent draws."""
  key = seed.to_bytes(16, "little")
  return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key, person=purpose.encode()).digest(), "little")


def is_among(drawn: int, fraction: float) -> bool:
  """Whether a document with this draw belongs to the given fraction of all documents."""
  return drawn < fraction * 2.0**64


def used_fraction(found: Sequence[Source], config: TextConfig) -> float:
  """The fraction of the documents of some sources that is used, so that they have about `config.sample_bytes` bytes.

  Raises:
    InputError: only a part is to be used, of a dataset that does not say how large it is.
  """
  if not config.sample_bytes:
    return 1.0
  unknown = [source.name for source in found if not source.n_bytes and source.path.startswith(sources.HUGGINGFACE)]
  require(not unknown, "tokens.sample_bytes", config.sample_bytes,
          f"{', '.join(unknown)} does not say how large it is: set --tokens.max_bytes instead")
  return min(1.0, config.sample_bytes / sum(source.n_bytes for source in found))


def documents(config: TextConfig, problems: Problems, end_token: str = END_OF_TEXT,
              render: Render | None = None) -> Iterator[Document]:
  """Yields the documents of the corpus that can be used, or a fraction of them, always in the same order.

  A plain file of more than about 16,000 characters, and any other document of more than about a million, becomes
  several documents, cut after a paragraph, a line or a word.

  Args:
    config: which text is read.
    problems: counts what is repaired or skipped.
    end_token: the text of the tokenizer's end token, which separates the documents of plain files.
    render: makes text of the field of a record where that holds a chat (`monojax.text.chat`).

  Raises:
    InputError: paths are wrong (see `resolve`), a file is in an unknown encoding, or the corpus has been read and held
      no document that can be used, none of them was chosen, or no record has the field that `config.domain_field`
      names.
    OSError: a file or the network failed; the error names what was read.
  """
  n_bytes = n_documents = n_chosen = 0
  found = resolve(config.paths)
  fraction = used_fraction(found, config)
  for source in found:
    for document in documents_of(source, config, problems, end_token, render):
      n_documents += 1
      text = document.text.encode()
      if fraction < 1 and not is_among(draw(text, config.seed, "use"), fraction):
        continue
      yield document
      n_chosen += 1
      n_bytes += len(text)
      if config.max_bytes and n_bytes >= config.max_bytes:
        break
    if config.max_bytes and n_bytes >= config.max_bytes:
      break
  if not n_documents:
    raise problems.no_documents()
  require(n_chosen, "tokens.sample_bytes", config.sample_bytes,
          f"none of the {n_documents:,} documents is among so few: give a larger number")
  if config.domain_field not in ("", DOMAIN_FIELD) and not problems.n_labelled:
    raise problems.no_label(config.domain_field)


def documents_of(source: Source, config: TextConfig, problems: Problems, end_token: str = END_OF_TEXT,
                 render: Render | None = None) -> Iterator[Document]:
  """Yields the documents of one source that can be used; see `documents`."""
  problems.opened.add(source.name)
  for location, document in _read(source, config, problems, end_token, render):
    if not document.text or document.text.isspace():
      problems.add("empty document", location)
    else:
      yield document


def check(found: Sequence[Source], chat_field: str = "") -> None:
  """Raises `InputError` if a file is, by its first bytes, not what its name says, or has no field for the chats."""
  for source in found:
    kind, compression = sources.kind_of(source.path)
    if kind == ".txt" and chat_field:
      raise InputError(f"tokens.chat_field={chat_field!r}: {source.name} is plain text, which has no fields: give "
                       "records (*.jsonl, *.parquet or hf:NAME) with --tokens.paths")
    if kind == sources.PARQUET:
      _open_table(source).close()
    elif kind:
      lines.check(source, compression)


def _read(source: Source, config: TextConfig, problems: Problems, end_token: str,
          render: Render | None) -> Iterator[tuple[str, Document]]:
  """Yields the documents of one source, each with its location."""
  if source.path.startswith(sources.HUGGINGFACE):
    for location, record in _dataset_rows(source):
      yield from _from_record(record, location, source.name, config, problems, render)
    return
  kind, compression = sources.kind_of(source.path)
  label = sources.label_of(source.path)
  if kind == ".txt":
    read = lines.lines(source, compression, _PLAIN_LINE_BYTES, True, problems)
    yield from _from_plain(read, source, label, _separators(config, end_token), problems)
    return
  if kind == sources.PARQUET:
    for location, record in _table_rows(source, config, problems):
      yield from _from_record(record, location, label, config, problems, render)
    return
  for location, line in lines.lines(source, compression, _JSON_LINE_BYTES, False, problems):
    line = line.strip("\ufeff \t\r\n")  # where files were put together, a byte order mark can be anywhere
    try:
      record = json.loads(line) if line else None
    except (ValueError, RecursionError):
      problems.add("malformed JSON line", location)
      continue
    if line:
      yield from _from_record(record, location, label, config, problems, render)


def _separators(config: TextConfig, end_token: str) -> tuple[str, ...]:
  """What stands between the documents of a plain file."""
  if config.separator:
    return (config.separator.replace("\\n", "\n").replace("\\t", "\t"),)
  return (END_OF_TEXT,) if end_token in _TAGS else tuple(dict.fromkeys((END_OF_TEXT, end_token)))


def _from_plain(read: Iterable[tuple[str, str]], source: Source, domain: str, separators: tuple[str, ...],
                problems: Problems) -> Iterator[tuple[str, Document]]:
  """Yields the documents of a plain file, each with its location.

  Args:
    read: the lines of the file, each with its location.
    source: the file.
    domain: of all its documents.
    separators: texts that end a document, also with an end of line after them.
    problems: counts lines with zero characters, which are kept.
  """
  ends = re.compile("(?:" + "|".join(map(re.escape, separators)) + ")\n?")
  longest = max(map(len, separators)) + 1
  text, start = "", f"{source.name}:1"
  n_searched = 0  # characters of `text` in which no separator begins
  for location, line in read:
    if "\0" in line:
      problems.add("line with zero characters", location)
    text += line.replace("\r\n", "\n") if "\r" in line else line
    if ends.search(text, n_searched):
      *whole, text = ends.split(text)
      for piece in whole:
        yield from ((start, Document(part, domain)) for part in _parts(piece, _PLAIN_CHARACTERS) if part)
        start = location
    while len(text) > _PLAIN_CHARACTERS + longest:  # a separator that has not been read to its end lies beyond the cut
      cut = _cut(text, _PLAIN_CHARACTERS)
      yield start, Document(text[:cut], domain)
      text, start = text[cut:], location
    n_searched = max(0, len(text) - longest)
  yield from ((start, Document(part, domain)) for part in _parts(text, _PLAIN_CHARACTERS) if part)


def _dataset_rows(source: Source) -> Iterator[tuple[str, typing.Any]]:
  """Yields the rows of a Hugging Face dataset, each with its location."""
  try:
    for i, record in enumerate(sources.open_dataset(source.path)):
      yield f"{source.name}:{i}", record
  except Exception as error:  # the library raises many kinds, network errors among them; `resolve` has opened it once
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise OSError(f"{source.name} cannot be read: {reason}") from error


def _open_table(source: Source) -> typing.Any:
  """A .parquet file, open for reading; raises `InputError` if it is none."""
  from pyarrow import parquet
  try:
    return parquet.ParquetFile(source.path)
  except Exception as error:  # the library raises its own kinds, and OSError for what is no such file
    reason = " ".join(f"{error}".split())
    raise InputError(f"tokens.paths: {source.name!r} cannot be read as .parquet: {reason}") from error


def _table_rows(source: Source, config: TextConfig, problems: Problems) -> Iterator[tuple[str, typing.Any]]:
  """Yields the rows of a .parquet file, each with its location; only the columns that are needed are read."""
  number = 0
  with _open_table(source) as table:
    known = table.schema_arrow.names
    wanted = [name for field in (_text_field(config), config.domain_field) for name in (field, field.partition(".")[0])
              if name in known]
    if not any(name in known for name in (_text_field(config), _text_field(config).partition(".")[0])):
      wanted = known  # an error message lists all fields
    try:
      for batch in table.iter_batches(_TABLE_ROWS, columns=list(dict.fromkeys(wanted))):
        for record in batch.to_pylist():
          yield f"{source.name}:{number}", record
          number += 1
    except Exception as error:  # the library raises its own kinds
      reason = " ".join(f"{type(error).__name__}: {error}".split())
      problems.add("file broken off", f"{source.name}:{number}: {reason}")


def _field(record: typing.Any, name: str) -> tuple[bool, typing.Any]:
  """(whether a record has a field, its value); "meta.source" is the field source of the object in the field meta."""
  if not isinstance(record, dict):
    return False, None
  if name in record:
    return True, record[name]
  first, dot, rest = name.partition(".")
  return _field(record.get(first), rest) if dot else (False, None)


def _names(record: dict, prefix: str = "") -> Iterator[str]:
  """Yields the names of a record's fields, and of those of the objects in them."""
  for name, value in record.items():
    yield f"{prefix}{name}"
    if isinstance(value, dict) and prefix.count(".") < 3:
      yield from _names(value, f"{prefix}{name}.")


def _text_field(config: TextConfig) -> str:
  """The name of the field that documents are made of."""
  return config.chat_field or config.text_field


def _from_record(record: typing.Any, location: str, file_domain: str, config: TextConfig, problems: Problems,
                 render: Render | None) -> Iterator[tuple[str, Document]]:
  """Yields the documents that one JSON object, or row of a dataset, is cut into, each with its location."""
  if not isinstance(record, dict):
    problems.add("JSON line that is not an object", location)
    return
  problems.n_records += 1
  has_text, text = _field(record, _text_field(config))
  if has_text and render:
    try:
      text = render(text)
    except ValueError as error:
      problems.add(f"chat that is left out ({error})", location)
      return
  if not isinstance(text, str) or problems.n_records <= _RECORDS_SEEN:
    problems.saw_fields(map(str, _names(record)))
  has_label, label = _field(record, config.domain_field) if config.domain_field else (False, None)
  problems.n_labelled += has_label
  if not isinstance(text, str):
    kind = f"{_text_field(config)!r} is not a string" if has_text else f"no field {_text_field(config)!r}"
    problems.add(kind, location)
    return
  text = _encodable(text, location, problems)
  domain = _label(label, location, problems) if has_label else file_domain
  for part in _parts(text, _LONGEST_CHARACTERS):
    yield location, Document(part, domain)


def _label(value: typing.Any, location: str, problems: Problems) -> str | None:
  """The name of the domain that a field's value stands for: "a, b" for the list ["a", "b"], None for nothing."""
  if isinstance(value, str) and len(value) <= _LABEL_CHARACTERS:
    return _encodable(value, location, problems).strip() or None
  if isinstance(value, list):
    value = ", ".join(map(str, value)) if not any(isinstance(item, list | dict) for item in value) else {}
  if isinstance(value, dict):
    problems.add("domain that is an object (left out)", location)
    return None
  label = _encodable(str(value), location, problems).strip() if value is not None else ""
  return (label if len(label) <= _LABEL_CHARACTERS else label[:_LABEL_CHARACTERS - 1] + "…") or None


def _encodable(text: str, location: str, problems: Problems) -> str:
  """A text that UTF-8 can encode: halves of surrogate pairs, which JSON's escapes can leave alone, are replaced."""
  if text.isascii():
    return text
  try:
    text.encode()
    return text
  except UnicodeEncodeError:
    problems.add("lone surrogate (replaced)", location)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts(text: str, bound: int) -> list[str]:
  """A text in parts of at most `bound` characters."""
  parts = []
  while len(text) > bound:
    cut = _cut(text, bound)
    parts.append(text[:cut])
    text = text[cut:]
  return [*parts, text]


def _cut(text: str, bound: int) -> int:
  """Where to cut a text: after the last paragraph, else line, else word that ends between bound / 2 and `bound`."""
  for mark in ("\n\n", "\n", " "):
    at = text.rfind(mark, bound // 2, bound)
    if at >= 0:
      return at + len(mark)
  return bound
