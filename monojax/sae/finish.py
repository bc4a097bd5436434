"""Between a training state and a dictionary for use, in both directions.

In training a dictionary sees activations scaled by one constant for each site, and its directions obey the recipe's
constraint. A finished dictionary works on activations as they are, and each of its directions has unit norm, so that
features of different dictionaries compare. `finished_params` goes from the first to the second, `training_params` back.
"""

import jax
import jax.numpy as jnp

from monojax.config import require
from monojax.sae.model import Dictionary
from monojax.sae.nonlinearity import Params
from monojax.sae.objectives import decoder_norms
from monojax.sae.parts import MadeRecipe
from monojax.training import TrainState


def kept_params(recipe: MadeRecipe, state: TrainState) -> Params:
  """The weights that are kept of a training state: their running mean where the recipe has one, or the last."""
  return recipe.constrain(state.counters["ema"]) if recipe.ema_decay else state.params


def finished_params(recipe: MadeRecipe, state: TrainState) -> Params:
  """The parameters that work on activations as they are.

  The kept weights, with the data's scale folded in and every direction at unit norm (`decoder_norms`).
  What the dictionary computes does not change: in the TopK family, whose choice depends on the features' norms, all are
  divided by the mean norm instead.

  Args:
    recipe: the dictionary's recipe.
    state: its training state.

  Returns:
    Parameters of `recipe.model`, float32.
  """
  params = rescaled(recipe.model, kept_params(recipe, state), state.counters["scale_W"])
  return with_norms_folded(recipe.model, params, decoder_norms(recipe.model, params))


def training_params(recipe: MadeRecipe, finished: Params, own: Params, scale_W: jax.Array) -> Params:
  """Parameters that train on scaled activations and compute what finished ones do: the inverse of `finished_params`.

  Directions get the norm at which the recipe's constraint keeps them, if it has one. What the recipe has and the
  finished parameters lack, for instance thresholds, is taken from `own`; what they have and it lacks is dropped.

  Args:
    recipe: the recipe that training goes on with.
    finished: parameters for activations as they are, from `finished_params` of this recipe or another.
    own: what the recipe would start from by itself.
    scale_W: what each column of a batch is multiplied by in training.

  Raises:
    InputError: a shape differs from the recipe's, or a skip would be lost.
  """
  require("W_skip_MO" in own or "W_skip_MO" not in finished, "sae.skip", False,
          "the dictionary in sae.start_from has a skip, which would be lost: set it to True")
  shared = {name: jnp.asarray(finished[name]) for name in own if name in finished}
  for name, value in shared.items():
    require(value.shape == own[name].shape, "sae.start_from", f"{name} of shape {value.shape}",
            f"this dictionary's has shape {own[name].shape}: set sae.n_features and the sites alike, or start from "
            "another")
  params = rescaled(recipe.model, shared, 1.0 / scale_W)
  # By how much the constraint would shrink each direction: 1 where it leaves them as they are.
  norm_F = (jnp.linalg.norm(params["W_dec_FO"], axis=1)
            / jnp.maximum(jnp.linalg.norm(recipe.constrain(params)["W_dec_FO"], axis=1), 1e-12))
  folded = with_norms_folded(recipe.model, {**own, **params}, norm_F)
  return {name: folded[name] if name in shared else own[name] for name in own}


def rescaled(model: Dictionary, params: Params, scale_W: jax.Array) -> Params:
  """Parameters that do with x what the given ones do with x * scale_W, their reconstruction divided by it again."""
  scale_M, scale_O = model.wiring.inputs(scale_W), model.wiring.targets(scale_W)
  params = {**params, "W_enc_MF": params["W_enc_MF"] * scale_M[:, None],
            "W_dec_FO": params["W_dec_FO"] / scale_O[None], "b_dec_O": params["b_dec_O"] / scale_O}
  if "W_skip_MO" in params:
    params["W_skip_MO"] = params["W_skip_MO"] * scale_M[:, None] / scale_O[None]
  return params


def with_norms_folded(model: Dictionary, params: Params, norm_F: jax.Array) -> Params:
  """Parameters of the same dictionary with each feature `norm_F` times as large and its direction as much smaller.

  Where features compete by size, and rescaling each would change which win, all take the mean of `norm_F`.
  """
  norm_F = jnp.maximum(norm_F, 1e-12)
  if not model.nonlinearity.folds_norms:
    norm_F = jnp.full_like(norm_F, norm_F.mean(where=norm_F > 1e-12))  # others have no direction
  params = model.nonlinearity.fold(params, norm_F)
  return {**params, "W_enc_MF": params["W_enc_MF"] * norm_F[None], "b_enc_F": params["b_enc_F"] * norm_F,
          "W_dec_FO": params["W_dec_FO"] / norm_F[:, None]}
