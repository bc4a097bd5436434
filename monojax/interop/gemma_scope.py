"""Gemma Scope's files: `params.npz` (Gemma 2) and `params.safetensors` (Gemma 3), JumpReLU, transcoders among them.

The files say only the arrays; where a dictionary belongs is in the names of the folders and of the repository that
they are in. Embedding SAEs are of embeddings before Gemma multiplies them by sqrt(width), so their site has no name.

Letters: M width read, O width written, F features.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError
from monojax.interop.plain import Plain, refuse, with_pre_bias, without_norms
from monojax.interop.tensors import read_npz, read_safetensors, taken
from monojax.sae.form import Form

NAME, FIRST, SECOND = "gemma_scope", "params.npz", "params.safetensors"
# How a site is named: in the repository's name (Gemma Scope 1), or in that of a folder in it (Gemma Scope 2).
_SITES = {"res": "resid", "att": "attn.z", "mlp": "mlp.out", "resid_post": "resid", "attn_out": "attn.z",
          "mlp_out": "mlp.out"}


def read(path: pathlib.Path, transcodes: bool = False) -> Plain:
  """The dictionary in a file of Gemma Scope, where `transcodes` says that it is a transcoder if its folders do not.

  Raises:
    InputError: it is damaged, or a cross-layer transcoder.
  """
  found = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)[0]
  found = {f"W_{name[2:]}" if name.startswith("w_") else name: value for name, value in found.items()}
  arrays = taken(found, path, ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"],
                 ["affine_skip_connection", "scaling_factor"])
  if arrays["W_dec"].ndim == 3:
    raise InputError(f"{path} is one layer of a cross-layer transcoder, which writes several layers: monojax reads "
                     "dictionaries that write one site")
  if (arrays.get("scaling_factor", np.ones(1)) != 1).any():
    raise InputError(f"{path} has a scaling_factor that is not 1: fold it into W_dec")
  reads, writes = _sites(path)
  skip = "affine_skip_connection" in arrays
  params = {"W_enc_MF": arrays["W_enc"], "b_enc_F": arrays["b_enc"], "W_dec_FO": arrays["W_dec"],
            "b_dec_O": arrays["b_dec"], "threshold_F": arrays["threshold"]}
  if skip:
    params["W_skip_MO"] = arrays["affine_skip_connection"]
  is_transcoder = (transcodes or skip or reads != writes or any("transcoder" in part for part in _named(path))
                   or arrays["W_enc"].shape[:1] != arrays["W_dec"].shape[1:])
  return Plain(Form("threshold", skip=skip), params, reads, writes, not is_transcoder, {"format": NAME})


def _named(path: pathlib.Path) -> list[str]:
  """The names of the folders that a file is in, as far as Gemma Scope gives them: from the repository's on."""
  parts = path.absolute().parts[:-1]
  first = next((i for i in reversed(range(len(parts))) if "gemma-scope" in parts[i]), max(0, len(parts) - 3))
  return list(parts[first:])


def _sites(path: pathlib.Path) -> tuple[str, str]:
  """(site read, site written) by the names of a file's folders; "" where they do not say."""
  layer = site = None
  for part in _named(path):
    if found := re.match(r"layer_(\d+)(?:_|$)", part):
      layer = int(found[1])
    of_repository = re.search(r"gemma-scope-.*-(res|att|mlp|transcoders)$", part)
    of_folder = re.fullmatch(r"(resid_post|attn_out|mlp_out|transcoder)(_all)?", part)
    if of_repository or of_folder:
      site = (of_repository or of_folder)[1]  # type: ignore[index]
  if layer is None or site is None:
    return "", ""
  if site.startswith("transcoder"):
    return f"layer.{layer}.mlp.in", f"layer.{layer}.mlp.out"
  return (f"layer.{layer}.{_SITES[site]}",) * 2


def write(plain: Plain, directory: pathlib.Path, model_name: str, metadata: Mapping[str, Any]) -> None:
  """Writes a folder with `params.npz`, as Gemma Scope's first edition has them.

  Raises:
    InputError: it computes something else than a JumpReLU or a ReLU.
  """
  if plain.form.nonlinearity not in ("relu", "threshold"):
    raise refuse(NAME, f"a dictionary of the kind {plain.form.nonlinearity}, only JumpReLU", "sae_lens"
                 + (", sparsify" if plain.form.nonlinearity == "topk" else "") + ", safetensors or monojax")
  if plain.form.skip or plain.form.rows:
    raise refuse(NAME, "a skip" if plain.form.skip else f"a dictionary of {plain.form.rows} rows",
                 "sae_lens, safetensors or monojax")
  plain = with_pre_bias(without_norms(plain), False)
  params = plain.params
  files.write_npz(directory / FIRST, {
      "W_enc": params["W_enc_MF"], "W_dec": params["W_dec_FO"], "b_enc": params["b_enc_F"], "b_dec": params["b_dec_O"],
      "threshold": params.get("threshold_F", np.zeros(plain.n_features, np.float32))})
