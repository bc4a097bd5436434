"""Folders that a user names: what their paths may hold, looked at before any work is done there."""

import os
import pathlib

from monojax.config import require

# What the library that writes checkpoints takes for patterns or separators in a path.
_NOT_IN_CHECKPOINTS = "[]\\"
_LONGEST = 3500  # bytes: Linux takes paths of 4,095, and the files within the folder have longer ones
_LONGEST_NAME = 200  # bytes: file systems take 255, and folders have longer names while they are written


def folder(path: str | os.PathLike[str], field: str, checkpoints: bool = False) -> pathlib.Path:
  """The folder that a path stands for; it need not exist.

  A leading "~" is the user's home, and "x/../y" is looked up, so that links on the way are followed.

  Args:
    path: the path as the user gave it, relative or absolute.
    field: what the message calls it, for instance "--workdir".
    checkpoints: whether checkpoints are kept there.

  Raises:
    InputError: files cannot be kept under that path.
  """
  found = pathlib.Path(path)
  require("\0" not in str(found), field, str(path), "a path cannot hold a null character")
  if found.parts[:1] == ("~",) or str(found)[:1] == "~" and not found.exists():
    found = pathlib.Path(os.path.expanduser(found))
  if ".." in found.parts:
    found = found.resolve()
  whole = os.path.abspath(found)
  require(_is_utf8(whole), field, ascii(str(path)), "the path is not UTF-8: rename the folder, or use another one")
  require(len(os.fsencode(whole)) <= _LONGEST, field, str(path), f"the path is longer than {_LONGEST:,} bytes: use "
          "another folder")
  bad = sorted(set(whole) & set(_NOT_IN_CHECKPOINTS)) if checkpoints else []
  require(not bad, field, str(path), f"checkpoints cannot be kept in {whole!r}, whose path has {' and '.join(bad)} in "
          "it: rename that folder, or use another one")
  return found


def name(value: str, field: str) -> str:
  """The name that a user gives to a folder within a run, as it is.

  Raises:
    InputError: it is no name for a folder.
  """
  require(value.strip(".") and "/" not in value and value.isprintable(), field, value,
          "must be the name of a folder, without a slash")
  require(not set(value) & set(_NOT_IN_CHECKPOINTS), field, value,
          f"must be a name without any of the characters {' '.join(_NOT_IN_CHECKPOINTS)}")
  require(len(os.fsencode(value)) <= _LONGEST_NAME, field, value, f"must have at most {_LONGEST_NAME} bytes")
  return value


def _is_utf8(path: str) -> bool:
  try:
    path.encode()
  except UnicodeEncodeError:
    return False
  return True
