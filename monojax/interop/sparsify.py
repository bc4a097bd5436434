"""sparsify's folders: `cfg.json` and `sae.safetensors`, TopK autoencoders and transcoders named after their module.

Letters: M width read, O width written, F features.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.config import require
from monojax.interop.plain import OF_MODULE, Plain, refuse, with_pre_bias, without_norms
from monojax.interop.sites import layer_of, names_output, site_of
from monojax.interop.tensors import number, read_config, read_safetensors, taken, write_safetensors
from monojax.sae.form import Form

NAME, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"
_SITES = "monojax_sites"  # an entry that sparsify passes over: [site read, site written]


def read(directory: pathlib.Path) -> Plain:
  """The dictionary in a folder of sparsify, whose name says the module.

  Raises:
    InputError: it is damaged, or has another activation than topk.
  """
  path, weights = directory / CONFIG, directory / WEIGHTS
  cfg = read_config(path)
  activation = cfg.get("activation", "topk")
  require(activation == "topk", str(path), activation, "monojax reads sparsify's dictionaries with the activation topk")
  others = [name for name in ("signed", "embed_skip", "gram_lookup") if cfg.get(name)]
  require(not others, str(path), ", ".join(others), "monojax has no dictionaries that compute this")
  found, _ = read_safetensors(weights)
  wanted = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
  more = sorted(set(found) - {*wanted, "W_skip"})
  require(not more, str(weights), ", ".join(more), "are tensors of which monojax does not know what they do")
  arrays = taken(found, weights, wanted, ["W_skip"])
  params = {"W_enc_MF": np.ascontiguousarray(arrays["encoder.weight"].T), "b_enc_F": arrays["encoder.bias"],
            "W_dec_FO": arrays["W_dec"], "b_dec_O": arrays["b_dec"]}
  transcodes, skip = bool(cfg.get("transcode", False)), "W_skip" in arrays
  if skip:
    params["W_skip_MO"] = np.ascontiguousarray(arrays["W_skip"].T)
  form = Form("topk", number(cfg.get("k", 32), "k", path), not transcodes, skip)
  writes = site_of(directory.name) if directory.name.count(".") else ""
  reads = _read_by(writes) if transcodes else writes
  said, of_module = cfg.get(_SITES), names_output(directory.name)
  if isinstance(said, list) and len(said) == 2 and all(isinstance(site, str) for site in said):
    (reads, writes), of_module = said, False
  origin = {"format": NAME, "config": cfg, **({OF_MODULE: True} if of_module else {})}
  return Plain(form, params, reads, writes, not transcodes, origin)


def _read_by(writes: str) -> str:
  """The site that goes into the module whose output is `writes`; "" where it is not known."""
  layer = layer_of(writes)
  if layer is None or not writes.endswith((".mlp.out", ".resid")):
    return ""
  if writes.endswith(".mlp.out"):
    return f"layer.{layer}.mlp.in"
  return f"layer.{layer - 1}.resid" if layer else "embed"


def write(plain: Plain, directory: pathlib.Path, model_name: str, metadata: Mapping[str, Any]) -> None:
  """Writes a folder that sparsify loads (`SparseCoder.load_from_disk`).

  Raises:
    InputError: it computes what sparsify does not.
  """
  if plain.form.nonlinearity != "topk":
    raise refuse(NAME, f"a dictionary of the kind {plain.form.nonlinearity}, only topk", "sae_lens, safetensors or "
                 "monojax")
  if plain.form.rows:
    raise refuse(NAME, f"a dictionary of {plain.form.rows} rows", "sae_lens, safetensors or monojax")
  if plain.n_inputs != plain.n_outputs:
    raise refuse(NAME, f"a transcoder from width {plain.n_inputs} to width {plain.n_outputs}", "safetensors or monojax")
  plain = with_pre_bias(without_norms(plain), plain.autoencodes)
  params = plain.params
  tensors = {"encoder.weight": params["W_enc_MF"].T, "encoder.bias": params["b_enc_F"], "W_dec": params["W_dec_FO"],
             "b_dec": params["b_dec_O"], **({"W_skip": params["W_skip_MO"].T} if plain.form.skip else {})}
  kept = plain.origin.get("config", {}) if plain.origin.get("format") == NAME else {}
  norms = np.linalg.norm(params["W_dec_FO"], axis=1)
  write_safetensors(directory / WEIGHTS, tensors)
  files.write_json(directory / CONFIG, {
      "activation": "topk", "expansion_factor": max(1, plain.n_features // plain.n_inputs),
      "normalize_decoder": bool(np.allclose(norms, 1, atol=1e-3)), "multi_topk": False, **kept,
      "num_latents": plain.n_features, "k": plain.form.k, "skip_connection": plain.form.skip,
      "transcode": not plain.autoencodes, "d_in": plain.n_inputs,
      **({_SITES: [plain.reads, plain.writes]} if plain.reads and plain.writes else {})})
