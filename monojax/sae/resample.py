"""Resampling of dead features, as published (Towards Monosemanticity, "Neuron Resampling").

Each dead feature takes the direction of an input drawn with probability proportional to the square of
the dictionary's loss on it. The draw is made in one pass over a large sample, in memory of one batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from monojax.sae.model import unit_rows
from monojax.sae.nonlinearity import Params
from monojax.sae.parts import MadeRecipe
from monojax.training import TrainState

Draw = dict[str, jax.Array]


def start_draw(n_features: int, n_columns: int) -> Draw:
  """An empty draw: a candidate row for each feature and the total weight seen."""
  return {"candidate_FW": jnp.zeros((n_features, n_columns)), "weight": jnp.zeros(())}


def make_absorb(row_loss: Callable[[Params, jax.Array], jax.Array], n_parts: int = 1) -> Callable[..., Draw]:
  """The compiled function that adds a batch to a draw.

  Weighted reservoir sampling with one slot a feature: after the last batch each slot holds, independently,
  input i with probability loss_i^2 / sum_j loss_j^2.

  Args:
    row_loss: (params, x_BW) -> the training loss of each row, shape (B,).
    n_parts: a batch's loss is computed in so many parts, one after the other.

  Returns:
    (draw, params, x_BW, scale_W, key) -> draw, where scale_W is what the batch's columns are multiplied by.
  """
  @jax.jit
  def absorb(draw: Draw, params: Params, x_BW: jax.Array, scale_W: jax.Array, key: jax.Array) -> Draw:
    x_BW = x_BW.astype(jnp.float32) * scale_W[None]
    x_PBW = x_BW.reshape(n_parts, -1, x_BW.shape[1])
    weight_B = jnp.square(jax.lax.map(lambda part_BW: row_loss(params, part_BW), x_PBW)).reshape(-1)
    total = draw["weight"] + weight_B.sum()
    pick_key, replace_key = jax.random.split(key)
    n_features = draw["candidate_FW"].shape[0]
    cumulative_B = jnp.cumsum(weight_B)
    target_F = jax.random.uniform(pick_key, (n_features,)) * cumulative_B[-1]
    index_F = jnp.minimum(jnp.searchsorted(cumulative_B, target_F, side="right"), x_BW.shape[0] - 1)
    replace_F = jax.random.uniform(replace_key, (n_features,)) * total < weight_B.sum()
    candidate_FW = jnp.where(replace_F[:, None], x_BW[index_F], draw["candidate_FW"])
    return {"candidate_FW": candidate_FW, "weight": total}
  return absorb


def resample(state: TrainState, candidate_FW: jax.Array, recipe: MadeRecipe, window_steps: int,
             encoder_scale: float) -> tuple[TrainState, jax.Array]:
  """Gives every dead feature its candidate's direction and forgets its past.

  A feature is dead if it did not fire in the last `window_steps` steps. Its decoder column becomes the
  candidate at unit norm, its encoder row the same direction with `encoder_scale` times the mean norm
  of the alive rows, and its encoder bias 0. Parameters that its non-linearity adds for each feature get their initial
  values again, the optimiser's moments of just these entries become 0, and the weights' running mean begins anew at
  the new values. Alive features are left as they are, bit for bit, and so is a dead one whose candidate is 0 and has
  no direction.

  Args:
    state: `TrainState` of a dictionary.
    candidate_FW: a row for each feature.
    recipe: `Recipe` of the dictionary.
    window_steps: steps without firing that make a feature dead.
    encoder_scale: 0.2 in the paper.

  Returns:
    (state, number of features resampled).
  """
  model = recipe.model
  candidates = model.within({"W_dec_FO": model.wiring.targets(candidate_FW),
                             "W_enc_MF": model.wiring.inputs(candidate_FW).T})
  written_FO, read_FM = candidates["W_dec_FO"], candidates["W_enc_MF"].T
  dead_F = state.step - state.counters["last_fired_F"] >= window_steps
  dead_F &= (jnp.linalg.norm(written_FO, axis=1) > 0) & (jnp.linalg.norm(read_FM, axis=1) > 0)
  W_enc_MF = state.params["W_enc_MF"]
  norm_F = jnp.linalg.norm(W_enc_MF, axis=0)
  n_alive = jnp.sum(~dead_F)
  # With nothing alive there is no norm to match; the mean of all rows keeps the scale of the weights.
  mean_norm = jnp.where(n_alive > 0, jnp.sum(jnp.where(dead_F, 0.0, norm_F)) / jnp.maximum(n_alive, 1),
                        norm_F.mean())
  fresh = {"W_dec_FO": unit_rows(written_FO), "W_enc_MF": encoder_scale * mean_norm * unit_rows(read_FM).T,
           "b_enc_F": jnp.zeros_like(norm_F), **model.nonlinearity.per_feature(len(dead_F))}
  dead = {name: {"W_dec_FO": dead_F[:, None], "W_enc_MF": dead_F[None]}.get(name, dead_F) for name in fresh}
  remade = lambda params: {**params, **{name: jnp.where(dead[name], fresh[name], params[name]) for name in fresh}}

  def forget(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path[-1:], simple=True)  # moments bear their parameters' names
    return jnp.where(dead[name], jnp.zeros((), leaf.dtype), leaf) if name in dead else leaf

  counters = {**state.counters,
              "last_fired_F": jnp.where(dead_F, state.step, state.counters["last_fired_F"])}
  if recipe.ema_decay:
    counters["ema"] = remade(counters["ema"])
  opt_state = jax.tree.map_with_path(forget, state.opt_state)
  return dataclasses.replace(state, params=remade(state.params), opt_state=opt_state, counters=counters), dead_F.sum()
