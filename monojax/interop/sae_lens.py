"""SAELens' folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and of those before.

Letters: M width read, O width written, F features.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError, require
from monojax.interop.plain import Plain, refuse
from monojax.interop.sites import hook_of, site_of
from monojax.interop.tensors import number, read_config, read_safetensors, taken, write_safetensors
from monojax.sae.form import Form

NAME, CONFIG, WEIGHTS = "sae_lens", "cfg.json", "sae_weights.safetensors"
_WRITTEN_VERSION = "6.0.0"  # of the layout: with it, SAELens takes the configuration as it stands
_KINDS = {"standard": "relu", "topk": "topk", "jumprelu": "threshold", "gated": "gated", "transcoder": "relu",
          "skip_transcoder": "relu", "jumprelu_transcoder": "threshold", "jumprelu_skip_transcoder": "threshold"}
_TRAINING = ("batchtopk", "matryoshka_batchtopk")  # architectures of checkpoints, saved as jumprelu for use
_ROWS = {"layer_norm": "standardised", "constant_norm_rescale": "rescaled"}
_METADATA = ("model_name", "hook_name", "hook_name_out", "hook_head_index", "context_size", "prepend_bos",
             "seqpos_slice", "model_from_pretrained_kwargs", "neuronpedia_id", "dataset_path",
             "dataset_trust_remote_code", "sae_lens_training_version")
_GATED = {"b_gate": "b_enc_F", "r_mag": "r_F", "b_mag": "b_mag_F"}


def read(directory: pathlib.Path) -> Plain:
  """The dictionary in a folder of SAELens.

  Raises:
    InputError: it is damaged, computes what monojax does not, or needs a scale of the activations that it lacks.
  """
  path = directory / CONFIG
  saved = read_config(path)
  cfg = _upgraded(saved)
  architecture = cfg.get("architecture", "standard")
  if architecture in _TRAINING:
    raise InputError(f"{path} is of a checkpoint of training ({architecture}): save it in SAELens with "
                     "save_inference_model, which makes it a jumprelu with the data's scale folded in")
  require(architecture in _KINDS, str(path), architecture, f"monojax reads the architectures {', '.join(_KINDS)}")
  kind, is_transcoder = _KINDS[architecture], architecture.endswith("transcoder")
  weights = directory / WEIGHTS
  found, _ = read_safetensors(weights)
  arrays = taken(found, weights, ["W_enc", "W_dec", "b_dec"])
  beside = taken(found, weights, {"threshold": ["b_enc", "threshold"], "gated": list(_GATED)}.get(kind, ["b_enc"]))
  params = {"W_enc_MF": arrays["W_enc"], "W_dec_FO": arrays["W_dec"], "b_dec_O": arrays["b_dec"]}
  names = {**_GATED, "b_enc": "b_enc_F", "threshold": "threshold_F"}
  params |= {names[name]: value for name, value in beside.items()}
  skip = "skip" in architecture
  if skip:
    params["W_skip_MO"] = np.ascontiguousarray(taken(found, weights, ["W_skip"])["W_skip"].T)
  if "scaling_factor" in found:  # of each feature, from fine-tuning in versions before 6
    params["W_dec_FO"] = _finetuned(params["W_dec_FO"], taken(found, weights, ["scaling_factor"])["scaling_factor"])
  rows = _normalisation(cfg, directory, params, is_transcoder)
  form = Form(kind, number(cfg.get("k"), "k", path) if kind == "topk" else 0,
              bool(cfg.get("apply_b_dec_to_input", True)) and not is_transcoder, skip,
              kind == "topk" and bool(cfg.get("rescale_acts_by_decoder_norm", False)), rows)
  said = cfg.get("metadata") or {}
  reads = site_of(said.get("hook_name"))
  return Plain(form, params, reads, site_of(said.get("hook_name_out")) if is_transcoder else reads, not is_transcoder,
               {"format": NAME, "config": saved})


def _upgraded(cfg: dict[str, Any]) -> dict[str, Any]:
  """A configuration as version 6 has it, of one from before: flat, and with other names and defaults."""
  said = cfg.get("metadata")
  major = str(said.get("sae_lens_version", "0")).partition(".")[0] if isinstance(said, dict) else "0"
  if major.isdecimal() and int(major) >= 6:
    return cfg
  old = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
  new = {old.get(name, name): value for name, value in {**(said if isinstance(said, dict) else {}), **cfg}.items()}
  new.setdefault("architecture", "standard")
  kept = new.get("activation_fn_kwargs") or {}
  if new.get("activation_fn") == "topk":
    new |= {"architecture": "topk", "k": kept.get("k", new.get("k"))}
  require(new.get("activation_fn", "relu") in ("relu", "topk"), CONFIG, new.get("activation_fn"),
          "monojax reads dictionaries with the activation functions relu and topk")
  normalise = new.get("normalize_activations")
  if normalise is None or isinstance(normalise, bool):
    new["normalize_activations"] = "expected_average_only_in" if normalise else "none"
  new["metadata"] = {name: new[name] for name in _METADATA if name in new}
  return new


def _finetuned(W_dec_FO: np.ndarray, factor_F: np.ndarray) -> np.ndarray:
  """Directions with the factor of each feature, by which reconstructions multiply it."""
  return W_dec_FO if (factor_F == 1).all() else W_dec_FO * factor_F[:, None]


def _normalisation(cfg: dict[str, Any], directory: pathlib.Path, params: dict[str, np.ndarray],
                   is_transcoder: bool) -> str:
  """What is done to each row by itself; a scale of all rows is folded into the parameters."""
  kind = cfg.get("normalize_activations", "none")
  if kind == "none":
    return ""
  if kind == "expected_average_only_in":
    scaler = directory / "activation_scaler.json"
    factor = read_config(scaler).get("scaling_factor") if scaler.exists() else None
    require(isinstance(factor, int | float) and factor > 0, str(directory / CONFIG), kind,
            "the activations were scaled in training by a factor that is not saved here: fold it in SAELens "
            "(fold_activation_norm_scaling_factor), or put activation_scaler.json beside it")
    assert isinstance(factor, int | float)
    scale = np.float32(factor)
    params |= {"W_enc_MF": params["W_enc_MF"] * scale, "W_dec_FO": params["W_dec_FO"] / scale,
               "b_dec_O": params["b_dec_O"] / scale}
    return ""
  require(kind in _ROWS and not is_transcoder, str(directory / CONFIG), kind,
          "this normalisation cannot be told in parameters: fold it in SAELens, so that it is none")
  return _ROWS[kind]


def write(plain: Plain, directory: pathlib.Path, model_name: str, metadata: Mapping[str, Any]) -> None:
  """Writes a folder that SAELens loads (`SAE.load_from_disk`), with facts for its metadata besides those known.

  Raises:
    InputError: SAELens has no architecture that computes the same.
  """
  form, params = plain.form, plain.params
  architecture = _architecture(plain)
  names = {"W_enc": "W_enc_MF", "W_dec": "W_dec_FO", "b_dec": "b_dec_O"}
  names |= {"gated": _GATED, "threshold": {"b_enc": "b_enc_F", "threshold": "threshold_F"}}.get(
      form.nonlinearity, {"b_enc": "b_enc_F"})
  tensors = {theirs: params[ours] for theirs, ours in names.items()}
  cfg: dict[str, Any] = {
      "d_in": plain.n_inputs, "d_sae": plain.n_features, "dtype": "float32", "device": "cpu",
      "architecture": architecture, "apply_b_dec_to_input": form.pre_bias,
      "normalize_activations": next((theirs for theirs, ours in _ROWS.items() if ours == form.rows), "none"),
      "reshape_activations": "hook_z" if plain.reads.endswith("attn.z") else "none"}
  if form.nonlinearity == "topk":
    cfg |= {"k": form.k, "rescale_acts_by_decoder_norm": form.by_norm}
  if not plain.autoencodes:
    cfg["d_out"] = plain.n_outputs
  if form.skip:
    tensors["W_skip"] = params["W_skip_MO"].T
  cfg["metadata"] = {**_metadata(plain, model_name), **metadata}
  write_safetensors(directory / WEIGHTS, tensors)
  files.write_json(directory / CONFIG, cfg)


def _architecture(plain: Plain) -> str:
  """SAELens' name of what a dictionary computes."""
  form = plain.form
  if plain.autoencodes:
    if form.skip:
      raise refuse(NAME, "an autoencoder with a skip", "sparsify (for topk), safetensors or monojax")
    return next(name for name, kind in _KINDS.items() if kind == form.nonlinearity)
  if form.nonlinearity not in ("relu", "threshold"):
    raise refuse(NAME, f"a transcoder of the kind {form.nonlinearity}",
                 ("sparsify, " if form.nonlinearity == "topk" else "") + "safetensors or monojax")
  return f"{'jumprelu_' if form.nonlinearity == 'threshold' else ''}{'skip_' if form.skip else ''}transcoder"


def metadata_of(origin: Mapping[str, Any]) -> dict[str, Any]:
  """The metadata that a folder of SAELens had when it was read, as version 6 has it."""
  kept = origin.get("config", {}) if origin.get("format") == NAME else {}
  return dict(_upgraded(kept).get("metadata") or {}) if kept else {}


def _metadata(plain: Plain, model_name: str) -> dict[str, Any]:
  """The facts that other tools look for; those that a folder of SAELens had when it was read are kept."""
  said = metadata_of(plain.origin)

  def hook(name: str, site: str) -> str | None:
    return said[name] if said.get(name) and site_of(said[name]) == site else hook_of(site) or None
  return {**said, "sae_lens_version": said.get("sae_lens_version", _WRITTEN_VERSION),
          "model_name": model_name or said.get("model_name") or "", "hook_name": hook("hook_name", plain.reads),
          **({} if plain.autoencodes else {"hook_name_out": hook("hook_name_out", plain.writes)})}
