"""Other tools' SAE files, in and out: `read` makes a `monojax.SAE` of any of them, `write` the files of any of them.

  from monojax import interop
  sae = interop.read("hf:owner/name/folder")
  interop.write(sae, "exported", "sae_lens", model_name="gpt2")

Each format is a small translation between a tool's names and monojax's. Nothing that is trained, analysed or shown
depends on any of them. Importing this package imports no jax; the first use does.
"""

import importlib
import typing

from monojax.interop.names import FORMATS, WRITTEN

if typing.TYPE_CHECKING:
  from monojax.interop.card import push
  from monojax.interop.convert import read, write
  from monojax.interop.neuronpedia import export

_HOMES = {"read": "convert", "write": "convert", "push": "card", "export": "neuronpedia"}

__all__ = ["FORMATS", "WRITTEN", "export", "push", "read", "write"]


def __getattr__(name: str) -> typing.Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'monojax.interop' has no attribute {name!r}; it has {', '.join(__all__)}")
  return getattr(importlib.import_module(f"monojax.interop.{_HOMES[name]}"), name)
