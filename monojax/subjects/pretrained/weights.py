"""Where the weights of a pretrained transformer come from, and how they get onto the devices.

`--subject.weights` names a folder in the layout of Hugging Face (config.json and .safetensors files), `hf:NAME` or
`hf:NAME@REVISION` on a hub, a .gguf file, or `package:NAME`, an installed Python package that holds either. Tensors
are read one by one into arrays of the final layout, which the devices then take over, so that the host never holds the
weights twice.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from monojax import hub, metrics
from monojax import mesh as meshes
from monojax.config import InputError
from monojax.safetensors_header import Entry, read_header
from monojax.subjects.pretrained.architecture import Architecture
from monojax.subjects.pretrained.families import read_config
from monojax.subjects.pretrained.model import PretrainedTransformer, layer_of, param_shapes
from monojax.subjects.pretrained.tensors import Family, Tensor, sizes_of

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_READ = ("F64", "F32", "F16", "BF16")  # types of tensors
_END_BYTES = 2 ** 20  # of a file at either end that its identity depends on
_ALIGNMENT = 128  # of arrays on the host that a CPU device can use as they are
_SHOWN_BYTES = 2 ** 28  # smaller models are there at once, without a progress bar
_CHUNK_BYTES = 2 ** 21  # of a tensor that are turned at a time, so that they stay in a cache
_THREADS = 3  # that read; more than there are cores, as some wait for the disk
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_LISTED = 5  # how many names of tensors a message lists


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor of a file.

  Attributes:
    shape: its shape.
    read: (start, stop) -> these of its rows, that is of its first axis.
    by_rows: whether some rows can be read without the others; otherwise all of them are asked for.
    read_into: (start, target) -> reads the rows from `start` on into an array of the tensor's own type, in C order,
      until that is full; None where the file does not hold them so. Where it is given, `read` may not be called: a
      tensor whose numbers are changed on the way must have none.
    dtype: the tensor's own type, where `read_into` is given.
    place: (file, byte) at which it begins, so that tensors can be read in the order of the file, in which a disk is
      quickest.
    fault: why it cannot be read; "" where it can.
  """
  shape: tuple[int, ...]
  read: Callable[[int, int], np.ndarray]
  by_rows: bool = True
  read_into: Callable[[int, np.ndarray], None] | None = None
  dtype: np.dtype | None = None
  place: tuple[str, int] = ("", 0)
  fault: str = ""


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that are there, of which only the description has been read.

  Attributes:
    spec: what the user gave.
    family: the family of models.
    architecture: the model.
    tensors: {name, as the family's table has it: tensor}.
    identity: a JSON-able dict that changes when the files do.
  """
  spec: str
  family: Family
  architecture: Architecture
  tensors: Mapping[str, StoredTensor]
  identity: dict[str, Any]

  @property
  def n_parameters(self) -> int:
    """How many numbers the tensors hold."""
    return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

  @property
  def description(self) -> str:
    """What the model is, in a few words."""
    a = self.architecture
    return (f"{a.family}, {self.n_parameters / 1e6:,.1f} M parameters: {a.n_layers} layers of width {a.d_model}, "
            f"MLPs of {a.d_mlp}, {a.n_heads} heads, {a.vocab_size:,} tokens, contexts up to {a.max_context:,}")


def open_weights(spec: str) -> Weights:
  """Looks at pretrained weights, of which it reads the description alone.

  Args:
    spec: a Hugging Face folder, `hf:NAME` or `hf:NAME@REVISION`, a .gguf file, or `package:NAME`.

  Raises:
    InputError: there is nothing, it is of no supported family, or tensors are missing, are not known or have another
      shape than config.json says.
  """
  path = _place(spec)
  paths = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
  stamps = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in paths)
  return _opened(spec, path, stamps)


@functools.lru_cache(maxsize=4)
def _opened(spec: str, path: pathlib.Path, stamps: tuple) -> Weights:
  """See `open_weights`; files that have changed since have other `stamps`."""
  if path.suffix == ".gguf":
    from monojax.subjects.pretrained import gguf_weights
    config, tensors, identity = gguf_weights.open_gguf(spec, path)
  else:
    config = _read_json(spec, path / "config.json")
    tensors, identity = _open_folder(spec, path)
    identity["config"] = hashlib.sha256((path / "config.json").read_bytes()).hexdigest()
  family, architecture = read_config(config, spec)
  named = {plain: tensor for name, tensor in tensors.items() if (plain := family.plain_name(name))}
  weights = Weights(spec, family, architecture, named, identity)
  _require_complete(weights)
  return weights


def _place(spec: str) -> pathlib.Path:
  """The folder or the .gguf file that the user means."""
  place = hub.local(spec, ["*.safetensors", "*.json"])
  if not (place.is_dir() or place.suffix == ".gguf" and place.is_file()):
    kind = "file" if place.suffix == ".gguf" else "folder"
    raise InputError(f"subject.weights={spec!r}: there is no such {kind}; give a Hugging Face folder, hf:NAME, a .gguf "
                     "file, or package:NAME for a model in an installed Python package")
  return place


def _read_json(spec: str, path: pathlib.Path) -> dict:
  try:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
      raise ValueError("it is no JSON object")
    return found
  except FileNotFoundError:
    raise InputError(f"subject.weights={spec!r}: has no {path.name}, which a Hugging Face folder must have") from None
  except (OSError, ValueError) as error:
    raise InputError(f"subject.weights={spec!r}: {path.name} cannot be read: {error}") from error


def _open_folder(spec: str, folder: pathlib.Path) -> tuple[dict[str, StoredTensor], dict]:
  """The tensors of all .safetensors files of a folder, and what identifies them."""
  if (folder / _INDEX).exists():
    files_of = _read_json(spec, folder / _INDEX).get("weight_map")
    if not (isinstance(files_of, dict) and all(isinstance(name, str) for name in files_of.values())):
      raise InputError(f"subject.weights={spec!r}: {_INDEX} cannot be read: its weight_map does not say which file "
                       "each tensor is in")
    names = sorted(set(files_of.values()))
  else:
    names = [_SINGLE] if (folder / _SINGLE).exists() else sorted(path.name for path in folder.glob("*.safetensors"))
  if not names:
    raise InputError(f"subject.weights={spec!r}: has no .safetensors files; other kinds, such as pytorch_model.bin, "
                     "are not read: save the model with save_pretrained(folder, safe_serialization=True)")
  tensors: dict[str, StoredTensor] = {}
  identity = {}
  for name in names:
    try:
      found, identity[name] = _open_safetensors(folder / name)
    except (OSError, ValueError) as error:
      raise InputError(f"subject.weights={spec!r}: {name} cannot be read: {error}") from error
    tensors |= found
  return tensors, {"files": identity}


def _open_safetensors(path: pathlib.Path) -> tuple[dict[str, StoredTensor], dict]:
  """The tensors of a file, and what identifies it."""
  header = read_header(path)
  return {name: _stored(path, entry) for name, entry in header.entries.items()}, identity_of(path, header.n_bytes)


def identity_of(path: pathlib.Path, n_header: int = 0) -> dict[str, Any]:
  """What tells a file of weights from another: its size, and the checksum of its header and its first and last MiB."""
  size = path.stat().st_size
  with open(path, "rb") as file:
    ends = hashlib.sha256(file.read(n_header + _END_BYTES))
    file.seek(max(0, size - _END_BYTES))
    ends.update(file.read(_END_BYTES))
  return {"bytes": size, "sha256_of_ends": ends.hexdigest()}


def _stored(path: pathlib.Path, entry: Entry) -> StoredTensor:
  def read_into(start, target):
    row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    with open(path, "rb", buffering=0) as file:
      file.seek(entry.offset + start * row_bytes)
      for block in _contiguous(target):
        while len(block) and (n := file.readinto(block)):
          block = block[n:]
        if len(block):
          raise InputError(f"{path} has become shorter since it was opened")

  def read(start, stop):
    found = np.empty((stop - start, *entry.shape[1:]), entry.dtype)
    read_into(start, found)
    return found
  place = str(path), entry.offset
  if entry.kind not in _READ:
    return StoredTensor(entry.shape, read, place=place, fault=f"is of the type {entry.kind}, which is not read: "
                        f"{', '.join(_READ)} are")
  native = entry.dtype.isnative
  return StoredTensor(entry.shape, read, True, read_into if native else None, entry.dtype if native else None, place)


def _contiguous(array: np.ndarray) -> Iterator[memoryview]:
  """An array's bytes in C order, as views of as much as lies together in memory."""
  if array.flags.c_contiguous:
    yield array.reshape(-1).view(np.uint8).data
  else:
    for part in array:
      yield from _contiguous(part)


def _require_complete(weights: Weights) -> None:
  """Raises `InputError` unless there is just what the model needs, in the right shapes."""
  a = weights.architecture
  needed = {name: tensor.shape(sizes_of(a)) for _, name, tensor in weights.family.tensors(a, a.n_layers)}
  found = {name: tensor.shape for name, tensor in weights.tensors.items()}
  extra = set(found) - set(needed)
  if a.tied:  # a copy of the embedding, which some files have
    extra -= {tensor.name for tensor in weights.family.outer if tensor.parameter == "W_unembed_VD"}
  wrong = [f"{name} has the shape {found[name]} instead of {shape}" for name, shape in needed.items()
           if name in found and found[name] != shape]
  for problem, names in (("lacks the tensors ", sorted(set(needed) - set(found))),
                         ("has tensors that its config.json does not tell of: ", sorted(extra)), ("", wrong)):
    if names:
      more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
      raise InputError(f"subject.weights={weights.spec!r}: {problem}{', '.join(names[:_LISTED])}{more}: the files are "
                       f"not a whole model of the family {a.family}")
  for name in needed:
    if fault := weights.tensors[name].fault:
      raise InputError(f"subject.weights={weights.spec!r}: {name} {fault}")


def layers_for(a: Architecture, sites: Collection[str] | None) -> int:
  """How many layers, from the first, must be loaded to compute some sites; None stands for the whole model."""
  return a.n_layers if sites is None else min(a.n_layers, max((layer_of(site) + 1 for site in sites), default=0))


def bytes_of(a: Architecture, dtype: Any, n_loaded: int) -> int:
  """The bytes of the parameters of a model, of which so many layers are loaded."""
  return meshes.bytes_of(param_shapes(a, n_loaded, dtype))


def load_params(weights: Weights, dtype: Any, mesh: Mesh | None = None,
                n_loaded: int | None = None) -> tuple[PretrainedTransformer, dict]:
  """The model and its parameters, on the devices of a mesh.

  Args:
    weights: from `open_weights`.
    dtype: the type of the parameters, of activations, and of matrix products.
    mesh: the devices; heads, the MLP's width and the vocabulary are split over its axis "model". By default one device.
    n_loaded: how many layers are loaded, from the first; by default all of them, and the head.
  """
  a = weights.architecture
  model = PretrainedTransformer(a, dtype, a.n_layers if n_loaded is None else n_loaded)
  abstract = param_shapes(a, model.n_loaded, dtype)
  mesh = mesh or meshes.make_mesh(devices=jax.devices()[:1])
  where = meshes.shardings(abstract, mesh, model.sharding_rules)
  plan: dict[str, list[_Piece]] = {}
  for layer, name, tensor in weights.family.tensors(a, model.n_loaded):
    place = (() if layer is None else (layer,)) + tensor.place(a.group)
    plan.setdefault(tensor.parameter, []).append(_Piece(place, tensor, weights.tensors[name]))
  total = bytes_of(a, dtype, model.n_loaded)
  leaves, tree = jax.tree.flatten_with_path(abstract)
  arrays = [_Array(leaf.shape, np.dtype(dtype), sharding, plan.get(path[-1].key, []))
            for (path, leaf), sharding in zip(leaves, jax.tree.leaves(where), strict=True)]
  # A CPU device takes over the host's arrays, so that all can be there at once and be read in the order of the files.
  at_once = len(arrays) if all(device.platform == "cpu" for device in mesh.devices.flat) else 1
  found: list[jax.Array] = []
  with (metrics.progress(total, "B", "weights", scale=True, hidden=total < _SHOWN_BYTES) as bar,
        concurrent.futures.ThreadPoolExecutor(_THREADS) as threads):
    for first in range(0, len(arrays), at_once):
      found += _filled(arrays[first:first + at_once], sizes_of(a), threads, bar.update)
  return model, jax.tree.unflatten(tree, found)


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """Rows of a tensor and the place of a parameter that they fill.

  Attributes:
    place: the place.
    read: reads them, with the parameter's axes, not yet in their order in memory.
    read_into: reads them straight into that place, if the file holds them in the parameter's type and order; or None.
  """
  place: tuple
  read: Callable[[], np.ndarray]
  read_into: Callable[[np.ndarray], None] | None


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A tensor of a file and the place of a parameter that it fills."""
  place: tuple
  tensor: Tensor
  stored: StoredTensor

  def chunks(self, sizes: Mapping[str, int], dtype: np.dtype) -> Iterator[_Chunk]:
    """The tensor in parts that fit into a CPU's cache."""
    axis, whole = self.tensor.leading(), self.stored.shape[0]
    n_bytes = 4 * math.prod(self.stored.shape)
    if not self.stored.by_rows or n_bytes <= _CHUNK_BYTES:
      yield self._chunk(self.place, 0, whole, sizes, dtype)
      return
    rows = whole // sizes[axis]  # of the file for each entry of the axis
    step = max(1, sizes[axis] * _CHUNK_BYTES // n_bytes)
    for first in range(0, sizes[axis], step):
      last = min(first + step, sizes[axis])
      place = self.tensor.place_of(self.place, axis, first, last, sizes)
      yield self._chunk(place, first * rows, last * rows, {**sizes, axis: last - first}, dtype)

  def _chunk(self, place: tuple, start: int, stop: int, sizes: Mapping[str, int], dtype: np.dtype) -> _Chunk:
    """Rows start..stop-1 of the file, of which `sizes` are the lengths of the axes."""
    stored = self.stored
    read = lambda: self.tensor.turned(stored.read(start, stop).astype(dtype, copy=False), sizes)
    if stored.read_into is None or stored.dtype != dtype or not self.tensor.in_order:
      return _Chunk(place, read, None)
    return _Chunk(place, read, functools.partial(stored.read_into, start))


class _Array:
  """The parts of an array that this process' devices hold, to be filled piece by piece."""

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding, pieces: list[_Piece]):
    self.shape, self.dtype, self.sharding, self.pieces = shape, dtype, sharding, pieces
    self.spans = {device: tuple(span.indices(size)[:2] for span, size in zip(index, shape, strict=True))
                  for device, index in sharding.addressable_devices_indices_map(shape).items() if index is not None}
    self.parts: dict[tuple, np.ndarray] = {}

  def allocate(self) -> None:
    """Makes the parts on the host."""
    # Parameters of which the files hold no or not all numbers are 0 elsewhere.
    whole = sum(math.prod(piece.stored.shape) for piece in self.pieces) == math.prod(self.shape)
    new = np.empty if whole else np.zeros
    self.parts = {span: _aligned(tuple(stop - start for start, stop in span), self.dtype, new)
                  for span in set(self.spans.values())}

  def fill(self, chunk: _Chunk) -> None:
    """Reads a chunk into the parts that it is of."""
    if chunk.read_into and len(self.parts) == 1:
      (part,) = self.parts.values()
      if part.shape == self.shape:
        chunk.read_into(part[chunk.place])
        return
    whole = chunk.read()
    for span, part in self.parts.items():
      _copy_piece(part, span, self.shape, chunk.place, whole)

  def on_devices(self) -> jax.Array:
    """The whole array, once it is filled; its parts are the devices' from then on."""
    parts, self.parts = self.parts, {}
    on_devices = [jax.device_put(parts[span], device) for device, span in self.spans.items()]
    return jax.make_array_from_single_device_arrays(self.shape, self.sharding, on_devices)


def _filled(arrays: list[_Array], sizes: Mapping[str, int], threads: concurrent.futures.Executor,
            progress: Callable[[int], Any]) -> list[jax.Array]:
  """Arrays on their devices, filled in the order of the files, each piece read once."""
  for array in arrays:
    array.allocate()
  pieces = sorted(((array, piece) for array in arrays for piece in array.pieces), key=lambda pair: pair[1].stored.place)

  def fill(work):
    array, chunk, n_bytes = work
    array.fill(chunk)
    return n_bytes

  def all_work():
    for array, piece in pieces:
      n_bytes = math.prod(piece.stored.shape) * array.dtype.itemsize
      for i, chunk in enumerate(piece.chunks(sizes, array.dtype)):
        yield array, chunk, n_bytes if i == 0 else 0
  for n_bytes in threads.map(fill, all_work()):
    progress(n_bytes)
  return [array.on_devices() for array in arrays]


def _copy_piece(part: np.ndarray, span: tuple, shape: tuple[int, ...], place: tuple, whole: np.ndarray) -> None:
  """Copies a piece that belongs at `place` of an array into the part of it that spans `span`."""
  target: list[Any] = []
  source: list[Any] = []
  for axis, (start, stop) in enumerate(span):
    at = place[axis] if axis < len(place) else slice(None)
    if isinstance(at, int):
      if not start <= at < stop:
        return
      target.append(at - start)
      continue
    first, last, _ = at.indices(shape[axis])
    low, high = max(first, start), min(last, stop)
    if low >= high:
      return
    target.append(slice(low - start, high - start))
    source.append(slice(low - first, high - first))
  bits = _BITS[part.dtype.itemsize]  # NumPy copies integers faster than bfloat16
  part.view(bits)[tuple(target)] = whole[tuple(source)].view(bits)


def _aligned(shape: tuple[int, ...], dtype: np.dtype, new: Callable[..., np.ndarray]) -> np.ndarray:
  """An array on the host, of NumPy's `empty` or `zeros`, whose memory a CPU device can take over without a copy."""
  n_bytes = math.prod(shape) * dtype.itemsize
  memory = new(n_bytes + _ALIGNMENT, np.uint8)
  offset = -memory.ctypes.data % _ALIGNMENT
  return memory[offset:offset + n_bytes].view(dtype).reshape(shape)
