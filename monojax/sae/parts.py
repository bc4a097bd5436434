"""The parts that recipes are made of: this module is what a builder in `monojax.sae.recipes` is given as `parts`.

`parts.nonlinearities` say how pre-activations become features, `parts.objectives` what a reconstruction costs and
what is added to it, `parts.starts` what training begins with. `dictionary` makes the model, and `compose` joins
everything with an optimiser to what the training step runs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from monojax.sae import nonlinearity as nonlinearities
from monojax.sae import objectives, starts
from monojax.sae.config import Resolved
from monojax.sae.model import Dictionary, Wiring, unit_rows
from monojax.sae.nonlinearity import Params


@dataclasses.dataclass(frozen=True)
class MadeRecipe:
  """A recipe made for given settings and sites: what the training step composes.

  Attributes:
    model: `Dictionary`.
    objective: from `objectives.make_objective`.
    error: the error of a reconstruction that the objective holds, of `objectives`.
    row_loss: (params, x_BW, mesh) -> the loss of each row, which weighs the draw of resampled directions.
    tx: optax transformation of the gradients, to be multiplied by the learning rate at its peak.
    start: (key, params, sample x_NM, y_NO) -> params: what becomes of the initial ones, given some of the data.
    constrain: params -> params, applied after each update.
    penalty_scale: step -> factor of the sparsity penalty.
    peaks: {"penalty", "learning_rate"}: the settings that a step reads from its state, so that dictionaries
      that differ in nothing else share one compiled step.
    normalised: whether each site is scaled by one constant to E|x| = sqrt(width); raw data otherwise.
    slots: features a row, on average, that a sparse code has room for.
    ema_decay: decay of the weights' running mean, which is what is kept in the end; 0 keeps the last weights.
    kl_coefficient: weight of end-to-end training; see `monojax.sae.downstream`.
  """
  model: Dictionary
  objective: objectives.Objective
  error: objectives.Error
  row_loss: Callable[[Params, jax.Array, Mesh | None], jax.Array]
  tx: optax.GradientTransformation
  start: starts.Start
  constrain: Callable[[Params], Params]
  penalty_scale: Callable[[jax.Array], jax.Array]
  peaks: dict[str, float]
  normalised: bool
  slots: int
  ema_decay: float
  kl_coefficient: float = 0.0


def dictionary(config: Resolved, wiring: Wiring, dtype: Any, nonlinearity: nonlinearities.Nonlinearity, pre_bias: bool,
               encoder_init: str) -> Dictionary:
  """A recipe's model, with the size, the skip and the order of sites that the settings ask for; see `Dictionary`."""
  return Dictionary(wiring, config.n_features, nonlinearity, pre_bias, config.skip, encoder_init, dtype,
                    causal=config.causal)


def compose(config: Resolved, model: Dictionary, *, error: objectives.Error, terms: Sequence[objectives.Term],
            start: starts.Start | None = None, unit_decoder: bool = False, normalised: bool = False,
            group_sizes: Sequence[int] | None = None,
            row_penalty: Callable[[jax.Array], jax.Array] | None = None) -> MadeRecipe:
  """A recipe from its parts and the settings that every recipe has.

  Args:
    config: resolved settings.
    model: from `dictionary`.
    error: the error of a reconstruction, of `monojax.sae.objectives`.
    terms: what is added to it.
    start: of `monojax.sae.starts`; by default the model's own initial parameters.
    unit_decoder: whether every feature's direction is kept at unit norm. The gradient's part along the direction is
      then removed before Adam, so that its moments do not see it, and the norm is restored after each step.
    normalised: see `MadeRecipe`.
    group_sizes: sizes of leading groups that must reconstruct alone; by default those of the settings.
    row_penalty: f_BF -> what is added to a row's squared error in its loss.
  """
  wiring = model.wiring

  def row_loss(params: Params, x_BW: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    y_BO, f_BF = cast(Any, model.apply({"params": params}, wiring.inputs(x_BW), mesh))
    error_B = jnp.square(y_BO - wiring.targets(x_BW)).mean(1)
    return error_B + row_penalty(f_BF) if row_penalty else error_B

  def begin(key: jax.Array, params: Params, x_NM: jax.Array, y_NO: jax.Array) -> Params:
    """The bias at the targets' geometric median where it is subtracted, and in transcoders; then the recipe's start."""
    if model.pre_bias or not wiring.autoencodes:
      params = {**params, "b_dec_O": starts.geometric_median(y_NO)}
    params = start(key, params, x_NM, y_NO) if start else params
    return with_unit_decoder(params) if unit_decoder else params
  terms = [*terms, *([objectives.orthogonality(config.orthogonality_coefficient)]
                     if config.orthogonality_coefficient else [])]
  group_sizes = config.group_sizes if group_sizes is None else group_sizes
  return MadeRecipe(
      model=model, objective=objectives.make_objective(error, terms, group_sizes, weights_of(config, group_sizes)),
      error=error, row_loss=row_loss, tx=optimiser(config, unit_decoder, model.within), start=begin,
      constrain=with_unit_decoder if unit_decoder else (lambda params: params),
      penalty_scale=linear_warmup(config.penalty_warmup_steps),
      peaks={"penalty": config.sparsity_coefficient, "learning_rate": config.learning_rate}, normalised=normalised,
      slots=min(model.nonlinearity.room(config.slots), config.n_features), ema_decay=config.ema_decay,
      kl_coefficient=config.kl_coefficient)


def optimiser(config: Resolved, unit_decoder: bool,
              within: Callable[[Params], Params] = lambda gradients: gradients) -> optax.GradientTransformation:
  """Clipping, the removal of the decoder's parallel gradient, Adam and the learning rate's schedule.

  `within` puts 0 where the gradients are of weights that the dictionary does not have, which then stay 0.
  """
  steps = [optax.stateless(lambda gradients, params: within(gradients))] if config.causal else []
  steps += [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  steps += [remove_parallel_gradient()] if unit_decoder else []
  return optax.chain(*steps, optax.scale_by_adam(config.beta1, config.beta2, config.adam_epsilon),
                     optax.scale_by_learning_rate(learning_rate_schedule(config)))


def weights_of(config: Resolved, group_sizes: Sequence[int]) -> tuple[float, ...]:
  """The weight of each leading group's error."""
  return config.group_weights or (config.group_weight,) * len(group_sizes)


def group_weights(config: Resolved) -> jax.Array | None:
  """How often each feature's L1 counts: once, and its group's weight more for each group that it is in."""
  if not config.group_sizes:
    return None
  number_F = jnp.arange(config.n_features)
  weighted = zip(weights_of(config, config.group_sizes), config.group_sizes, strict=True)
  return 1.0 + jnp.stack([weight * (number_F < n).astype(jnp.float32) for weight, n in weighted]).sum(0)


def linear_warmup(n_steps: int) -> Callable[[jax.Array], jax.Array]:
  """step -> min(1, (step + 1) / n_steps); 1 where n_steps is 0."""
  return lambda step: jnp.minimum(1.0, (step + 1.0) / max(n_steps, 1))


def learning_rate_schedule(config: Resolved) -> Callable[[jax.Array], jax.Array]:
  """Linear warm-up to 1, constant, linear decay to 0 over the last `decay_fraction` of the steps."""
  warmup = linear_warmup(config.warmup_steps)
  n_decay = config.decay_fraction * config.n_steps

  def schedule(step: jax.Array) -> jax.Array:
    left = (config.n_steps - step) / max(n_decay, 1.0)
    return warmup(step) * jnp.clip(left, 0.0, 1.0)
  return schedule


def remove_parallel_gradient() -> optax.GradientTransformation:
  """Removes from the decoder's gradient its component along each (unit) decoder column."""
  def update(gradients, state, params):
    W_dec_FO, gradient_FO = params["W_dec_FO"], gradients["W_dec_FO"]
    along_F = jnp.sum(gradient_FO * W_dec_FO, axis=1, keepdims=True)
    return {**gradients, "W_dec_FO": gradient_FO - along_F * W_dec_FO}, state
  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_unit_decoder(params: Params) -> Params:
  """The parameters with every decoder column at unit norm."""
  return {**params, "W_dec_FO": unit_rows(params["W_dec_FO"])}
