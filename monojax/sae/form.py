"""What a dictionary computes where that is not what its recipe would: dictionaries that other tools have trained.

A dictionary that monojax trained says which recipe made it, and that says what it computes. One that was read from
another tool's files (`monojax.interop`) says so by a `Form`, which is kept beside its parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from monojax.config import COUNT_OR_0, option, require, require_rules
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.nonlinearity import BatchTopK, Gated, JumpReLU, Nonlinearity, Params, ReLU, Threshold, TopK

NONLINEARITIES = ("relu", "threshold", "topk", "gated")
ROWS = ("", "standardised", "rescaled")
_SMALLEST_THRESHOLD = 1e-30  # what a threshold of 0 or below is where its logarithm is kept


@dataclasses.dataclass(frozen=True)
class Form:
  """What a dictionary computes; see `monojax.sae.model.Dictionary`."""
  nonlinearity: str = option("relu", "relu: max(h, 0); threshold: the same where h is above the feature's threshold, "
                             "and 0 elsewhere; topk: the k largest of a row; gated: see the recipe", NONLINEARITIES)
  k: int = option(0, "features of a row that topk keeps", COUNT_OR_0)
  pre_bias: bool = option(False, "whether the decoder's bias is subtracted from the input")
  skip: bool = option(False, "whether the input also reaches the output by a matrix of its own")
  by_norm: bool = option(False, "whether features are measured in units of their directions' norms")
  rows: str = option("", "what is done to each row by itself, and undone in the reconstruction", ROWS)

  def __post_init__(self) -> None:
    require_rules(self, "form.")
    require((self.nonlinearity == "topk") == (self.k > 0), "form.k", self.k, "is for topk, which needs it")
    require(not (self.rows and self.skip), "form.rows", self.rows, "cannot be with a skip")

  def model(self, wiring: Wiring, n_features: int, dtype: Any) -> Dictionary:
    """The model that computes this.

    Raises:
      InputError: b_dec is to be subtracted from what is not written.
    """
    made: dict[str, Nonlinearity] = {"relu": ReLU(), "threshold": Threshold(), "gated": Gated(), "topk": TopK(self.k)}
    require(wiring.autoencodes or not (self.pre_bias or self.rows), "form", self, "needs a dictionary that writes what "
            "it reads: the decoder's bias, or what was done to the rows, is of what is written")
    return Dictionary(wiring, n_features, made[self.nonlinearity], self.pre_bias, self.skip, dtype=dtype,
                      by_norm=self.by_norm, rows=self.rows)


def form_of(model: Dictionary) -> Form:
  """What any dictionary computes, be it of a form or of a recipe; both kinds of BatchTopK have thresholds in use.

  Raises:
    InputError: its recipe, which is not part of monojax, has a non-linearity of its own.
  """
  names: dict[type, str] = {ReLU: "relu", JumpReLU: "threshold", BatchTopK: "threshold", Threshold: "threshold",
                            TopK: "topk", Gated: "gated"}
  kind = type(model.nonlinearity)
  require(kind in names, "sae", kind.__name__, f"has another non-linearity than {', '.join(NONLINEARITIES)}")
  k = model.nonlinearity.k if isinstance(model.nonlinearity, TopK) else 0
  return Form(names[kind], k, model.pre_bias, model.skip, model.by_norm, model.rows)


def thresholds(model: Dictionary, params: Params) -> jax.Array:
  """The threshold of each feature, shape (F,), of a dictionary whose form has the non-linearity "threshold"."""
  if isinstance(model.nonlinearity, Threshold):
    return params["threshold_F"]
  if isinstance(model.nonlinearity, JumpReLU):
    return jnp.exp(params["log_threshold_F"])
  return jnp.full((model.n_features,), params["threshold"])


def like(model: Dictionary, theirs: Dictionary, params: Params) -> Params:
  """Parameters for one model that compute what a dictionary of another model does, as far as parameters can say it.

  The decoder's bias that only one of them subtracts goes into the encoder's, norms that only `theirs` reckons with go
  into the matrices, and thresholds become what `model` keeps of them.

  Args:
    model: the model that the parameters are to be for, of a recipe.
    theirs: the model that they are of.
    params: its parameters.

  Raises:
    InputError: each row is changed by itself, which no parameters can say.
  """
  require(not theirs.rows, "sae.start_from", f"a dictionary of {theirs.rows} rows",
          "no recipe trains on rows that are changed one by one: such a dictionary can be used, not trained further")
  if theirs.by_norm:  # a feature without a direction never fires there
    norm_F = jnp.linalg.norm(params["W_dec_FO"], axis=1)
    params = {**params, "W_enc_MF": params["W_enc_MF"] * norm_F[None], "b_enc_F": params["b_enc_F"] * norm_F,
              "W_dec_FO": params["W_dec_FO"] / jnp.where(norm_F > 0, norm_F, 1.0)[:, None]}
  shift_F = params["b_dec_O"] @ params["W_enc_MF"] if theirs.pre_bias != model.pre_bias else 0.0
  # Where b_dec is not subtracted before the encoder, the encoder's bias has to do the same.
  shift_F = shift_F if model.pre_bias else -shift_F
  params = {**params, "b_enc_F": params["b_enc_F"] + shift_F}
  if "b_mag_F" in params:  # the magnitudes have a bias of their own, beside the encoder's rescaled
    params = {**params, "b_mag_F": params["b_mag_F"] + jnp.exp(params["r_F"]) * shift_F}
  if type(theirs.nonlinearity) is type(model.nonlinearity) or isinstance(theirs.nonlinearity, TopK):
    return params  # they keep the same, or there is no threshold
  if isinstance(theirs.nonlinearity, Gated):  # the magnitude, from where on the gate opens
    scale_F, b_mag_F = jnp.exp(params["r_F"]), params["b_mag_F"]
    threshold_F = b_mag_F - scale_F * params["b_enc_F"]
    params = {**params, "W_enc_MF": params["W_enc_MF"] * scale_F[None], "b_enc_F": b_mag_F}
  elif isinstance(theirs.nonlinearity, ReLU):
    threshold_F = jnp.zeros((theirs.n_features,))
  else:
    threshold_F = thresholds(theirs, params)
  if isinstance(model.nonlinearity, JumpReLU):
    params = {**params, "log_threshold_F": jnp.log(jnp.maximum(threshold_F, _SMALLEST_THRESHOLD))}
  if isinstance(model.nonlinearity, BatchTopK) and bool(((threshold_F == threshold_F[0]) & (threshold_F > 0)).all()):
    params = {**params, "threshold": threshold_F[0]}
  if isinstance(model.nonlinearity, Gated):  # above its threshold the encoder opens the gate, and its magnitude is h
    b_enc_F = params["b_enc_F"]
    params = {**params, "r_F": jnp.zeros_like(b_enc_F), "b_mag_F": b_enc_F,
              "b_enc_F": b_enc_F - jnp.maximum(threshold_F, 0.0)}
  return params
