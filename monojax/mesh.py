"""The device mesh ("data", "model") and where each array lives on it."""

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from monojax.config import option, require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices share the batch and how many share the features."""
  data: int = option(0, "devices along the batch; 0 takes every device left by `model`")
  model: int = option(1, "devices along the features of a dictionary or the width of a subject's MLP")

  def __post_init__(self):
    require(self.data >= 0, "mesh.data", self.data, "must be 0 (all) or positive")
    require(self.model >= 1, "mesh.model", self.model, "must be at least 1")


def make_mesh(config=None, devices=None):
  """The mesh of `config` (default: every device along "data") over `devices` (default: those of all processes).

  Axes are `Auto`: linen layers cannot be traced under `Explicit` ones.
  """
  config = config or MeshConfig()
  devices = devices or jax.devices()
  n_devices = len(devices)
  data = config.data or max(1, n_devices // config.model)
  require(data * config.model <= n_devices, "mesh", (data, config.model),
          f"needs {data * config.model} devices, this process sees {n_devices}")
  return jax.make_mesh((data, config.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2,
                       devices=devices[:data * config.model])


def shardings(tree, mesh, rules):
  """The sharding of each leaf: `rules[name of the leaf]`.

  Replicated where there is no rule, or where the mesh does not divide the leaf's axis.

  Optimiser moments keep their parameters' names, so the same rules place them.

  Args:
    tree: arrays or shape structs.
    mesh: from `make_mesh`.
    rules: dict from a leaf's name to a `PartitionSpec`.
  """
  def leaf_sharding(path, leaf):
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    spec = next((rules[name] for name in reversed(names) if name in rules), PartitionSpec())
    fits = len(spec) <= len(leaf.shape) and all(
        axis is None or size % mesh.shape[axis] == 0
        for axis, size in zip(spec, leaf.shape, strict=False))
    return NamedSharding(mesh, spec if fits else PartitionSpec())
  return jax.tree.map_with_path(leaf_sharding, tree)


def born_sharded(init, mesh, rules):
  """The pytree `init()` with each leaf created where it belongs, never whole on one device."""
  return jax.jit(init, out_shardings=shardings(jax.eval_shape(init), mesh, rules))()


def require_divides(mesh, axis, n_batch):
  """Raises `InputError` if a batch does not split evenly over the devices along a mesh axis."""
  require(n_batch % mesh.shape[axis] == 0, f"mesh.{axis}", mesh.shape[axis],
          f"a batch of {n_batch} does not divide over so many devices: change one of the two")


def on_mesh(batch, mesh, spec):
  """An array of the host, or of devices already, as a device array split over `mesh` by `spec`.

  Raises:
    InputError: an axis does not split evenly over its devices.
  """
  for size, axis in zip(np.shape(batch), spec, strict=False):
    if axis is not None:
      require_divides(mesh, axis, size)
  sharding = NamedSharding(mesh, spec)
  if isinstance(batch, jax.Array):
    return jax.device_put(batch, sharding)
  batch = np.asarray(batch)
  if jax.process_count() > 1:  # each process has the whole batch, and its devices take their part
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])
  return jax.device_put(batch, sharding)


def local_rows(mesh, n_batch):
  """(first, last) of the rows of a batch, split over "data", that this process' devices hold."""
  found = NamedSharding(mesh, PartitionSpec("data")).addressable_devices_indices_map((n_batch,)).values()
  spans = [rows.indices(n_batch)[:2] for (rows,) in found]
  return min(first for first, _ in spans), max(last for _, last in spans)


def to_host(tree):
  """Arrays of any sharding as NumPy arrays, whole on every process."""
  def whole(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
      leaf = jax.jit(lambda x: x, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
    return np.asarray(leaf)
  return jax.tree.map(whole, tree)
