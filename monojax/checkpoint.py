"""Checkpoints: the only module that knows orbax.

A training checkpoint holds two items that restore alone: `params`, and `rest` (optimiser state, counters, step). A
folder of finished parameters holds `params` alone. Each checkpoint carries in its metadata the settings that it was
made with and the version of its format, so that a model can be rebuilt from its folder and nothing else; and beside its
files their checksums, which are written last and compared whenever it is read.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from monojax import ending, files, places
from monojax.config import InputError

if TYPE_CHECKING:
  from monojax.training import TrainState

# The version of what is written here. monojax 0.1 wrote version 1, which is not recorded. It had other names for two
# parameters, and its running means of the weights began at 0 (`monojax.sae.begin.upgrading`). Version 2 had no
# checksums.
VERSION = 3
_UNFINISHED = "it was not finished, or its checksums are gone"
_RENAMED = {"W_dec_FM": "W_dec_FO", "b_dec_M": "b_dec_O"}

Path = str | os.PathLike[str]


class Restored(NamedTuple):
  """A training state from a checkpoint, the number of steps done there, and the version of the checkpoint's format."""
  state: "TrainState"
  step: int
  version: int


class Checkpoints:
  """Training checkpoints in one directory, the last two kept."""

  def __init__(self, directory: Path, config: Mapping[str, Any]):
    """Opens or creates `directory`.

    A checkpoint that is damaged, or was not finished by a process that was killed, is passed over for the one before
    it, which is said. It is renamed, so that training can write its step again.

    Args:
      directory: the folder.
      config: a JSON-able dict, kept with each checkpoint.

    Raises:
      InputError: there is no whole checkpoint, but a damaged one.
    """
    self._directory, self._config = _absolute(directory), _plain(config)
    self._pending: _Pending | None = None
    _by_first(lambda: _set_aside(self._directory), "checkpoints are verified")
    with _readable(self._directory), _writing(self._directory):
      self._checkpointer = ocp.training.Checkpointer(
          self._directory, preservation_policy=ocp.training.preservation_policies.LatestN(2))

  def save(self, step: int, state: "TrainState") -> None:
    """Starts to write the state reached after `step` steps; it counts only when whole."""
    self._wait()
    with _writing(self._directory):
      response = self._checkpointer.save_checkpointables_async(
          step, {"params": state.params, "rest": _rest(state)}, force=True,
          custom_metadata={"config": self._config, "version": VERSION})
    self._pending = _Pending(response, self._directory / str(step))

  def restore(self, state: "TrainState") -> Restored | None:
    """The newest checkpoint as `state`'s type, placed by `state`'s shardings, on any mesh; None where there is none.

    Args:
      state: a training state whose leaves are arrays, or shape structs that carry shardings.
    """
    if self._checkpointer.latest is None:
      return None
    step = self._checkpointer.latest.step
    with _readable(self._directory / str(step)):
      abstract = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
      stored = self._checkpointer.checkpointables_metadata(step).metadata["params"]
      loaded = self._checkpointer.load_checkpointables(
          step, _renamed({"params": abstract.params, "rest": _rest(abstract)}, _old_names(stored)))
      loaded = _renamed(loaded, _RENAMED)
      restored = dataclasses.replace(state, params=loaded["params"], **loaded["rest"])
      return Restored(restored, step, _settings(self._directory / str(step))[1])

  def close(self) -> None:
    """Waits for writes under way.

    Raises:
      OSError: they failed.
    """
    try:
      self._wait()
    finally:
      with _writing(self._directory):
        self._checkpointer.close()

  def _wait(self) -> None:
    pending, self._pending = self._pending, None
    if pending:
      with _writing(self._directory):
        pending.wait()


class _Pending:
  """Waits in the background until orbax has written a checkpoint, and writes the checksums of its files."""

  def __init__(self, response: Any, place: pathlib.Path) -> None:
    self._response, self._place = response, place
    self._failure: Exception | None = None
    self._thread = threading.Thread(target=self._finish, name="checkpoint", daemon=True)
    self._thread.start()

  def _finish(self) -> None:
    try:
      self._response.result()
      if jax.process_index() == 0:  # the others may come here before it has its name
        files.write_sums(self._place)
    except Exception as error:  # raised again where training waits for it
      self._failure = error

  def wait(self) -> None:
    """Returns once the checkpoint is whole, or raises what prevented it."""
    self._thread.join()
    if self._failure:
      raise self._failure


def save_params(directory: Path, params: Any, config: Mapping[str, Any]) -> None:
  """Writes finished parameters and a JSON-able dict beside them; `load_params` reads both.

  What the folder held before is replaced as a whole, unless it is the same. It is written aside and renamed, so that
  parameters are never found beside settings that did not make them. In a job of several processes all of them call.

  Args:
    directory: the folder of these parameters, and of nothing else.
    params: nested dict of arrays on the host.
    config: the settings that they were made with.
  """
  directory, config = _absolute(directory), _plain(config)
  params = jax.tree.map(np.asarray, params)
  if _holds(directory, params, config):
    return
  aside = directory.with_name(directory.name + files.PARTIAL)
  _by_first(lambda: files.remove(aside), "leftovers are removed")
  with _writing(directory), ocp.training.Checkpointer(aside) as writer:
    writer.save_checkpointables(0, {"params": params}, custom_metadata={"config": config, "version": VERSION})

  def finish() -> None:
    files.write_sums(aside / "0")
    files.put_in_place(aside, directory)
  _by_first(finish, "parameters are put in place")


def load_params(directory: Path) -> tuple[Any, dict[str, Any], int]:
  """Parameters and settings from the newest checkpoint in a directory, verified, on the host.

  Args:
    directory: what `Checkpoints` or `save_params` was given, by this version of monojax or an older one.

  Returns:
    (parameters as nested dicts of numpy arrays, the settings' dict, the step; 0 for finished parameters).

  Raises:
    InputError: there is no checkpoint, or the newest one is damaged.
  """
  directory = _absolute(directory)
  if not directory.is_dir():
    raise InputError(f"{directory}: no checkpoints here; run the stage that trains them first")
  steps = _steps(directory)
  if not steps:
    raise InputError(f"{directory}: holds no finished checkpoint yet; run the training stage again")
  place = directory / str(steps[-1])
  if fault := _fault(place):
    raise files.damaged(place, fault)
  with _readable(place):
    stored = ocp.checkpointables_metadata(place).metadata["params"]
    abstract = jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), stored)
    loaded = ocp.load_checkpointables(place, {"params": abstract})
    config, _ = _settings(place)
  return _renamed(jax.tree.map(np.asarray, loaded["params"]), _RENAMED), config, steps[-1]


def saved_config(directory: Path) -> tuple[dict[str, Any], int] | None:
  """(settings, version) of the newest checkpoint in a directory that is whole, or `None` where there is none.

  Raises:
    InputError: there is none, but a damaged one.
  """
  directory = _absolute(directory)
  newest, _ = _newest_whole(directory)
  if newest is None:
    return None
  with _readable(directory / str(newest)):
    return _settings(directory / str(newest))


def is_checkpoint(directory: Path) -> bool:
  """Whether a folder holds checkpoints of monojax, damaged ones included; folders of others may be numbered as well."""
  place = pathlib.Path(directory)
  parts = ("params", "_CHECKPOINT_METADATA", files.SUMS)
  return place.is_dir() and any((place / str(step) / part).exists() for step in _steps(place) for part in parts)


def _steps(directory: pathlib.Path) -> list[int]:
  """The steps of the checkpoints in a directory, rising."""
  return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def _fault(place: pathlib.Path) -> str | None:
  """What is wrong with a checkpoint, judged by the checksums of its files; None if nothing is.

  Those of the versions before had no checksums, so that nothing can be said.
  """
  if (place / files.SUMS).exists():
    return files.fault(place)
  try:
    metadata = json.loads((place / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"] or {}
    return None if metadata.get("version", 1) < 3 else _UNFINISHED
  except (OSError, ValueError, TypeError, KeyError) as error:
    return f"its metadata cannot be read: {error}"


def _newest_whole(directory: pathlib.Path) -> tuple[int | None, dict[int, str]]:
  """The newest checkpoint that is whole, None if there is none, and what is wrong with those after it.

  Raises:
    InputError: there is none, but a damaged one.
  """
  faults: dict[int, str] = {}
  for step in reversed(_steps(directory)):
    fault = _fault(directory / str(step))
    if fault is None:
      return step, faults
    faults[step] = fault
  for step, fault in faults.items():
    if fault != _UNFINISHED:
      raise files.damaged(directory / str(step), fault)
  return None, faults


def _set_aside(directory: pathlib.Path) -> None:
  """Renames the checkpoints after the newest that is whole, and says so."""
  newest, faults = _newest_whole(directory)
  goes_on = "begins anew" if newest is None else f"goes on from the checkpoint before it, that of step {newest:,}"
  for step, fault in faults.items():
    what = "is not whole" if fault == _UNFINISHED else "is damaged"
    print(f"warning: {directory / str(step)} {what} ({fault}): training {goes_on}", file=sys.stderr, flush=True)
    aside = directory / f"damaged-{step}"
    files.remove(aside)
    os.rename(directory / str(step), aside)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """In its `with` block, whatever orbax and tensorstore raise for damaged files is an `InputError` that names a path.

  These libraries raise many kinds of errors, and others in each version.
  """
  try:
    yield
  except (InputError, MemoryError, OSError):
    raise
  except Exception as error:
    raise files.damaged(path, error) from error


def _settings(place: pathlib.Path) -> tuple[dict[str, Any], int]:
  """(settings, version) of a checkpoint; version 1 kept its settings for the directory as a whole."""
  found = ocp.checkpointables_metadata(place).custom_metadata or {}
  if "version" in found:
    return found["config"], found["version"]
  with ocp.training.Checkpointer(place.parent) as checkpointer:
    return checkpointer.root_metadata().custom_metadata["config"], 1


def _rest(state: "TrainState") -> dict[str, Any]:
  """A training state but for the parameters, as it is kept."""
  return {name: getattr(state, name) for name in ("step", "opt_state", "counters")}


def _old_names(stored: Any) -> dict[str, str]:
  """{name now: name as stored} of the parameters that a checkpoint holds under the names of version 1."""
  names = {jax.tree_util.keystr(path[-1:], simple=True) for path, _ in jax.tree.leaves_with_path(stored)}
  return {new: old for old, new in _RENAMED.items() if old in names}


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
  """A pytree with the keys of the dicts in it renamed, at any depth."""
  is_dict = lambda node: isinstance(node, dict)
  rename = lambda node: {names.get(key, key): _renamed(value, names) for key, value in node.items()}
  return jax.tree.map(lambda node: rename(node) if is_dict(node) else node, tree, is_leaf=is_dict)


def _holds(directory: pathlib.Path, params: Any, config: dict[str, Any]) -> bool:
  """Whether a folder holds just these parameters and settings, undamaged."""
  try:
    if saved_config(directory) != (config, VERSION):
      return False
    by_path = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    found, given = by_path(load_params(directory)[0]), by_path(params)
  except InputError:
    return False
  return set(found) == set(given) and all(np.array_equal(found[path], given[path]) for path in found)


def _by_first(work: Callable[[], None], name: str) -> None:
  """Has the first process of a job do something to the files that all share, once all are here, while they wait."""
  def wait(moment: str) -> None:
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils
      multihost_utils.sync_global_devices(f"{name}: {moment}")
  wait("all are here")
  if jax.process_index() == 0:
    work()
  wait("done")


@contextlib.contextmanager
def _writing(directory: pathlib.Path) -> Iterator[None]:
  """Has what the operating system refuses while a checkpoint is written be one `OSError` that names the file.

  orbax and tensorstore raise it as one of several exceptions, some of which have the number of the system's error in
  their text only.
  """
  try:
    yield
  except Exception as error:
    for cause in ending.causes(error):
      if isinstance(cause, OSError) and cause.errno:
        raise OSError(cause.errno, os.strerror(cause.errno), cause.filename or os.fspath(directory)) from error
      if code := re.search(r"os_error_code='(\d+)'", str(cause)):
        path = re.search(r'"(/[^"]*)"', str(cause))
        raise OSError(int(code[1]), os.strerror(int(code[1])), path[1] if path else os.fspath(directory)) from error
    raise


def _absolute(directory: Path) -> pathlib.Path:
  """The absolute path of a folder of checkpoints.

  Raises:
    InputError: checkpoints cannot be kept under that path.
  """
  return places.folder(directory, "folder", checkpoints=True).absolute()


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The settings as they are read back from JSON."""
  return json.loads(json.dumps(config))
