"""Data sets of labelled texts for probes: those of the package `sae-probes`, or a folder of one's own.

A data set is a CSV file, which may be compressed, with a column `prompt`, the texts, and a column `target`, their
labels, of which there are two.
"""

import csv
import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import io
import json
import pathlib

import numpy as np
import zstandard

from monojax.analysis import probes
from monojax.config import InputError, require

PACKAGE = "sae-probes"
_TEXT, _LABEL = "prompt", "target"
_SUFFIXES = (".csv.zst", ".csv")
# The package's list of its data sets, and what it says of those that have two labels.
_LIST, _FILE = "probing_datasets_MASTER.csv.zst", "Dataset save name"
_KIND, _BINARY = "Data type", "Binary Classification"


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A data set of texts with one of two labels each.

  Attributes:
    name: the file's name without its endings.
    texts: the texts, at most `probes.MAX_ROWS`.
    y_N: a label for each, 0 or 1; 1 is the one that sorts last.
    labels: the two labels as the file has them.
  """
  name: str
  texts: list[str]
  y_N: np.ndarray
  labels: tuple[str, str]

  @property
  def fingerprint(self) -> str:
    """What tells its content from any other: 16 hexadecimal digits."""
    content = json.dumps([self.texts, self.y_N.tolist()]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def find(folder: str = "", only: str = "") -> list[pathlib.Path]:
  """The files of data sets, those of the package in its own order and those of a folder by name.

  Args:
    folder: a folder with files NAME.csv or NAME.csv.zst; "" for the data sets of the installed package `sae-probes`
      that have two labels. The package itself is not imported.
    only: globs of names, separated by commas; by default all.

  Raises:
    InputError: there is no such folder, the package is not installed, or no data set has one of the names.
  """
  paths = _in_folder(pathlib.Path(folder).expanduser()) if folder else _of_package()
  names = list(map(name_of, paths))
  there = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
  globs = [glob for glob in only.split(",") if glob]
  for glob in globs:
    require(fnmatch.filter(names, glob), "--only", glob, f"no data set has such a name; there are {there}")
  return [path for path, name in zip(paths, names, strict=True)
          if not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)]


def name_of(path: pathlib.Path) -> str:
  """The name of a data set: its file's without the endings."""
  return next(path.name.removesuffix(suffix) for suffix in _SUFFIXES if path.name.endswith(suffix))


def read(path: pathlib.Path, max_rows: int = probes.MAX_ROWS) -> Labelled:
  """A data set from its file, in the order of its rows.

  Labels that are numbers are sorted as such, others as text.

  Args:
    path: the file.
    max_rows: later rows are left out.

  Raises:
    InputError: the file cannot be read, is no such table, has not two labels, or too few rows of one of them.
  """
  rows = _rows(path)
  missing = [name for name in (_TEXT, _LABEL) if not rows or rows[0].get(name) is None]
  require(not missing, "--datasets", str(path), f"has no rows with a column {' and a column '.join(missing)}")
  for number, row in enumerate(rows, 1):
    require(row[_TEXT] and row[_LABEL], "--datasets", str(path), f"row {number} lacks its {_TEXT} or its {_LABEL}")
  labels = _sorted({row[_LABEL] for row in rows})
  require(len(labels) == 2, "--datasets", str(path), f"needs two labels in the column {_LABEL}, and has {len(labels)}; "
          "leave the file out with --only")
  rows = rows[:max_rows]
  y_N = np.array([row[_LABEL] == labels[1] for row in rows], np.int64)
  try:
    probes.sizes(y_N)
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
  return Labelled(name_of(path), [row[_TEXT] for row in rows], y_N, (labels[0], labels[1]))


def _of_package() -> list[pathlib.Path]:
  """The files of the package's data sets with two labels."""
  try:
    package = importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError as error:
    raise InputError(f"the labelled data sets are those of the package {PACKAGE}, which is not installed: pip install "
                     f"--no-deps {PACKAGE}, or give files of your own with --datasets=FOLDER") from error
  data = pathlib.Path(str(package.locate_file("sae_probes/data")))
  files = [row[_FILE] for row in _rows(data / _LIST) if row[_KIND] == _BINARY]
  return [data / f"{file}.zst" for file in files]


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  require(folder.is_dir(), "--datasets", str(folder), "is no folder")
  paths = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES) and not path.name.startswith("."))
  require(paths, "--datasets", str(folder), "holds no files NAME.csv or NAME.csv.zst")
  names = [name_of(path) for path in paths]
  twice = sorted({name for name in names if names.count(name) > 1})
  require(not twice, "--datasets", str(folder), f"holds {', '.join(twice)} both as .csv and as .csv.zst: keep one")
  return paths


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file, each {column: text}; lines without text are no rows."""
  csv.field_size_limit(2 ** 31 - 1)  # texts may be longer than the library expects of a field
  try:
    content = path.read_bytes()
    text = (_decompressed(content) if path.name.endswith(".zst") else content).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))
  except (zstandard.ZstdError, EOFError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path} cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _decompressed(content: bytes) -> bytes:
  """What the zstd streams in `content`, one after the other, stand for; `EOFError` where the last is cut short."""
  parts = []
  while content:
    stream = zstandard.ZstdDecompressor().decompressobj()
    parts.append(stream.decompress(content))
    if not stream.eof:
      raise EOFError("the compressed stream is truncated")
    content = stream.unused_data
  return b"".join(parts)


def _sorted(labels: set[str]) -> list[str]:
  """Labels in order: as numbers where all are such, else as text."""
  try:
    return sorted(labels, key=float)
  except ValueError:
    return sorted(labels)
