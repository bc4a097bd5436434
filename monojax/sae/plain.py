"""A dictionary of one site as plain arrays, for programs that run it without jax, such as a page.

Letters: M numbers read, O numbers written, F features.
"""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np

from monojax.sae.dictionary import SAE
from monojax.sae.form import form_of, like, thresholds


class PlainEncoder(typing.NamedTuple):
  """What turns a row x into features: a = x W, and then, by `nonlinearity`,

  * "relu": max(a + bias, 0);
  * "threshold": the same where it is above the feature's threshold, else 0;
  * "topk": the same for the k largest of a row;
  * "gated": max(scale a + magnitude_bias, 0) where a + bias is above 0, else 0.

  Attributes:
    nonlinearity: which of these.
    k: of "topk".
    arrays: float32: "encoder" (M, F), "bias" (F,), "directions" (F, O), which is what one unit of each feature adds to
      what is written; and those of the non-linearity, "threshold", "scale", "magnitude_bias" (F,).
  """
  nonlinearity: str
  k: int
  arrays: dict[str, np.ndarray]


def plain_encoder(sae: SAE) -> PlainEncoder | None:
  """The encoder of a dictionary; None where it is none that `PlainEncoder` can say, as where rows are standardised."""
  form = form_of(sae.model)
  if form.rows or form.by_norm and form.nonlinearity == "gated":
    return None
  plain = dataclasses.replace(form, pre_bias=False, by_norm=False)
  params = like(plain.model(sae.model.wiring, sae.n_features, jnp.float32), sae.model, sae.params)
  arrays = {"encoder": params["W_enc_MF"], "bias": params["b_enc_F"], "directions": params["W_dec_FO"]}
  if form.nonlinearity == "threshold":
    arrays["threshold"] = thresholds(sae.model, sae.params)
  if form.nonlinearity == "gated":
    arrays |= {"scale": jnp.exp(params["r_F"]), "magnitude_bias": params["b_mag_F"]}
  return PlainEncoder(form.nonlinearity, form.k, {name: np.asarray(array, np.float32)
                                                  for name, array in arrays.items()})
