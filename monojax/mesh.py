"""The mesh: a grid of devices with the axes "data" and "model", and where on it the parts of each array are.

The axis "data" splits the items of a batch. The axis "model" splits the features of a dictionary, or the width of a
subject's MLP.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from monojax import host_memory
from monojax.config import COUNT, COUNT_OR_0, option, require, require_rules

Tree = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices share each batch, and how many share the features."""
  data: int = option(0, "number of devices that each batch is split over; 0 takes all devices, divided by --mesh.model",
                     COUNT_OR_0)
  model: int = option(1, "number of devices that the features of a dictionary, or the width of a subject's MLP, are "
                         "split over", COUNT)

  def __post_init__(self) -> None:
    require_rules(self, "mesh.")


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh that settings describe.

  Args:
    config: the settings; by default all devices are along "data".
    devices: the devices to use; by default those of all processes of the job.

  Raises:
    InputError: the mesh needs more devices than there are, or has none of some process of the job.
  """
  config = config or MeshConfig()
  devices = devices or jax.devices()
  n_devices = len(devices)
  data = config.data or max(1, n_devices // config.model)
  require(data * config.model <= n_devices, "mesh", (data, config.model),
          f"needs {data * config.model} devices, this process sees {n_devices}")
  # The axes are `Auto` because layers of linen cannot be traced under `Explicit` ones.
  used = devices[:data * config.model]
  idle = {device.process_index for device in devices} - {device.process_index for device in used}
  require(not idle, "mesh", (data, config.model), f"leaves the processes {sorted(idle)} of the job without a device")
  return jax.make_mesh((data, config.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=used)


def local_mesh(mesh: Mesh, model: int = 1) -> Mesh:
  """The devices of a mesh that are this process's, for work that processes do not share.

  Args:
    mesh: the mesh.
    model: how many of them are along "model"; the others are along "data".

  Raises:
    InputError: there are not so many.
  """
  own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
  require(len(own) % model == 0, "mesh.model", model, f"must divide the {len(own)} devices of each process")
  return make_mesh(MeshConfig(data=len(own) // model, model=model), own)


def shardings(tree: Tree, mesh: Mesh | AbstractMesh, rules: Mapping[str, PartitionSpec]) -> Tree:
  """The sharding of each leaf of a pytree, which says where on a mesh its parts are.

  A leaf's sharding is the rule of the innermost dict key or attribute on its path that has one. Moments of an optimiser
  are kept under the names of their parameters, so that the same rules place them. A leaf without a rule is replicated:
  every device holds all of it. So is one with an axis that does not divide evenly over the devices.

  Args:
    tree: a pytree of arrays or shape structs.
    mesh: the mesh, from `make_mesh`; or one of as many devices as there need not be.
    rules: {name of a leaf: its `PartitionSpec`}.

  Returns:
    A pytree of the same structure whose leaves are shardings.
  """
  def leaf_sharding(path: Any, leaf: Any) -> NamedSharding:
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    spec = next((rules[name] for name in reversed(names) if name in rules), PartitionSpec())
    fits = len(spec) <= len(leaf.shape) and all(
        axis is None or size % mesh.shape[axis] == 0
        for axis, size in zip(spec, leaf.shape, strict=False))
    return NamedSharding(mesh, spec if fits else PartitionSpec())
  return jax.tree.map_with_path(leaf_sharding, tree)


def born_sharded(init: Callable[..., Tree], mesh: Mesh, rules: Mapping[str, PartitionSpec], *given: Any) -> Tree:
  """The pytree `init(*given)`, each leaf of which is made in its place on the mesh and never whole on one device.

  Args:
    init: makes the pytree; a function that can be compiled.
    mesh, rules: as for `shardings`.
    given: arrays that it is made from. An array that `init` had enclosed instead would become a constant of the
      program, which takes XLA seconds for one of 64 MB, and changes the program with each of its numbers.
  """
  return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, *given), mesh, rules))(*given)


def require_divides(mesh: Mesh, axis: str, n_batch: int, field: str = "") -> None:
  """Raises `InputError` if a batch does not split evenly over the devices along an axis of the mesh.

  Args:
    mesh: the mesh.
    axis: "data" or "model".
    n_batch: the number of items of the batch.
    field: the name of the setting that says so, for instance "sae.batch_rows".
  """
  require(n_batch % mesh.shape[axis] == 0, f"mesh.{axis}", mesh.shape[axis],
          f"{f'{field}={n_batch}' if field else f'a batch of {n_batch}'} does not divide over so many devices: change "
          "one of the two")


def require_memory(mesh: Mesh, n_bytes: int, field: str, value: Any, remedy: str) -> None:
  """Raises `InputError` if the devices of a mesh do not have that much memory, all of them together.

  Args:
    mesh: the mesh.
    n_bytes: the least that is needed.
    field: the setting that makes it so large, as the message says it.
    value: the setting's value.
    remedy: what to do, for instance "take fewer features".
  """
  # Devices of a kind have the same memory. A CPU does not say how much: all of a host's share what the host has.
  stats = mesh.local_devices[0].memory_stats()
  there = mesh.size * stats["bytes_limit"] if stats else jax.process_count() * host_memory.total_bytes()
  require(n_bytes <= there, field, value, f"needs {n_bytes / 1e9:,.0f} GB of memory at least, and there are "
          f"{there / 1e9:,.0f} GB: {remedy}")


def bytes_of(tree: Tree) -> int:
  """The bytes of a pytree of arrays or shape structs."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def on_mesh(batch: np.ndarray | jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
  """An array that is split over a mesh, made of an array on the host or on devices.

  Args:
    batch: the whole array; in a job of several processes each needs to hold only the parts of its own devices.
    mesh: the mesh.
    spec: for each axis of the array, the axis of the mesh that it is split over, or None.

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
  if jax.process_count() > 1:  # the devices of each process take their parts of its array
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])
  return jax.device_put(batch, sharding)


def local_rows(mesh: Mesh, n_batch: int) -> tuple[int, int]:
  """(start, stop) of the rows of a batch that the devices of this process hold when it is split over "data"."""
  found = NamedSharding(mesh, PartitionSpec("data")).addressable_devices_indices_map((n_batch,)).values()
  spans = [index[0].indices(n_batch)[:2] for index in found if index is not None]
  return min(first for first, _ in spans), max(last for _, last in spans)


def to_host(tree: Tree) -> Tree:
  """A pytree of arrays as NumPy arrays, each whole in every process, however they are split over devices."""
  def whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
      assert isinstance(leaf.sharding, NamedSharding)  # the only kind that several processes share here
      leaf = jax.jit(lambda x: x, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
    return np.asarray(leaf)
  return jax.tree.map(whole, tree)
