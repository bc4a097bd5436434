"""Which files and datasets `--tokens.paths` names: folders, globs, links, and what is left out of them."""

import dataclasses
import glob
import importlib.util
import os
import pathlib
import typing
from collections.abc import Iterator, Sequence

from monojax.config import InputError

SAMPLE = "sample"  # the name of the source that is read where no paths are given
HUGGINGFACE = "hf:"
COMPRESSIONS = (".gz", ".xz", ".zst")
PARQUET = ".parquet"
_KINDS = (".jsonl", ".txt", PARQUET)
_SAMPLE_PATH = pathlib.Path(__file__).parent / "sample" / "sample.jsonl.xz"
_COMPRESSION_RATIO = 4  # a guess at text bytes per compressed byte, for progress bars only
_ARCHIVE_LEFTOVERS = "__MACOSX"  # a folder of hidden files that a Mac puts into its archives


@dataclasses.dataclass(frozen=True)
class Source:
  """A file or dataset to read.

  Attributes:
    name: what messages and records call it; text that UTF-8 can encode.
    path: what is opened.
    n_bytes: an estimate of the bytes of text in it.
  """
  name: str
  path: str
  n_bytes: int


def shown(path: str) -> str:
  r"""A path as one line of text: bytes of it that are not UTF-8 read like `\xe9`, an end of line like `\n`."""
  text = os.fsencode(path).decode(errors="backslashreplace")
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def resolve(paths: Sequence[str]) -> list[Source]:
  """The sources that paths name, each once, sorted by path.

  Args:
    paths: files, directories, which are searched with all they contain, globs, or "hf:NAME[[:SUBSET]:SPLIT]". An empty
      list stands for the sample that comes with monojax.

  Raises:
    InputError: a path is missing, unreadable or of an unknown kind, a directory or glob holds nothing
      to read, every file is empty, or a library that is needed to read them is not installed.
  """
  if not paths:
    return [Source(SAMPLE, str(_SAMPLE_PATH), _SAMPLE_PATH.stat().st_size * _COMPRESSION_RATIO)]
  sources = {}
  for path in paths:
    if path.startswith(HUGGINGFACE):
      sources[path] = Source(shown(path), path, open_dataset(path).info.dataset_size or 0)
      continue
    for file in map(os.path.normpath, _expand(path)):
      sources[file] = Source(shown(file), file, _check_file(file))
  found = [sources[path] for path in sorted(sources)]
  if not any(source.n_bytes or source.path.startswith(HUGGINGFACE) for source in found):
    raise InputError(f"tokens.paths={[shown(path) for path in paths]}: every file is empty ({len(found)} read)")
  return found


def kind_of(path: str) -> tuple[str, str]:
  """The kind of a file by its name, ".jsonl", ".txt", ".parquet" or "", and the suffix of its compression or ""."""
  stem, suffix = os.path.splitext(path)
  compression = suffix.lower() if suffix.lower() in COMPRESSIONS else ""
  kind = (os.path.splitext(stem)[1] if compression else suffix).lower()
  known = kind in _KINDS and not (kind == PARQUET and compression)
  return kind if known else "", compression


def label_of(path: str) -> str:
  """The domain of a file's documents that have no other: its name without the ends that say its kind."""
  kind, compression = kind_of(path)
  name = os.path.basename(path)
  return shown(name[:len(name) - len(kind) - len(compression)])


def _expand(path: str) -> list[str]:
  """The files that a file name, directory or glob stands for."""
  path = path if os.path.lexists(path) else os.path.expanduser(path)
  if os.path.isdir(path):
    found = [os.path.join(folder, name) for folder, names in _folders(path) for name in names if kind_of(name)[0]]
    if not found:
      raise InputError(f"tokens.paths: the directory {shown(path)!r} holds no *.jsonl, *.txt (optionally .gz, .xz or "
                       ".zst) or *.parquet file; hidden files do not count")
    return found
  if os.path.exists(path):
    return [path]
  if glob.has_magic(path):
    found = sorted(file for file in _matches(path) if not os.path.isdir(file))
    if not found:
      raise InputError(f"tokens.paths: no file matches {shown(path)!r}; hidden files do not count")
    return found
  raise InputError(f"tokens.paths: there is no file {shown(path)!r}")


def _is_hidden(name: str) -> bool:
  return name.startswith(".") or name == _ARCHIVE_LEFTOVERS


def _folders(root: str) -> Iterator[tuple[str, list[str]]]:
  """Yields a folder and those in it at any depth, each with the names of its files; hidden ones are left out.

  Links to folders are followed after all else, and no folder comes twice. A link to a folder that the link itself is in
  is a loop, and is not followed.
  """
  seen: set[tuple[int, int]] = set()
  pending = [root]
  while pending:
    for folder, folders, names in os.walk(pending.pop(0), onerror=_raise_unreadable):
      status = os.stat(folder)
      if (status.st_dev, status.st_ino) in seen:
        folders.clear()
        continue
      seen.add((status.st_dev, status.st_ino))
      folders[:] = sorted(name for name in folders if not _is_hidden(name))
      links = [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
      here = os.path.join(os.path.realpath(folder), "")
      pending += [path for path in links if not here.startswith(os.path.join(os.path.realpath(path), ""))]
      yield folder, sorted(name for name in names if not _is_hidden(name))


def _raise_unreadable(error: OSError) -> typing.NoReturn:
  raise InputError(f"tokens.paths: the folder {shown(os.fsdecode(error.filename))!r} cannot be read: {error.strerror}")


def _matches(pattern: str) -> set[str]:
  """The paths that a glob stands for; `**` stands for any folders, those that links lead to among them."""
  parts = pattern.split(os.sep)
  if "**" not in parts:
    return {path for path in glob.glob(pattern) if _ARCHIVE_LEFTOVERS not in path.split(os.sep)
            or _ARCHIVE_LEFTOVERS in parts}
  at = parts.index("**")
  base, rest = os.sep.join(parts[:at]), parts[at + 1:] or ["*"]
  if not base:
    base = os.sep if at else os.curdir
  found: set[str] = set()
  for start in filter(os.path.isdir, glob.glob(base)):
    for folder, _ in _folders(start):
      found |= _matches(os.path.join(glob.escape(folder), *rest))
  return found


def _check_file(path: str) -> int:
  """An estimate of the bytes of text in a file; raises `InputError` if it cannot be read."""
  kind, compression = kind_of(path)
  if not kind:
    raise InputError(f"tokens.paths: {shown(path)!r} must end in .parquet, or in .jsonl or .txt, optionally followed "
                     f"by {', '.join(COMPRESSIONS)}")
  if not os.path.isfile(path):
    raise InputError(f"tokens.paths: {shown(path)!r} is not a regular file" +
                     (", but a link to one that is not there" if os.path.islink(path) else ""))
  if kind == PARQUET and importlib.util.find_spec("pyarrow") is None:
    raise InputError(f"tokens.paths: {shown(path)!r} needs: pip install 'monojax[parquet]'")
  try:
    with open(path, "rb"):
      return os.path.getsize(path) * (_COMPRESSION_RATIO if compression or kind == PARQUET else 1)
  except OSError as error:
    raise InputError(f"tokens.paths: {shown(path)!r} cannot be read: {error.strerror}") from error


def open_dataset(path: str) -> typing.Any:
  """The streamed Hugging Face dataset that "hf:NAME", "hf:NAME:SPLIT" or "hf:NAME:SUBSET:SPLIT" names."""
  try:
    import datasets
  except ImportError as error:
    raise InputError(f"tokens.paths: {path!r} needs: pip install 'monojax[huggingface]'") from error
  name, *rest = path.removeprefix(HUGGINGFACE).split(":")
  if not name or len(rest) > 2:
    raise InputError(f"tokens.paths: {path!r} must be hf:NAME, hf:NAME:SPLIT or hf:NAME:SUBSET:SPLIT")
  subset = rest[:-1] if rest[:-1] != [""] else []
  try:
    return datasets.load_dataset(name, *subset, split=(rest[-1] if rest else "") or "train", streaming=True)
  except Exception as error:  # the library raises many kinds, network errors among them
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(f"tokens.paths: {path!r} cannot be opened: {reason}") from error
