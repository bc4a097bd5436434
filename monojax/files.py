"""Files that are whole or not there: each is written under another name, synced to the disk, and renamed."""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from monojax import distributed

Path = str | os.PathLike[str]


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
  aside = path.with_name(path.name + ".partial")
  aside.unlink(missing_ok=True)  # it may be a link, which is not followed
  with naming(path):
    with open(aside, "wb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(aside, path)
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
  """A value as the content of a JSON file."""
  return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def read_json(path: Path) -> Any:
  """The value in a JSON file, or `None` where there is no such file."""
  try:
    return json.loads(pathlib.Path(path).read_text("utf-8"))
  except FileNotFoundError:
    return None


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
  """Writes {name: array} as an .npz file; see `replacing`."""
  with replacing(path) as file:
    np.savez(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """The {name: array} that `write_npz` wrote."""
  with np.load(path) as arrays:
    return dict(arrays)
