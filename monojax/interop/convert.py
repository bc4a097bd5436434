"""Reading a dictionary from any tool's files, and writing it as any other's."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from monojax import checkpoint, hub
from monojax.config import InputError, require
from monojax.interop import (
  circuit_tracer,
  cross_layer,
  gemma_scope,
  sae_lens,
  single_file,
  sparsify,
  tensors,
  torch_formats,
)
from monojax.interop.names import FORMATS, WRITTEN
from monojax.interop.plain import OF_MODULE, Plain, checked, plain_of, sae_of
from monojax.sae.dictionary import SAE
from monojax.sae.recipes import Recipe

MONOJAX = "monojax"
_WRITERS: dict[str, Callable[..., None]] = {
    sae_lens.NAME: sae_lens.write, sparsify.NAME: sparsify.write, gemma_scope.NAME: gemma_scope.write,
    circuit_tracer.NAME: circuit_tracer.write}
# Files by which a folder is recognised, with the format; in this order.
_MARKS = ((single_file.FILE, single_file.NAME), (sae_lens.WEIGHTS, sae_lens.NAME), (sparsify.WEIGHTS, sparsify.NAME),
          (gemma_scope.FIRST, gemma_scope.NAME), (gemma_scope.SECOND, gemma_scope.NAME),
          ("ae.pt", "dictionary_learning"), (cross_layer.FIRST, circuit_tracer.NAME))
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_OF_A_RUN = ("dictionary", "sae/dictionary")  # where the dictionary is in a stage's folder, and in a run's


def read(path: str | os.PathLike[str], format: str = "auto", k: int | None = None, sites: tuple[str, ...] = (),
         recipe: Recipe | None = None) -> SAE:
  """A dictionary from the files of any tool that monojax knows, ready for use, analysis and fine-tuning.

  Args:
    path: a folder or file; a run's folder, or a dictionary's in it; or either on the Hugging Face hub, as
      "hf:NAME[@REVISION]/PATH".
    format: which of `FORMATS` it is; by default the files tell.
    k: features of a row that a TopK dictionary keeps, where the files do not say.
    sites: names of the sites that it reads and writes, where the files do not say or say it otherwise: one of an
      autoencoder, two of a transcoder.
    recipe: the record of the recipe of one of monojax's own, if that is not part of monojax.

  Returns:
    The `SAE`. Weights in float16 and bfloat16 are widened to float32; those in float32 are not changed by a bit, unless
    a scale of the activations has to be folded into them. What the files said besides is in its `about`.

  Raises:
    InputError: there is nothing there, it is damaged, or it is of no known format.
  """
  require(format == "auto" or format in FORMATS, "format", format, f"choose auto or one of {', '.join(FORMATS)}")
  place = _fetched(str(path)) if hub.is_hub(path) else pathlib.Path(path)
  if not place.exists():
    raise InputError(f"source={str(path)!r}: there is no such file or folder")
  place, format = _recognised(place, format)
  of_layers = format == circuit_tracer.NAME and (place / cross_layer.FIRST).is_file()
  if format in (MONOJAX, single_file.NAME) or of_layers:
    sae = (cross_layer.read(place) if of_layers else SAE.load(place, recipe=recipe) if format == MONOJAX
           else single_file.read(_file(place, single_file.FILE), recipe))
    n_sites = len(sae.model.wiring.widths)
    require(len(sites) in (0, n_sites), "sites", ",".join(sites), f"this dictionary is of {n_sites}")
    return dataclasses.replace(sae, sites=sites) if sites else sae
  plain = checked(_plain(place, format, k, len(sites) == 2), place)
  if sites:
    require(len(sites) == (1 if plain.autoencodes else 2), "sites", ",".join(sites),
            "name the one site of an autoencoder" if plain.autoencodes else "name the sites read and written")
    origin = {name: value for name, value in plain.origin.items() if name != OF_MODULE}
    plain = dataclasses.replace(plain, reads=sites[0], writes=sites[-1], origin=origin)
  return sae_of(plain)


def write(sae: SAE, path: str | os.PathLike[str], format: str, model_name: str = "",
          metadata: Mapping[str, Any] | None = None) -> None:
  """Writes a dictionary as the files of another tool, in a folder.

  Args:
    sae: the dictionary.
    path: the folder, which is made if there is none. Files in it that have the same names are replaced.
    format: one of `WRITTEN`.
    model_name: the subject's name on the Hugging Face hub, which SAELens and circuit-tracer write down.
    metadata: further facts that SAELens writes down for other tools, such as {"context_size": 128, "prepend_bos": True,
      "dataset_path": "owner/name"}.

  Raises:
    InputError: the format cannot express what the dictionary computes; the message names one that can.
  """
  require(format in WRITTEN, "format", format, f"choose one of {', '.join(WRITTEN)}")
  require(not hub.is_hub(path), "target", str(path), "is on the hub: write a folder, or use sae.push")
  directory = pathlib.Path(path)
  require(not directory.is_file(), "target", str(path), "is a file; name a folder")
  if format == MONOJAX:
    sae.save(directory)
  elif format == single_file.NAME:
    single_file.write(sae, directory)
  elif format == circuit_tracer.NAME and len(sae.model.wiring.reads) > 1:
    cross_layer.write(sae, directory, model_name)
  else:
    _WRITERS[format](plain_of(sae, format), directory, model_name, metadata or {})


def _fetched(spec: str) -> pathlib.Path:
  """The local file or folder of a name on the hub; beside a file, what says more about it is fetched, too."""
  parent, _, name = spec.rpartition("/")
  if not name.endswith(_SUFFIXES):
    return hub.folder_of(spec)
  place = hub.folder_of(parent, [name, "*.json", circuit_tracer.CONFIG]) / name
  require(place.exists(), "source", spec, "the repository has no such file")
  return place


def _recognised(place: pathlib.Path, format: str) -> tuple[pathlib.Path, str]:
  """(the folder or file to read, its format).

  Raises:
    InputError: it is of no known format, or one has to be chosen.
  """
  if place.is_file():
    return place, format if format != "auto" else _format_of_file(place)
  for within in ("", *_OF_A_RUN):
    if format in ("auto", MONOJAX) and checkpoint.is_checkpoint(place / within):
      return place / within, MONOJAX
  if format != "auto":
    return place, format
  for name, known in _MARKS:
    if (place / name).is_file():
      return place, known
  candidates = sorted(path for path in place.iterdir() if path.is_file() and path.suffix in _SUFFIXES)
  if len(candidates) == 1:
    return _recognised(candidates[0], "auto")
  listed = ", ".join([path.name for path in candidates[:5]] + ["..."] * (len(candidates) > 5))
  raise InputError(f"source={str(place)!r}: " + (
      f"holds several files ({listed}): name one of them" if candidates else
      f"holds no dictionary of a format that monojax reads: {', '.join(FORMATS)}"))


def _format_of_file(path: pathlib.Path) -> str:
  """The format of a file, by its name's end and by what is in it."""
  if path.suffix == ".npz":
    return gemma_scope.NAME
  if path.suffix in (".pt", ".pth"):
    return "torch"
  if path.suffix != ".safetensors":
    raise InputError(f"source={str(path)!r}: is no file that monojax reads; it reads {', '.join(_SUFFIXES)}")
  if path.name in (sae_lens.WEIGHTS, sparsify.WEIGHTS) and (path.parent / sae_lens.CONFIG).exists():
    return sae_lens.NAME if path.name == sae_lens.WEIGHTS else sparsify.NAME
  found, metadata = tensors.header(path)
  if "monojax" in metadata:
    return single_file.NAME
  if "w_enc" in found:
    return gemma_scope.NAME
  if any(re.fullmatch(r"W_(enc|dec)_\d+", name) for name in found):
    raise InputError(f"source={str(path)!r}: is a part of a cross-layer transcoder: name its folder")
  if "W_enc" in found and "W_dec" in found and found["W_enc"] == found["W_dec"]:
    return circuit_tracer.NAME
  raise InputError(f"source={str(path)!r}: has the tensors {', '.join(sorted(found)[:8])}, which are of no format that "
                   "monojax reads")


def _plain(place: pathlib.Path, format: str, k: int | None, transcodes: bool) -> Plain:
  """The dictionary in files of a known format; `transcodes` tells of files that do not what they hold."""
  if format in (sae_lens.NAME, sparsify.NAME):
    reader = sae_lens.read if format == sae_lens.NAME else sparsify.read
    return reader(place.parent if place.is_file() else place)
  if format == gemma_scope.NAME:
    return gemma_scope.read(_file(place, gemma_scope.FIRST, gemma_scope.SECOND), transcodes)
  if format == circuit_tracer.NAME:
    return circuit_tracer.read(_file(place))
  return torch_formats.read(_file(place, "ae.pt"), "auto" if format == "torch" else format, k)


def _file(place: pathlib.Path, *names: str) -> pathlib.Path:
  """A file, or the one of some name in a folder, or the only one there that holds tensors."""
  if place.is_file():
    return place
  found: list[Any] = [place / name for name in names if (place / name).is_file()]
  found = found or [path for path in place.iterdir() if path.suffix in _SUFFIXES]
  require(len(found) == 1, "source", str(place), f"has {len(found)} files that could be meant: name one of them")
  return found[0]
