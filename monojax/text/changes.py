"""Whether the corpus is still what a run's tokens were made of."""

import hashlib
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from monojax import config as configs
from monojax import files
from monojax.config import InputError
from monojax.text.config import TextConfig
from monojax.text.sources import HUGGINGFACE, Source, resolve, shown

_WHOLE_BYTES = 1 << 26  # a file of at most so many bytes is digested whole
_PARTS = 64  # of a larger one, so many parts are digested, spread evenly over it
_LISTED = 5  # files that a message lists at most


def facts_of(sources: Iterable[Source]) -> dict[str, dict[str, Any]]:
  """What is kept of the files that a corpus was read from: {name: {"bytes", "modified", "digest"}}.

  `modified` is the file's time in nanoseconds, by which a later call sees in no time that it is the same; `digest`
  decides where the time is another one, as it is after a copy.
  """
  found = {}
  for source in sources:
    if not source.path.startswith(HUGGINGFACE):
      status = os.stat(source.path)
      found[source.name] = {"bytes": status.st_size, "modified": status.st_mtime_ns, "digest": _digest(source.path)}
  return found


def _digest(path: str) -> str:
  """A digest of a file: of all its bytes, or, if it is larger than 64 megabytes, of 64 parts of one megabyte."""
  size = os.path.getsize(path)
  n_parts = _PARTS if size > _WHOLE_BYTES else 1
  part_bytes = _WHOLE_BYTES // n_parts
  hash = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
  with open(path, "rb") as file:
    for i in range(n_parts):
      file.seek((size - part_bytes) * i // max(1, n_parts - 1) if n_parts > 1 else 0)
      hash.update(file.read(part_bytes))
  return hash.hexdigest()


def changes(config: TextConfig, meta: Mapping[str, Any]) -> list[str]:
  """What is different about a corpus since tokens were made of it, a line for each file that is.

  Datasets of Hugging Face are not looked at, nor is the sample that comes with monojax.

  Args:
    config: which text is read.
    meta: the content of the tokens' `meta.json`.

  Raises:
    FileNotFoundError: none of the files is there any more.
  """
  paths = [path for path in config.paths if not path.startswith(HUGGINGFACE)]
  before = {name: n_bytes for name, n_bytes in meta["sources"].items() if not name.startswith(HUGGINGFACE)}
  if not paths:
    return []
  try:
    now = {source.name: source for source in resolve(paths)}
  except InputError as error:
    if any(os.path.exists(name) for name in before):
      return [str(error)]
    raise FileNotFoundError(str(error)) from error
  facts = meta.get("files", {})  # version 0.1 kept none
  lines = [f"{name} is new" for name in now if name not in before]
  for name, n_bytes in before.items():
    if name not in now:
      lines.append(f"{name} is gone")
    elif name not in facts:
      lines += [f"{name} has another size"] if now[name].n_bytes != n_bytes else []
    else:
      lines += _change(now[name], facts[name])
  return lines


def _change(source: Source, fact: Mapping[str, Any]) -> list[str]:
  """What is different about a file, given what `facts_of` found of it before."""
  status = os.stat(source.path)
  if status.st_size != fact["bytes"]:
    return [f"{source.name} had {fact['bytes']:,} bytes and has {status.st_size:,}"]
  if status.st_mtime_ns != fact["modified"] and _digest(source.path) != fact["digest"]:
    return [f"{source.name} has other content"]
  return []


def require_unchanged(config: TextConfig, directory: str | os.PathLike[str]) -> None:
  """Raises `InputError` if the corpus is no longer what the finished tokens in a folder were made of.

  Where it is not there any more, since a run can travel without its corpus, a line is printed and the tokens count.
  Other settings than those of the tokens are not judged here.
  """
  meta = files.read_json(pathlib.Path(directory) / "meta.json")
  if not meta or configs.from_dict(TextConfig, meta["config"]) != config:
    return
  try:
    found = changes(config, meta)
  except FileNotFoundError:
    print(f"tokens: the text that {shown(str(directory))} was made of is no longer there; its tokens are taken as they "
          "are", file=sys.stderr)
    return
  if found:
    listed = "; ".join(found[:_LISTED]) + (f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    raise InputError(f"{shown(str(directory))} was made from text that has changed since ({listed}): use another "
                     "--workdir, delete that folder and those of the stages after it, or put the text back")
