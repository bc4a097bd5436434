"""Files that appear under their final name only when whole: write aside, fsync, rename."""

import contextlib
import io
import json
import os
import pathlib

import numpy as np

from monojax import distributed


def sync_directory(path):
  """Makes the names in the directory `path` durable."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replacing(path, by_each=False):
  """Opens a binary file for writing that takes the name `path` when the block ends without an error.

  In a job of several processes only the first writes the file; with `by_each`, every process that calls this does.
  """
  if not by_each and not distributed.is_first():
    yield io.BytesIO()
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_name(path.name + ".partial")
  with open(aside, "wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(aside, path)
  sync_directory(path.parent)


def write_json(path, value):
  """Writes `value` as JSON, whole or not at all; see `replacing`."""
  with replacing(path) as file:
    file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path):
  """The JSON value in `path`, or `None` where there is no such file."""
  try:
    return json.loads(pathlib.Path(path).read_text("utf-8"))
  except FileNotFoundError:
    return None


def write_npz(path, arrays):
  """Writes a dict of arrays as an .npz file, whole or not at all."""
  with replacing(path) as file:
    np.savez(file, **arrays)


def read_npz(path):
  """The dict of arrays that `write_npz` wrote."""
  with np.load(path) as arrays:
    return dict(arrays)
