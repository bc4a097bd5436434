"""From a training state to a dictionary for use: on raw activations, with unit directions."""

import jax
import jax.numpy as jnp

from monojax.sae.objectives import decoder_norms


def finished_params(recipe, state):
  """The parameters that work on activations as they are.

  The running mean of the weights stands for the weights where the recipe keeps one; the data's scale is
  folded in; and every feature is measured by the norm of what it writes, so that directions have unit norm
  (summed over the sites written) and features of different dictionaries compare. What the dictionary
  computes does not change: TopK, whose choice depends on the features' norms, is folded by their mean.

  Args:
    recipe: `Recipe`.
    state: `TrainState`.

  Returns:
    Parameters of `recipe.model`, float32.
  """
  params = averaged(recipe, state)
  wiring = recipe.model.wiring
  scale_M = wiring.inputs(state.counters["scale_W"])
  scale_O = wiring.targets(state.counters["scale_W"])
  params = {**params, "W_enc_MF": params["W_enc_MF"] * scale_M[:, None],
            "W_dec_FO": params["W_dec_FO"] / scale_O[None], "b_dec_O": params["b_dec_O"] / scale_O}
  if "W_skip_MO" in params:
    params["W_skip_MO"] = params["W_skip_MO"] * scale_M[:, None] / scale_O[None]
  norm_F = jnp.maximum(decoder_norms(recipe.model, params), 1e-12)
  if not recipe.model.nonlinearity.folds_norms:
    norm_F = jnp.full_like(norm_F, norm_F.mean())
  params = recipe.model.nonlinearity.fold(params, norm_F)
  return {**params, "W_enc_MF": params["W_enc_MF"] * norm_F[None], "b_enc_F": params["b_enc_F"] * norm_F,
          "W_dec_FO": params["W_dec_FO"] / norm_F[:, None]}


def averaged(recipe, state):
  """The weights' running mean, corrected for its start from 0, or the last weights."""
  if not recipe.ema_decay:
    return state.params
  weight = ema_weight(recipe.ema_decay, state.step)
  mean = jax.tree.map(lambda mean: mean / weight, state.counters["ema"])
  return recipe.constrain(mean)


def ema_weight(decay, step):
  """What the weights of a running mean that started from 0 add up to after so many steps."""
  return 1.0 - decay ** step.astype(jnp.float32)
