"""Checkpoints: the only module that knows orbax.

A checkpoint holds two items that restore alone: `params`, and `rest` (optimiser state, counters,
step). The run's configuration is the directory's root metadata, so that a model can be rebuilt from
its checkpoints and nothing else.
"""

import pathlib

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from monojax.config import InputError


class Checkpoints:
  """Training checkpoints in one directory, the last two kept."""

  def __init__(self, directory, config):
    """Opens or creates `directory`; `config` is a JSON-able dict."""
    self._checkpointer = ocp.training.Checkpointer(
        pathlib.Path(directory).absolute(),
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        custom_metadata={"config": config})

  def save(self, step, state):
    """Starts to write the state reached after `step` steps; it counts only when whole."""
    rest = {name: getattr(state, name) for name in ("step", "opt_state", "counters")}
    self._checkpointer.save_checkpointables_async(step, {"params": state.params, "rest": rest},
                                                  force=True)

  def latest_step(self):
    """Steps done at the newest whole checkpoint, or `None`."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def restore(self, state):
    """The newest checkpoint as `state`'s type, placed by `state`'s shardings, on any mesh.

    Args:
      state: a training state whose leaves are arrays, or shape structs that carry shardings.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    rest = {name: getattr(abstract, name) for name in ("step", "opt_state", "counters")}
    loaded = self._checkpointer.load_checkpointables(
        None, {"params": abstract.params, "rest": rest})
    return state.replace(params=loaded["params"], **loaded["rest"])

  def close(self):
    """Waits for writes under way."""
    self._checkpointer.close()


def save_params(directory, params, config):
  """Writes parameters for use, on the host, and a JSON-able dict beside them; `load_params` reads them."""
  with ocp.training.Checkpointer(pathlib.Path(directory).absolute(), custom_metadata={"config": config}) as writer:
    if writer.latest is None:
      writer.save_checkpointables(0, {"params": jax.tree.map(np.asarray, params)})


def load_params(directory):
  """Parameters and configuration from a directory of checkpoints, on the host.

  Args:
    directory: what `Checkpoints` was given.

  Returns:
    (parameters as nested dicts of numpy arrays, the configuration's dict, the step).

  Raises:
    InputError: there is no whole checkpoint.
  """
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise InputError(f"{directory}: no checkpoints here; run the stage that trains them first")
  with ocp.training.Checkpointer(directory) as checkpointer:
    if checkpointer.latest is None:
      raise InputError(f"{directory}: holds no finished checkpoint yet; run the training stage again")
    step = checkpointer.latest.step
    metadata = checkpointer.checkpointables_metadata(step)
    abstract = jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), metadata.metadata["params"])
    loaded = checkpointer.load_checkpointables(step, {"params": abstract})
    config = checkpointer.root_metadata().custom_metadata["config"]
  return jax.tree.map(np.asarray, loaded["params"]), config, step
