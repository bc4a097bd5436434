"""Dictionaries in PyTorch's files: those of dictionary_learning, of OpenAI and of Qwen-Scope.

Letters: M width read, O width written, F features.
"""

import pathlib
import re
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError, require
from monojax.interop.plain import OF_MODULE, Plain
from monojax.interop.sites import names_output, site_of
from monojax.interop.tensors import number, read_torch, taken
from monojax.sae.form import Form

_TRANSPOSED = ("encoder.weight", "decoder.weight")


def read(path: pathlib.Path, format: str = "auto", k: int | None = None) -> Plain:
  """The dictionary in a file of PyTorch's, of the format that it is, or of the one that its tensors tell.

  Args:
    path: the file.
    format: "dictionary_learning", "openai", "qwen_scope", or "auto".
    k: features of a row that are kept, where the file does not say.

  Raises:
    InputError: it is damaged, or none of these.
  """
  state = read_torch(path)
  require(isinstance(state, dict) and state, "source", str(path), "holds no state dict, which names a dictionary's "
          "tensors")
  if format == "auto":
    format = ("openai" if "latent_bias" in state else
              "qwen_scope" if set(state) == {"W_enc", "W_dec", "b_enc", "b_dec"} else "dictionary_learning")
  readers = {"openai": _openai, "qwen_scope": _qwen_scope, "dictionary_learning": _dictionary_learning}
  return readers[format](state, path, k)


def _transposed(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
  return np.ascontiguousarray(arrays[name].T)


def _openai(state: dict[str, Any], path: pathlib.Path, k: int | None) -> Plain:
  """OpenAI's `sparse_autoencoder`: ReLU, or TopK of standardised rows."""
  arrays = taken(state, path, ["encoder.weight", "latent_bias", "pre_bias"], ["decoder.weight"])
  activation = state.get("activation", "ReLU")
  kept = state.get("activation_state_dict") or {}
  after = kept.get("postact_fn", "ReLU") if isinstance(kept, dict) else "ReLU"
  require(activation in ("ReLU", "TopK") and after == "ReLU", str(path), f"{activation} and then {after}",
          "monojax reads OpenAI's dictionaries with ReLU, and with TopK and then ReLU")
  encoder_FM = arrays["encoder.weight"]
  params = {"W_enc_MF": np.ascontiguousarray(encoder_FM.T), "b_enc_F": arrays["latent_bias"],
            "W_dec_FO": _transposed(arrays, "decoder.weight") if "decoder.weight" in arrays else encoder_FM,
            "b_dec_O": arrays["pre_bias"]}
  if activation == "ReLU":
    return Plain(Form("relu", pre_bias=True), params, origin={"format": "openai"})
  form = Form("topk", number(kept.get("k", k), "k", path), pre_bias=True, rows="standardised")
  return Plain(form, params, origin={"format": "openai"})


def _qwen_scope(state: dict[str, Any], path: pathlib.Path, k: int | None) -> Plain:
  """Qwen-Scope's `layer{l}.sae.pt`: TopK of the residual stream, k in the repository's name."""
  arrays = taken(state, path, ["W_enc", "W_dec", "b_enc", "b_dec"])
  said = [found[1] for part in path.absolute().parts if (found := re.search(r"-L0_(\d+)", part))]
  require(k or said, "k", k, f"{path} does not say how many features of a row are kept, and neither does its folder "
          "(as in SAE-Res-MODEL-W32K-L0_50): give k")
  params = {"W_enc_MF": _transposed(arrays, "W_enc"), "b_enc_F": arrays["b_enc"],
            "W_dec_FO": _transposed(arrays, "W_dec"), "b_dec_O": arrays["b_dec"]}
  layer = re.match(r"layer(\d+)\.", path.name)
  site = f"layer.{int(layer[1])}.resid" if layer else ""
  return Plain(Form("topk", k or int(said[-1])), params, site, site, origin={"format": "qwen_scope"})


def _dictionary_learning(state: dict[str, Any], path: pathlib.Path, k: int | None) -> Plain:
  """dictionary_learning's `ae.pt`, whose class is told by `config.json` beside it, or else by its tensors."""
  config = files.read_json(path.parent / "config.json")
  trainer = config.get("trainer", {}) if isinstance(config, dict) else {}
  kind = trainer.get("dict_class") or _class_of(state, path)
  readers = {"AutoEncoder": _standard, "AutoEncoderNew": _standard_new, "GatedAutoEncoder": _gated,
             "JumpReluAutoEncoder": _jumprelu, "AutoEncoderTopK": _topk, "BatchTopKSAE": _batchtopk,
             "MatryoshkaBatchTopKSAE": _matryoshka}
  if kind not in readers:
    raise InputError(f"{path} is of the class {kind}: monojax reads dictionary_learning's {', '.join(readers)}"
                     if kind else f"{path} has the tensors {', '.join(map(str, state))}, which are of no format that "
                     "monojax reads")
  form, params, settings = readers[kind](state, path, state.get("k", trainer.get("k", k)))
  site = _site(trainer)
  module = str(trainer.get("submodule_name") or "")
  of_module = names_output(module) or module.startswith(("mlp", "attn", "attention"))
  origin = {"format": "dictionary_learning", "config": config or {}, **({OF_MODULE: True} if of_module else {})}
  return Plain(form, params, site, site, origin=origin, settings=settings)


def _class_of(state: dict[str, Any], path: pathlib.Path) -> str:
  """The class whose tensors these are; "" where none has them.

  Raises:
    InputError: two classes have them, which compute different features.
  """
  classes = {"gate_bias": "GatedAutoEncoder", "group_sizes": "MatryoshkaBatchTopKSAE", "bias": "AutoEncoder",
             "decoder.bias": "AutoEncoderNew"}
  for name, kind in classes.items():
    if name in state:
      return kind
  if {"W_enc", "W_dec", "threshold"} <= set(state):
    return "JumpReluAutoEncoder"
  of_topk = {"encoder.weight", "b_dec", "k"} <= set(state)
  require(not (of_topk and "threshold" in state), "source", str(path), "may be of dictionary_learning's class "
          "AutoEncoderTopK or BatchTopKSAE, which have the same tensors: put the config.json of its training beside it")
  return "AutoEncoderTopK" if of_topk else ""


def _site(trainer: dict[str, Any]) -> str:
  """The site by a trainer's settings: sparsify's names fit, and the submodule says which output is meant."""
  layer, module = trainer.get("layer"), str(trainer.get("submodule_name") or "")
  if not isinstance(layer, int) or layer < 0:
    return ""
  if found := re.fullmatch(r"(resid_post|resid|mlp|attention|attn)_?(?:layer)?_?(\d+)?", module):
    return {"resid_post": f"layer.{layer}.resid", "resid": f"layer.{layer}.resid", "mlp": f"layer.{layer}.mlp.out"}.get(
        found[1], f"layer.{layer}.attn.out")
  return site_of(module) if "." in module else ""


def _linear(arrays: dict[str, np.ndarray], bias: str) -> dict[str, np.ndarray]:
  """The parameters of a dictionary whose encoder and decoder are linear layers."""
  return {"W_enc_MF": _transposed(arrays, "encoder.weight"), "W_dec_FO": _transposed(arrays, "decoder.weight"),
          "b_dec_O": arrays[bias]}


Read = tuple[Form, dict[str, np.ndarray], dict[str, Any]]  # the form, the parameters, settings of the nearest recipe


def _standard(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, [*_TRANSPOSED, "encoder.bias", "bias"])
  params = {**_linear(arrays, "bias"), "b_enc_F": arrays["encoder.bias"]}
  norm_F = np.linalg.norm(params["W_dec_FO"], axis=1)
  norm_F = np.where(norm_F > 0, norm_F, np.float32(1))
  if not np.allclose(norm_F, 1, rtol=1e-5, atol=1e-8):  # as that library does when it loads one
    params |= {"W_dec_FO": params["W_dec_FO"] / norm_F[:, None], "W_enc_MF": params["W_enc_MF"] * norm_F[None],
               "b_enc_F": params["b_enc_F"] * norm_F}
  return Form("relu", pre_bias=True), params, {}


def _standard_new(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, [*_TRANSPOSED, "encoder.bias", "decoder.bias"])
  return Form("relu"), {**_linear(arrays, "decoder.bias"), "b_enc_F": arrays["encoder.bias"]}, {"recipe": "apr2024"}


def _gated(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, [*_TRANSPOSED, "decoder_bias", "gate_bias", "r_mag", "mag_bias"])
  return Form("gated", pre_bias=True), {**_linear(arrays, "decoder_bias"), "b_enc_F": arrays["gate_bias"],
                                        "r_F": arrays["r_mag"], "b_mag_F": arrays["mag_bias"]}, {}


def _jumprelu(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
  return Form("threshold"), {"W_enc_MF": arrays["W_enc"], "W_dec_FO": arrays["W_dec"], "b_enc_F": arrays["b_enc"],
                             "b_dec_O": arrays["b_dec"], "threshold_F": arrays["threshold"]}, {}


def _topk(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, [*_TRANSPOSED, "encoder.bias", "b_dec"])
  params = {**_linear(arrays, "b_dec"), "b_enc_F": arrays["encoder.bias"]}
  return Form("topk", number(k, "k", path), pre_bias=True), params, {}


def _batchtopk(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, [*_TRANSPOSED, "encoder.bias", "b_dec", "threshold"])
  params = {**_linear(arrays, "b_dec"), "b_enc_F": arrays["encoder.bias"]}
  return _with_one_threshold(params, arrays["threshold"], {"recipe": "batchtopk", "k": number(k, "k", path)})


def _matryoshka(state: dict[str, Any], path: pathlib.Path, k: Any) -> Read:
  arrays = taken(state, path, ["W_enc", "W_dec", "b_enc", "b_dec", "threshold", "group_sizes"])
  params = {"W_enc_MF": arrays["W_enc"], "W_dec_FO": arrays["W_dec"], "b_enc_F": arrays["b_enc"],
            "b_dec_O": arrays["b_dec"]}
  ends = np.cumsum(arrays["group_sizes"].astype(np.int64))[:-1]
  return _with_one_threshold(params, arrays["threshold"], {
      "recipe": "matryoshka", "k": number(k, "k", path), "group_sizes": tuple(int(end) for end in ends)})


def _with_one_threshold(params: dict[str, np.ndarray], threshold: np.ndarray, settings: dict[str, Any]) -> Read:
  """A BatchTopK in use: every feature has the threshold that the running mean ended with."""
  threshold_F = np.full(len(params["b_enc_F"]), threshold.item(), np.float32)
  return Form("threshold", pre_bias=True), {**params, "threshold_F": threshold_F}, settings
