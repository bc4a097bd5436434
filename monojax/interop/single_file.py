"""monojax's own single file: `monojax.safetensors`, every parameter by its name, the configuration as its metadata.

It holds whatever `SAE.save` does, crosscoders included, and can be read where neither orbax nor jax is installed.
"""

import json
import pathlib
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError
from monojax.interop.tensors import read_safetensors, write_safetensors
from monojax.sae.begin import settings_of
from monojax.sae.dictionary import SAE, kept_about
from monojax.sae.recipes import Recipe

NAME, FILE = "safetensors", "monojax.safetensors"
_ENTRY = "monojax"  # of the metadata


def read(path: pathlib.Path, recipe: Recipe | None = None) -> SAE:
  """The dictionary in a file that `write` wrote.

  Raises:
    InputError: it is damaged, or another file.
  """
  tensors, metadata = read_safetensors(path)
  if _ENTRY not in metadata:
    raise InputError(f"{path} is no file of monojax: its metadata has no entry {_ENTRY!r}")
  kept: dict[str, Any] = files.parsed(metadata[_ENTRY].encode(), path)
  sae = SAE.of({name: value.astype(np.float32) for name, value in tensors.items()}, kept, str(path),
               recipe=recipe)
  wanted = expected_shapes(sae)
  found = {name: value.shape for name, value in tensors.items()}
  if found != wanted:
    raise InputError(f"{path} is damaged: its tensors are {found} where its configuration says {wanted}")
  return sae


def expected_shapes(sae: SAE) -> dict[str, tuple[int, ...]]:
  """{name: shape} of the parameters that a dictionary's model has."""
  import jax
  import jax.numpy as jnp
  rows = jax.ShapeDtypeStruct((1, sae.model.wiring.n_inputs), jnp.float32)
  made = jax.eval_shape(lambda key, x_1M: sae.model.init(key, x_1M, method="encode"), jax.random.key(0), rows)
  return {name: leaf.shape for name, leaf in made["params"].items()}


def write(sae: SAE, directory: pathlib.Path) -> None:
  """Writes a dictionary as one file into a folder."""
  kept = settings_of(sae.config, sae.model.wiring, kept_about(sae))
  arrays = {name: np.asarray(value) for name, value in sae.params.items()}
  write_safetensors(directory / FILE, arrays, {_ENTRY: json.dumps(kept), "format": "np"})
