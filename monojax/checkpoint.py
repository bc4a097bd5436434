"""Checkpoints: the only module that knows orbax.

A training checkpoint holds two items that restore alone: `params`, and `rest` (optimiser state, counters, step). A
folder of finished parameters holds `params` alone. Each checkpoint carries the settings that it was made with and the
version of its format in its metadata, so that a model can be rebuilt from its folder and nothing else.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from monojax import files, places
from monojax.config import InputError

if TYPE_CHECKING:
  from monojax.training import TrainState

# The version of what is written here. monojax 0.1 wrote version 1, which is not recorded. It had other names for two
# parameters, and its running means of the weights began at 0 (`monojax.sae.begin.upgrading`).
VERSION = 2
_RENAMED = {"W_dec_FM": "W_dec_FO", "b_dec_M": "b_dec_O"}

Path = str | os.PathLike[str]


class Checkpoints:
  """Training checkpoints in one directory, the last two kept."""

  def __init__(self, directory: Path, config: Mapping[str, Any]):
    """Opens or creates `directory`; `config` is a JSON-able dict, kept with each checkpoint."""
    self._directory, self._config = _absolute(directory), _plain(config)
    self._checkpointer = self._open()
    if self._root_config() != self._config and (self._checkpointer.latest is None or self.version() > 1):
      # Nothing was made by the settings recorded there, or training goes on by others: orbax would keep the old ones.
      self._checkpointer.close()
      _by_first(lambda: shutil.rmtree(self._directory / "metadata"), "old settings are removed")
      self._checkpointer = self._open()

  def save(self, step: int, state: "TrainState") -> None:
    """Starts to write the state reached after `step` steps; it counts only when whole."""
    rest = {name: getattr(state, name) for name in ("step", "opt_state", "counters")}
    with _writing(self._directory):
      self._checkpointer.save_checkpointables_async(step, {"params": state.params, "rest": rest}, force=True,
                                                    custom_metadata={"config": self._config, "version": VERSION})

  def latest_step(self) -> int | None:
    """Steps done at the newest whole checkpoint, or `None`."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def version(self) -> int:
    """The version of the newest checkpoint's format."""
    return _settings(self._checkpointer)[1]

  def restore(self, state: "TrainState") -> "TrainState":
    """The newest checkpoint as `state`'s type, placed by `state`'s shardings, on any mesh.

    Args:
      state: a training state whose leaves are arrays, or shape structs that carry shardings.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    rest = {name: getattr(abstract, name) for name in ("step", "opt_state", "counters")}
    stored = self._checkpointer.checkpointables_metadata(None).metadata["params"]
    loaded = self._checkpointer.load_checkpointables(
        None, _renamed({"params": abstract.params, "rest": rest}, _old_names(stored)))
    loaded = _renamed(loaded, _RENAMED)
    return dataclasses.replace(state, params=loaded["params"], **loaded["rest"])

  def close(self) -> None:
    """Waits for writes under way.

    Raises:
      OSError: they failed.
    """
    with _writing(self._directory):
      self._checkpointer.close()

  def _open(self) -> ocp.training.Checkpointer:
    with _writing(self._directory):
      return ocp.training.Checkpointer(
          self._directory, preservation_policy=ocp.training.preservation_policies.LatestN(2),
          custom_metadata={"config": self._config})

  def _root_config(self) -> Any:
    return self._checkpointer.root_metadata().custom_metadata.get("config")


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
  aside = directory.with_name(directory.name + ".partial")
  _by_first(lambda: files.remove(aside), "leftovers are removed")
  metadata = {"config": config, "version": VERSION}
  with _writing(directory), ocp.training.Checkpointer(aside, custom_metadata=metadata) as writer:
    writer.save_checkpointables(0, {"params": params}, custom_metadata=metadata)
  _by_first(lambda: files.put_in_place(aside, directory), "parameters are put in place")


def load_params(directory: Path) -> tuple[Any, dict[str, Any], int]:
  """Parameters and settings from a directory of checkpoints, on the host.

  Args:
    directory: what `Checkpoints` or `save_params` was given, by this version of monojax or an older one.

  Returns:
    (parameters as nested dicts of numpy arrays, the settings' dict, the step; 0 for finished parameters).

  Raises:
    InputError: there is no whole checkpoint.
  """
  directory = _absolute(directory)
  if not directory.is_dir():
    raise InputError(f"{directory}: no checkpoints here; run the stage that trains them first")
  with ocp.training.Checkpointer(directory) as checkpointer:
    if checkpointer.latest is None:
      raise InputError(f"{directory}: holds no finished checkpoint yet; run the training stage again")
    step = checkpointer.latest.step
    stored = checkpointer.checkpointables_metadata(step).metadata["params"]
    abstract = jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), stored)
    loaded = checkpointer.load_checkpointables(step, {"params": abstract})
    config, _ = _settings(checkpointer)
  return _renamed(jax.tree.map(np.asarray, loaded["params"]), _RENAMED), config, step


def saved_config(directory: Path) -> tuple[dict[str, Any], int] | None:
  """(settings, version) of the newest whole checkpoint in a directory, or `None` where there is none."""
  directory = _absolute(directory)
  if not directory.is_dir():
    return None
  with ocp.training.Checkpointer(directory) as checkpointer:
    return None if checkpointer.latest is None else _settings(checkpointer)


def _settings(checkpointer: ocp.training.Checkpointer) -> tuple[dict[str, Any], int]:
  """(settings, version) of the newest checkpoint; version 1 kept its settings for the directory as a whole."""
  found = checkpointer.checkpointables_metadata(None).custom_metadata or {}
  if "version" in found:
    return found["config"], found["version"]
  return checkpointer.root_metadata().custom_metadata["config"], 1


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
  """Whether a folder holds just these parameters and settings."""
  if saved_config(directory) != (config, VERSION):
    return False
  by_path = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
  found, given = by_path(load_params(directory)[0]), by_path(params)
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
    found: BaseException | None = error
    while found is not None:
      if isinstance(found, OSError) and found.errno:
        raise OSError(found.errno, os.strerror(found.errno), found.filename or os.fspath(directory)) from error
      if code := re.search(r"os_error_code='(\d+)'", str(found)):
        path = re.search(r'"(/[^"]*)"', str(found))
        raise OSError(int(code[1]), os.strerror(int(code[1])), path[1] if path else os.fspath(directory)) from error
      found = found.__cause__ or found.__context__
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
