"""monojax: dictionary learning on neural-network activations, in JAX and Flax linen.

  import monojax
  sae = monojax.train(x, recipe="batchtopk", n_features=4096, k=32, workdir="runs/mine")
  run = monojax.load("runs/demo")

The names below are all that most programs need. Importing this package imports neither jax nor flax; the first use
does.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from monojax.activations.own import StoreWriter
  from monojax.config import InputError
  from monojax.pipeline.load import load
  from monojax.pipeline.train import train
  from monojax.sae.dictionary import SAE
  from monojax.sae.recipes import RECIPES

__version__ = "0.2.0"

_HOMES = {"train": "monojax.pipeline.train", "load": "monojax.pipeline.load", "SAE": "monojax.sae.dictionary",
          "StoreWriter": "monojax.activations.own", "RECIPES": "monojax.sae.recipes", "InputError": "monojax.config"}

__all__ = ["SAE", "InputError", "RECIPES", "StoreWriter", "load", "train"]


def __getattr__(name: str) -> typing.Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'monojax' has no attribute {name!r}; it has {', '.join(__all__)}")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return [*__all__, "__version__"]
