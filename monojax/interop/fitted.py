"""A dictionary of another tool, fitted to the subject that it is taken to: what its files mean and do not say.

Letters: M width read, F features.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from monojax.config import require
from monojax.interop import sae_lens
from monojax.interop.plain import OF_MODULE, ORIGIN
from monojax.sae.dictionary import SAE

_STREAM = re.compile(r"embed|layer\.\d+\.(resid|mid|attn\.out|mlp\.out)")  # what TransformerLens centres


def fitted(sae: SAE, site_widths: Mapping[str, int], has_layer_norms: bool) -> SAE:
  """The dictionary with the sites, and on the activations, that its tool means in this subject.

  * sparsify and dictionary_learning name modules, and mean what a module gives. Where a norm stands behind it, as in
    Gemma, that is `mlp.out_raw` or `attn.out_raw`, and not what is added to the residual stream.
  * TransformerLens can centre the weights of a subject with LayerNorms that write to the residual stream, so that each
    row there has the mean 0, which changes no logits. A dictionary that was trained on such rows subtracts the mean of
    a row before it encodes; that is folded into its encoder.

  Args:
    sae: a dictionary from `monojax.interop.read`; others come back as they are.
    site_widths: of the subject.
    has_layer_norms: whether the subject's norms subtract the mean.
  """
  origin = sae.about.get(ORIGIN, {})
  if origin.get(OF_MODULE):
    sites = tuple(f"{site}_raw" if f"{site}_raw" in site_widths else site for site in sae.sites)
    sae = dataclasses.replace(sae, sites=sites)
  if has_layer_norms and _was_centred(origin) and all(_STREAM.fullmatch(site) for site in sae.reads):
    require(sae.form is None or sae.form.rows != "rescaled", "source", "constant_norm_rescale", "was trained on "
            "centred activations, whose norms are others than those of the subject here: it cannot be used on it")
    sae = dataclasses.replace(sae, params=_reading_centred(sae))
  return sae


def _was_centred(origin: Mapping[str, Any]) -> bool:
  """Whether a file of SAELens says that its subject's writing weights were centred."""
  return bool((sae_lens.metadata_of(origin).get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))


def _reading_centred(sae: SAE) -> dict:
  """The parameters of a dictionary that subtracts a row's mean and then does what this one does."""
  W_MF = np.asarray(sae.params["W_enc_MF"], np.float64)
  centred_MF = W_MF - W_MF.mean(0, keepdims=True)
  changed = {"W_enc_MF": centred_MF}
  if sae.form is not None and sae.form.pre_bias:  # the bias was subtracted from centred rows, and is none itself
    b_M = np.asarray(sae.params["b_dec_O"], np.float64)
    shift_F = b_M @ (centred_MF - W_MF)
    changed["b_enc_F"] = np.asarray(sae.params["b_enc_F"], np.float64) + shift_F
    if "b_mag_F" in sae.params:
      changed["b_mag_F"] = np.asarray(sae.params["b_mag_F"]) + np.exp(np.asarray(sae.params["r_F"])) * shift_F
  if "W_skip_MO" in sae.params:
    skip_MO = np.asarray(sae.params["W_skip_MO"], np.float64)
    changed["W_skip_MO"] = skip_MO - skip_MO.mean(0, keepdims=True)
  return {**sae.params, **{name: jnp.asarray(value, jnp.float32) for name, value in changed.items()}}
