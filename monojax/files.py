"""Files that are whole or not there, and that are verified when they are read back.

Each file is written under another name, synced to the disk, and renamed. A record, which is a JSON object, carries a
checksum of itself (`write_record`); those of other files stand in a file beside them (`write_sums`, `fault`).
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from monojax import distributed
from monojax.config import InputError, fingerprint

Path = str | os.PathLike[str]
LOCK = "lock.json"  # the file that says which process owns the folder it is in, see `activations/owner.py`
SUMS = "SHA256SUMS"  # the file that holds the checksums of others in its folder
PARTIAL = ".partial"  # how the names of files end that are being written


def sync_directory(path: Path) -> None:
  """Makes sure that the names of the files in a directory are on the disk, so that they survive a power failure."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Has an `OSError` of the `with` block that names no file, as those of full disks do, name the one being written."""
  try:
    yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def remove(path: Path) -> None:
  """Deletes a file, a folder with all it holds, or a link but not what it leads to; does nothing if there is none."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  else:
    pathlib.Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, by_each: bool = False) -> Iterator[BinaryIO]:
  """Opens a binary file for writing, which gets its name when the `with` block ends without an error.

  Until then, and after an error, what had the name before keeps it. Folders that are missing are made.

  Args:
    path: the name.
    by_each: in a job of several processes, whether every process that calls this writes the file. By default only the
      first process does.
  """
  if not by_each and not distributed.is_first():
    yield io.BytesIO()
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Another process may write the same name at the same time, and nothing that has the name already is followed.
  aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
  with naming(path):
    try:
      with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(aside, path)
    except BaseException:
      with contextlib.suppress(OSError):
        aside.unlink()
      raise
    sync_directory(path.parent)


def put_in_place(aside: pathlib.Path, directory: pathlib.Path) -> None:
  """Gives a folder that was written under another name its own, and deletes what had it.

  A reader may for a moment find no folder of that name, but never a mixture of the old and the new.

  Args:
    aside: the finished folder, beside `directory`.
    directory: the name that it gets.
  """
  old = directory.with_name(directory.name + ".old")
  remove(old)
  if directory.exists():
    os.rename(directory, old)
  os.rename(aside, directory)
  sync_directory(directory.parent)
  shutil.rmtree(old, ignore_errors=True)


def damaged(path: Any, why: Any) -> InputError:
  """The error for something that cannot be what was written; `why` says what was seen."""
  return InputError(f"{path} is damaged ({' '.join(str(why).split())[:300]}): restore it from a copy, or delete it and "
                    "run what wrote it again")


def write_unless_same(path: Path, content: bytes) -> bool:
  """Writes a file unless it holds just that; see `replacing`. What is finished may be on a disk that is read only.

  Returns:
    Whether it was written.
  """
  with contextlib.suppress(OSError):
    if pathlib.Path(path).read_bytes() == content:
      return False
  with replacing(path) as file:
    file.write(content)
  return True


def write_json(path: Path, value: Any) -> None:
  """Writes a value as a JSON file; see `replacing`."""
  with replacing(path) as file:
    file.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
  """A value as the content of a JSON file; what UTF-8 cannot encode, such as half a character, is escaped."""
  return json.dumps(value, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> bool:
  """Writes rows with the same columns, {column: value}, as `path`.csv and `path`.json: whether they have changed.

  In the CSV file a text that a spreadsheet would take for a formula has an apostrophe in front, numbers have six digits
  and the items of a list are separated by spaces.
  """
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([list(rows[0]) if rows else [],
                                                   *([_cell(value) for value in row.values()] for row in rows)])
  named = lambda suffix: path.with_name(path.name + suffix)
  changed = [write_unless_same(named(".csv"), text.getvalue().encode()),
             write_unless_same(named(".json"), json_bytes(rows))]
  return any(changed)


def _cell(value: Any) -> str:
  """A value as it stands in a table."""
  if isinstance(value, list | tuple):
    return " ".join(map(_cell, value))
  if isinstance(value, str):
    return f"'{value}" if value[:1] in tuple("=+-@\t\r") else value
  return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def read_json(path: Path) -> Any:
  """The value in a JSON file, or `None` where there is no such file.

  Raises:
    InputError: what is there is not JSON.
  """
  try:
    return parsed(pathlib.Path(path).read_bytes(), path)
  except (FileNotFoundError, NotADirectoryError):
    return None


def parsed(content: bytes, path: Any) -> Any:
  """The value that bytes are the JSON of; `path` is for the error.

  Raises:
    InputError: they are not JSON.
  """
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise damaged(path, error) from error


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON-able dict with one more entry, "checksum", which stands for all others."""
  return {**record, "checksum": fingerprint(record)}


def unsealed(record: Any, path: Any, without: int = 0) -> dict[str, Any]:
  """The dict that `sealed` was given, by way of JSON.

  Args:
    record: what `sealed` returned.
    path: where it is from, for the error.
    without: the last version of the record's format that had no checksum. A record without one is accepted if its
      entry "version" is no larger, or if it has no such entry.

  Raises:
    InputError: it has been changed since.
  """
  if not isinstance(record, dict):
    raise damaged(path, "it is no JSON object")
  kept = {name: value for name, value in record.items() if name != "checksum"}
  if "checksum" in record:
    if record["checksum"] != fingerprint(kept):
      raise damaged(path, "its content is not what its checksum stands for")
  elif not (isinstance(version := kept.get("version", 0), int) and version <= without):
    raise damaged(path, "it has no checksum")
  return kept


def write_record(path: Path, record: Mapping[str, Any]) -> None:
  """Writes a JSON-able dict with a checksum of itself; see `replacing`."""
  write_json(path, sealed(record))


def read_record(path: Path, without: int = 0) -> dict[str, Any] | None:
  """The dict that `write_record` wrote, or `None` where there is no such file.

  Args:
    path: the file.
    without: as for `unsealed`.

  Raises:
    InputError: it is damaged, or has been changed by something else.
  """
  found = read_json(path)
  return None if found is None else unsealed(found, path, without)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
  """Writes {name: array} as an .npz file; see `replacing`."""
  with replacing(path) as file:
    np.savez(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """The {name: array} that `write_npz` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    InputError: it is damaged.
  """
  return unpacked(pathlib.Path(path).read_bytes(), path)


def unpacked(content: bytes, path: Any) -> dict[str, np.ndarray]:
  """The {name: array} of an .npz file's bytes; `path` is for the error.

  Raises:
    InputError: they are damaged. Each array in such a file has a checksum, which is verified.
  """
  try:
    with np.load(io.BytesIO(content)) as arrays:
      return dict(arrays)
  except Exception as error:  # a damaged archive fails in many ways
    raise damaged(path, error) from error


def write_sums(directory: Path, names: Iterable[str] | None = None) -> None:
  """Writes the checksums of files in a folder to a file `SHA256SUMS` there, which `sha256sum -c` can read, too.

  Args:
    directory: the folder.
    names: the files' paths in it; by default all that there are.
  """
  directory = pathlib.Path(directory)
  if names is None:
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
  lines = [f"{_sha256(directory / name)}  {name}\n" for name in sorted(set(names) - {SUMS})]
  with replacing(directory / SUMS) as file:
    file.write("".join(lines).encode(errors="surrogateescape"))


def fault(directory: Path, within: str = "") -> str | None:
  """What differs in a folder from what `write_sums` found there; None if nothing does.

  Args:
    directory: the folder.
    within: the file, or the folder in it, that is looked at; by default all of it.
  """
  directory = pathlib.Path(directory)
  try:
    lines = (directory / SUMS).read_bytes().decode(errors="surrogateescape").splitlines()
  except OSError as error:
    return f"its checksums cannot be read: {error.strerror}"
  for line in lines:
    expected, separator, name = line.partition("  ")
    if not separator or not name:
      return f"{SUMS} has a line that is none of a checksum"
    if within and name != within and not name.startswith(f"{within}/"):
      continue
    try:
      status = (directory / name).stat()
      found = _sha256_once(directory / name, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:  # a damaged name may be no name at all
      return f"{name} cannot be read: {getattr(error, 'strerror', error)}"
    if found != expected:
      return f"{name} is not what was written: its checksum differs"
  return None


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def digest(array: Any) -> str:
  """The SHA-256 of an array's shape, type and content."""
  array = np.asarray(array)
  told = f"{array.dtype.str} {array.shape} ".encode()
  return hashlib.sha256(told + np.ascontiguousarray(array).tobytes()).hexdigest()


@functools.cache
def _sha256_once(path: pathlib.Path, n_bytes: int, changed_ns: int) -> str:
  """A file's checksum, which is computed once in a process unless the file changes."""
  return _sha256(path)
