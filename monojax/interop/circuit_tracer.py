"""circuit-tracer's transcoders of single layers: `layer_{l}.safetensors`, and `config.yaml`, which names their hooks.

Letters: M width read, O width written, F features.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError, require
from monojax.interop.plain import Plain, refuse
from monojax.interop.sites import hook_of, layer_of, site_of
from monojax.interop.tensors import read_safetensors, taken, write_safetensors
from monojax.sae.form import Form

NAME, CONFIG, THRESHOLD = "circuit_tracer", "config.yaml", "activation_function.threshold"
HOOKS = ("feature_input_hook", "feature_output_hook")


def read(path: pathlib.Path) -> Plain:
  """The transcoder in a file `layer_{l}.safetensors`.

  Raises:
    InputError: it is damaged, or has thresholds below 0, where circuit-tracer's features would be negative.
  """
  found, _ = read_safetensors(path)
  arrays = taken(found, path, ["W_enc", "W_dec", "b_enc", "b_dec"], ["W_skip", THRESHOLD])
  params = {"W_enc_MF": np.ascontiguousarray(arrays["W_enc"].T), "b_enc_F": arrays["b_enc"],
            "W_dec_FO": arrays["W_dec"], "b_dec_O": arrays["b_dec"]}
  if THRESHOLD in arrays:
    threshold_F = np.broadcast_to(arrays[THRESHOLD], arrays["b_enc"].shape)
    params["threshold_F"] = without_negative(threshold_F, path).copy()
  if "W_skip" in arrays:
    params["W_skip_MO"] = np.ascontiguousarray(arrays["W_skip"].T)
  reads, writes = _sites(path)
  form = Form("threshold" if THRESHOLD in arrays else "relu", skip="W_skip" in arrays)
  return Plain(form, params, reads, writes, False, {"format": NAME})


def without_negative(threshold_F: np.ndarray, path: pathlib.Path) -> np.ndarray:
  """The thresholds of a file.

  Raises:
    InputError: some are below 0, where circuit-tracer's features would be negative.
  """
  require((threshold_F >= 0).all(), str(path), float(threshold_F.min()),
          "is a threshold below 0, where features would be negative: monojax's are not")
  return threshold_F


def _sites(path: pathlib.Path) -> tuple[str, str]:
  """(site read, site written) by the number in the file's name and the hooks in the folder's configuration."""
  layer = re.search(r"(\d+)$", path.stem)
  config = path.parent / CONFIG
  said = entries(config) if config.exists() else {}
  if layer is None or not all(said.get(name) for name in HOOKS):
    return "", ""
  reads, writes = (site_of(f"blocks.{int(layer[1])}.{said[name]}") for name in HOOKS)
  return reads, writes


def entries(path: pathlib.Path) -> dict[str, str]:
  """The lines "name: value" of a YAML file, without quotes; other lines are left out."""
  found = re.findall(r"^([A-Za-z_]+):[ \t]*(\S.*?)[ \t]*$", path.read_text("utf-8", errors="replace"), re.M)
  return {name: value.strip("'\"") for name, value in found}


def write(plain: Plain, directory: pathlib.Path, model_name: str, metadata: Mapping[str, Any]) -> None:
  """Writes a transcoder as `layer_{l}.safetensors` beside those of other layers, and `config.yaml`.

  circuit-tracer wants the same number of features at each of the layers from 0 on.

  Raises:
    InputError: circuit-tracer has nothing that computes the same, it is not known which layer it is of, or the folder
      is one of transcoders between other sites.
  """
  if plain.autoencodes:
    raise refuse(NAME, "an autoencoder, only transcoders", "sae_lens, safetensors or monojax")
  if plain.form.nonlinearity not in ("relu", "threshold"):
    raise refuse(NAME, f"a transcoder of the kind {plain.form.nonlinearity}",
                 ("sparsify, " if plain.form.nonlinearity == "topk" else "") + "safetensors or monojax")
  if plain.n_inputs != plain.n_outputs:
    raise refuse(NAME, f"a transcoder from width {plain.n_inputs} to width {plain.n_outputs}",
                 "sae_lens, safetensors or monojax")
  layer = layer_of(plain.writes)
  require(layer is not None and layer == layer_of(plain.reads), "sites", f"{plain.reads}, {plain.writes}",
          "circuit_tracer needs a transcoder between two sites of one layer: name them, such as "
          "layer.3.mlp.in,layer.3.mlp.out")
  hooks = [hook_of(site).removeprefix(f"blocks.{layer}.") for site in (plain.reads, plain.writes)]
  config = directory / CONFIG
  said = entries(config) if config.exists() else {}
  if said and [said.get(name) for name in HOOKS] != hooks:
    raise InputError(f"{config} is of transcoders from {said.get(HOOKS[0])} to {said.get(HOOKS[1])}, and this one is "
                     f"from {hooks[0]} to {hooks[1]}: choose another folder")
  params = plain.params
  tensors = {"W_enc": params["W_enc_MF"].T, "W_dec": params["W_dec_FO"], "b_enc": params["b_enc_F"],
             "b_dec": params["b_dec_O"]}
  if plain.form.nonlinearity == "threshold":  # there, features are not cut off at 0, so that no threshold may be below
    tensors[THRESHOLD] = np.maximum(params["threshold_F"], 0)
  if plain.form.skip:
    tensors["W_skip"] = params["W_skip_MO"].T
  write_safetensors(directory / f"layer_{layer}.safetensors", tensors)
  if not said:
    write_config(config, model_name, "transcoder_set", hooks)


def write_config(path: pathlib.Path, model_name: str, kind: str, hooks: Sequence[str]) -> None:
  """Writes `config.yaml`: the subject's name, the kind of transcoders, and the hooks read and written."""
  lines = {"model_name": model_name or "unknown", "model_kind": kind, **dict(zip(HOOKS, hooks, strict=True))}
  with files.replacing(path) as file:
    file.write("".join(f'{name}: "{value}"\n' for name, value in lines.items()).encode())
