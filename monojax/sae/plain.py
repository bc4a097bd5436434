"""A dictionary of one site as plain arrays, for programs that run it without jax, such as a page.

Letters: M numbers read, O numbers written, F features.
"""

import typing

import numpy as np

from monojax.sae.dictionary import SAE
from monojax.sae.form import form_of, thresholds


class PlainEncoder(typing.NamedTuple):
  """What turns a row x into features: a = x W + shift, and then, by `nonlinearity`,

  * "relu": max(a + bias, 0);
  * "threshold": the same where it is above the feature's threshold, else 0;
  * "topk": the same for the k largest of a row;
  * "gated": max(scale a + magnitude_bias, 0) where a + bias is above 0, else 0.

  Attributes:
    nonlinearity: which of these.
    k: of "topk".
    arrays: float32: "encoder" (M, F), "shift" and "bias" (F,), "directions" (F, O), which is what one unit of each
      feature adds to what is written; and those of the non-linearity, "threshold", "scale", "magnitude_bias" (F,).
  """
  nonlinearity: str
  k: int
  arrays: dict[str, np.ndarray]


def plain_encoder(sae: SAE) -> PlainEncoder | None:
  """The encoder of a dictionary; None where it is none that `PlainEncoder` can say, as where rows are standardised."""
  form = form_of(sae.model)
  if form.rows or form.by_norm and form.nonlinearity == "gated":
    return None
  double = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
  W_enc_MF, bias_F = double["W_enc_MF"], double["b_enc_F"]
  shift_F = -double["b_dec_O"] @ W_enc_MF if form.pre_bias else np.zeros_like(bias_F)
  if form.by_norm:  # h is multiplied by the norms before the non-linearity
    norm_F = np.linalg.norm(double["W_dec_FO"], axis=1)
    W_enc_MF, bias_F, shift_F = W_enc_MF * norm_F[None], bias_F * norm_F, shift_F * norm_F
  arrays = {"encoder": W_enc_MF, "shift": shift_F, "bias": bias_F, "directions": sae.direction_FO}
  if form.nonlinearity == "threshold":
    arrays["threshold"] = np.asarray(thresholds(sae.model, sae.params))
  if form.nonlinearity == "gated":
    arrays |= {"scale": np.exp(double["r_F"]), "magnitude_bias": double["b_mag_F"]}
  return PlainEncoder(form.nonlinearity, form.k, {name: np.asarray(array, np.float32)
                                                  for name, array in arrays.items()})
