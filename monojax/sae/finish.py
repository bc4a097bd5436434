"""From a training state to a dictionary for use: on raw activations, with unit directions."""

import jax
import jax.numpy as jnp

from monojax.sae.objectives import decoder_norms


def finished_params(recipe, state, fold_norms=True):
  """The parameters that work on activations as they are.

  The running mean of the weights stands for the weights where the recipe keeps one; the data's scale is
  folded in; and every feature is measured by the norm of what it writes, so that directions have unit norm
  (summed over the sites written) and features of different dictionaries compare. What the dictionary
  computes does not change, but for TopK, whose choice depends on the features' norms: there, and where the
  directions are unit already, the last part is left out.

  Args:
    recipe: `Recipe`.
    state: `TrainState`.
    fold_norms: whether to fold the norms, where allowed.

  Returns:
    Parameters of `recipe.model`, float32.
  """
  params = averaged(recipe, state)
  wiring = recipe.model.wiring
  scale_M = wiring.inputs(state.counters["scale_W"])
  scale_O = wiring.targets(state.counters["scale_W"])
  params = {**params, "W_enc_MF": params["W_enc_MF"] * scale_M[:, None],
            "W_dec_FM": params["W_dec_FM"] / scale_O[None], "b_dec_M": params["b_dec_M"] / scale_O}
  if "W_skip_MO" in params:
    params["W_skip_MO"] = params["W_skip_MO"] * scale_M[:, None] / scale_O[None]
  if fold_norms and recipe.model.nonlinearity.folds_norms:
    norm_F = jnp.maximum(decoder_norms(recipe.model, params), 1e-12)
    params = recipe.model.nonlinearity.fold(params, norm_F)
    params = {**params, "W_enc_MF": params["W_enc_MF"] * norm_F[None], "b_enc_F": params["b_enc_F"] * norm_F,
              "W_dec_FM": params["W_dec_FM"] / norm_F[:, None]}
  return params


def averaged(recipe, state):
  """The weights' running mean, corrected for its start from 0, or the last weights."""
  if not recipe.ema_decay:
    return state.params
  weight = 1.0 - recipe.ema_decay ** state.step.astype(jnp.float32)
  mean = jax.tree.map(lambda mean: mean / weight, state.counters["ema"])
  return recipe.constrain(mean)
