"""Which tensor of a file fills which parameter, and how its axes are turned.

  Tensor("self_attn.q_proj.weight", "W_qkv_HJAD", "hja,d -> h,j,a,d", part="queries")

reads: the tensor has two axes, of which the first is heads of keys (h) times heads of queries in each (j) times the
head's width (a), and the second the residual stream (d); it becomes an array of four axes, in this order, which fills
the part "queries" of the parameter.

Letters, as in `model.py`: d residual stream, h heads of keys and values, j heads of queries for each of them, a width
of a head, m width of the MLP, v tokens, t positions, s kinds of sentence; a digit is an axis of that length.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from monojax.subjects.pretrained.architecture import Architecture
from monojax.subjects.pretrained.configurations import Config


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor of a file belongs.

  Attributes:
    name: its name, without the name of the layer or of the model in front.
    parameter: the parameter that it fills, or a part of it.
    axes: "axes of the tensor -> axes of the parameter"; see the module.
    part: "queries", "keys", "values", "gate" or "up": the part of a parameter that holds several; "" for all of it.
  """
  name: str
  parameter: str
  axes: str = "d -> d"
  part: str = ""

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that the tensor must have."""
    return tuple(math.prod(_size(axis, sizes) for axis in group) for group in self.axes.split(" -> ")[0].split(","))

  def turned(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """A view of the tensor with the parameter's axes."""
    before, after = self.axes.split(" -> ")
    separate = before.replace(",", "")
    array = array.reshape([_size(axis, sizes) for axis in separate])
    array = array.transpose([separate.index(axis) for axis in after.replace(",", "")])
    return array.reshape([math.prod(_size(axis, sizes) for axis in group) for group in after.split(",")])

  @property
  def in_order(self) -> bool:
    """Whether the parameter has the tensor's numbers in the tensor's order."""
    before, after = self.axes.replace(",", "").split(" -> ")
    return before == after

  def leading(self) -> str:
    """The letter of the tensor's first axis that is longer than 1."""
    return self.axes.replace("1", "")[0]

  def place_of(self, place: tuple[Any, ...], axis: str, first: int, last: int,
               sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Where the entries first..last-1 of a lettered axis go, if the whole tensor goes to `place`."""
    groups = self.axes.split(" -> ")[1].split(",")
    at = next(i for i, group in enumerate(groups) if axis in group)
    inner = math.prod(_size(letter, sizes) for letter in groups[at].replace(axis, ""))
    # Axes of the parameter that an index takes away are not among the tensor's.
    kept = [i for i, index in enumerate(place) if isinstance(index, slice)]
    rank = len(place) + len(groups) - len(kept)
    everything = [*place, *(slice(None),) * (rank - len(place))]
    axes = [i for i, index in enumerate(everything) if isinstance(index, slice)]
    everything[axes[at]] = slice(first * inner, last * inner)
    return tuple(everything)

  def place(self, group: int) -> tuple[Any, ...]:
    """Where in the parameter it goes: an index of its axes; `group` is j."""
    everything = slice(None)
    inner = {"queries": slice(0, group), "keys": group, "values": group + 1, "gate": 0, "up": 1}
    if not self.part:
      return ()
    n_before = {"W_qkv_HJAD": 1, "b_qkv_HJA": 1, "W_in_JMD": 0, "b_in_JM": 0}[self.parameter]
    return (*(everything,) * n_before, inner[self.part])


def _size(axis: str, sizes: Mapping[str, int]) -> int:
  return int(axis) if axis.isdigit() else sizes[axis]


def sizes_of(a: Architecture) -> dict[str, int]:
  """The length of each lettered axis."""
  return {"s": a.n_types, "d": a.d_model, "h": a.n_key_heads, "j": a.group, "a": a.head_width, "m": a.d_mlp,
          "v": a.vocab_size, "t": a.max_context}


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models whose files are alike.

  Attributes:
    model_types: the values of "model_type" in config.json that belong to it.
    read: config.json -> `Architecture`.
    layer: the pattern of a layer's tensors, with "{i}" for its number.
    layers: the tensors of a layer.
    outer: the tensors outside of layers.
    prefixes: what may stand in front of every name.
    ignored: a regular expression of names that are no parameters.
    aliases: {another name that files have for a tensor: its name here}.
  """
  model_types: tuple[str, ...]
  read: Callable[[Config], Architecture]
  layer: str
  layers: tuple[Tensor, ...]
  outer: tuple[Tensor, ...]
  prefixes: tuple[str, ...]
  ignored: str = r"(?!)"
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def tensors(self, a: Architecture, n_loaded: int) -> list[tuple[int | None, str, Tensor]]:
    """(layer or None, full name, tensor) of all tensors that the first `n_loaded` layers and the rest need."""
    from monojax.subjects.pretrained.model import layer_shapes, outer_shapes
    inside, outside = layer_shapes(a), outer_shapes(a, n_loaded == a.n_layers)
    return [*((None, t.name, t) for t in self.outer if t.parameter in outside),
            *((i, f"{self.layer.format(i=i)}.{t.name}", t) for i in range(n_loaded)
              for t in self.layers if t.parameter in inside)]

  def plain_name(self, name: str) -> str | None:
    """A tensor's name in the file without what may stand in front; None for what is no parameter."""
    name = next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    name = self.aliases.get(name, name)
    return None if re.search(self.ignored, name) else name
