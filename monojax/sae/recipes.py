"""Recipes: a published method is a model, an objective, an optimiser, a constraint and a schedule."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from monojax.sae import objectives
from monojax.sae.model import Dictionary, unit_rows


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The parts that the training step composes.

  Attributes:
    model: `Dictionary`.
    objective: (params, x_BM, penalty scale) -> (loss, terms).
    row_loss: (params, x_BM) -> loss of each row, with the full penalty and without nested groups.
    tx: optax transformation of the gradients.
    constrain: params -> params, applied after each update.
    penalty_scale: step -> factor of the sparsity penalty.
  """
  model: Dictionary
  objective: Callable
  row_loss: Callable
  tx: optax.GradientTransformation
  constrain: Callable
  penalty_scale: Callable


def tm2023(config, n_inputs, dtype):
  """Towards Monosemanticity (2023): ReLU, L1, unit decoder columns.

  The decoder gradient's part along each column is removed before Adam, so that its moments do not see
  it, and the columns are scaled back to unit norm after the step. `config.nested_sizes`, empty by default,
  adds to the published loss.

  Args:
    config: `SAEConfig`.
    n_inputs: width of the activations.
    dtype: of the matrix products.
  """
  model = Dictionary(n_inputs, config.n_features, jax.nn.relu, config.encoder_init, dtype)
  tx = optax.chain(remove_parallel_gradient(),
                   optax.scale_by_adam(config.beta1, config.beta2),
                   optax.scale_by_learning_rate(learning_rate_schedule(config)))
  return Recipe(
      model, objectives.mean_square_and_l1(model, config.l1_coefficient, config.nested_sizes,
                                           config.nested_weight),
      lambda params, x_BM: objectives.loss_per_row(model, config.l1_coefficient, params, x_BM),
      tx, unit_decoder, linear_warmup(config.l1_warmup_steps))


def linear_warmup(n_steps):
  """step -> min(1, (step + 1) / n_steps); 1 where n_steps is 0."""
  return lambda step: jnp.minimum(1.0, (step + 1.0) / max(n_steps, 1))


def learning_rate_schedule(config):
  """Linear warm-up, constant, linear decay to 0 over the last `decay_fraction` of the steps."""
  warmup = linear_warmup(config.warmup_steps)
  n_decay = config.decay_fraction * config.n_steps

  def schedule(step):
    left = (config.n_steps - step) / max(n_decay, 1.0)
    return config.learning_rate * warmup(step) * jnp.clip(left, 0.0, 1.0)
  return schedule


def remove_parallel_gradient():
  """Removes from the decoder's gradient its component along each (unit) decoder column."""
  def update(gradients, state, params):
    W_dec_FM, gradient_FM = params["W_dec_FM"], gradients["W_dec_FM"]
    along_F = jnp.sum(gradient_FM * W_dec_FM, axis=1, keepdims=True)
    return {**gradients, "W_dec_FM": gradient_FM - along_F * W_dec_FM}, state
  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def unit_decoder(params):
  """The parameters with every decoder column at unit norm."""
  return {**params, "W_dec_FM": unit_rows(params["W_dec_FM"])}


def make_recipe(config, n_inputs, dtype):
  """The recipe that `config.recipe` names."""
  return {"tm2023": tm2023}[config.recipe](config, n_inputs, dtype)
