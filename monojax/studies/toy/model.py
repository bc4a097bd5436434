"""Toy models of superposition (Elhage et al., 2022): sparse features through a hidden layer too narrow for them.

Letters: I instances trained together, B rows of a batch, N features, M hidden dimensions, S sets of features.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from monojax import metrics
from monojax.config import option, require, require_choices, require_positive


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """One toy model, what its inputs are like, and its training."""
  n_features: int = option(5, "features, which are its inputs")
  n_hidden: int = option(2, "hidden dimensions")
  variant: str = option("relu", "x' = relu(W^T W x + b); linear is without the relu; privileged has h = relu(W x); "
                                "absolute computes |x| as relu(W_out relu(W x) + b)",
                        ("relu", "linear", "privileged", "absolute"))
  inputs: str = option("independent", "features fire independently; those of a set together (correlated); or, of a set "
                                      "that fires, exactly one (anticorrelated)",
                       ("independent", "correlated", "anticorrelated"))
  set_size: int = option(2, "neighbouring features that are a set, where sets are asked for")
  n_steps: int = option(5000, "optimiser steps")
  batch_rows: int = option(512, "rows in a step; all instances see the same randomness")
  learning_rate: float = option(3e-3, "Adam's, which falls to 0 as a cosine")
  seed: int = option(0, "of weights and rows")

  def __post_init__(self):
    require_choices(self, "toy.")
    require_positive(self, "toy.", "n_features", "n_hidden", "set_size", "n_steps", "batch_rows", "learning_rate")
    require(self.inputs == "independent" or self.n_features % self.set_size == 0, "toy.set_size", self.set_size,
            f"must divide n_features={self.n_features}")


class ToyModel(nn.Module):
  """`apply({"params": params}, x_BN, edit=None) -> (x'_BN, {"hidden": h_BM})`, the contract of every subject."""
  config: ToyConfig

  @nn.compact
  def __call__(self, x_BN, edit=None):
    c = self.config
    scale = (c.n_features * c.n_hidden) ** -0.25  # Xavier's, of a square matrix of as many entries
    W_NM = self.param("W_NM", nn.initializers.normal(scale), (c.n_features, c.n_hidden))
    b_N = self.param("b_N", nn.initializers.zeros, (c.n_features,))
    params = {"W_NM": W_NM, "b_N": b_N}
    if c.variant == "absolute":
      params["W_out_MN"] = self.param("W_out_MN", nn.initializers.normal(scale), (c.n_hidden, c.n_features))
    edited = lambda h_MB: edit["hidden"](h_MB.T).T if edit and "hidden" in edit else h_MB
    y_NB, h_MB = forward(c.variant, params, x_BN.T, edited)
    return y_NB.T, {"hidden": h_MB.T}


def forward(variant, params, x_NB, edited=lambda h_MB: h_MB):
  """(y_NB, h_MB). Rows are columns here: XLA's CPU products of many small matrices are several times as fast."""
  h_MB = params["W_NM"].T @ x_NB
  h_MB = edited(nn.relu(h_MB) if variant in ("privileged", "absolute") else h_MB)
  y_NB = params.get("W_out_MN", params["W_NM"].T).T @ h_MB + params["b_N"][:, None]
  return y_NB if variant == "linear" else nn.relu(y_NB), h_MB


def draw(config, key):
  """The randomness of a batch, which instances share: uniform numbers, (N, B) and what sets need."""
  value_key, set_key, member_key = jax.random.split(key, 3)
  drawn = {"value_NB": jax.random.uniform(value_key, (config.n_features, config.batch_rows))}
  if config.inputs != "independent":
    sets = (config.n_features // config.set_size, config.batch_rows)
    drawn |= {"set_SB": jax.random.uniform(set_key, sets), "member_SB": jax.random.uniform(member_key, sets)}
  return drawn


def inputs_of(config, drawn, probability_N):
  """x_NB of one instance: a feature is 0 but with its probability, and then U[0, 1], or U[-1, 1] for absolute.

  In sets the first member's probability is the set's.
  """
  value_NB, probability_N1 = drawn["value_NB"], probability_N[:, None]
  if config.inputs == "independent":
    on_NB, value_NB = value_NB < probability_N1, value_NB / probability_N1  # uniform again, given that it is on
  else:
    on_NB = jnp.repeat(drawn["set_SB"] < probability_N1[::config.set_size], config.set_size, axis=0)
    if config.inputs == "anticorrelated":
      chosen_NB = jnp.repeat(jnp.floor(drawn["member_SB"] * config.set_size), config.set_size, axis=0)
      on_NB &= chosen_NB == (jnp.arange(config.n_features) % config.set_size)[:, None]
  if config.variant == "absolute":
    value_NB = 2 * value_NB - 1
  return jnp.where(on_NB, value_NB, 0)


def loss_of(variant, params, x_NB, importance_N):
  """(B,) losses of rows: sum over i of importance_i (target_i - y_i)^2."""
  y_NB, _ = forward(variant, params, x_NB)
  target_NB = jnp.abs(x_NB) if variant == "absolute" else x_NB
  return (importance_N[:, None] * jnp.square(target_NB - y_NB)).sum(0)


@dataclasses.dataclass(frozen=True)
class Trained:
  """Instances after training.

  Attributes:
    params: each leaf with a leading axis for the instance, on the host.
    loss_I: loss of each on rows it was not trained on.
    history: {"step": (T,), "loss_TI", and for each leaf its values at those steps (T, I, ...)}, if asked for.
  """
  params: dict
  loss_I: np.ndarray
  history: dict

  def lowest(self, n_settings):
    """Of each setting's consecutive instances the one with the lowest loss."""
    best_S = self.loss_I.reshape(n_settings, -1).argmin(1)
    index_S = np.arange(n_settings) * (len(self.loss_I) // n_settings) + best_S
    return Trained({name: leaf[index_S] for name, leaf in self.params.items()}, self.loss_I[index_S],
                   {name: value if name == "step" else value[:, index_S] for name, value in self.history.items()})


def train_toys(config, importance_IN, probability_IN, n_records=0, name="toy models", n_calls=20, n_loss_batches=64):
  """Trains all instances at once, in one compiled step that is mapped over them.

  Args:
    config: `ToyConfig`.
    importance_IN: weight of each feature's error.
    probability_IN: with which each fires; of a set the first member's counts.
    n_records: how many times the state of training is kept.
    name: the progress bar's label.
    n_calls: compiled calls that the steps are cut into.
    n_loss_batches: batches of the final loss.

  Returns:
    `Trained`.
  """
  model = ToyModel(config)
  importance_IN, probability_IN = jnp.asarray(importance_IN, jnp.float32), jnp.asarray(probability_IN, jnp.float32)
  init_key, train_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
  first = lambda key: model.init(key, jnp.zeros((1, config.n_features)))["params"]
  params = jax.vmap(first)(jax.random.split(init_key, len(importance_IN)))
  tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.n_steps))

  def losses(params, key):
    drawn = draw(config, key)
    one = lambda params, importance_N, probability_N: loss_of(
        config.variant, params, inputs_of(config, drawn, probability_N), importance_N).mean()
    return jax.vmap(one)(params, importance_IN, probability_IN)

  def step(carry, number):
    params, state = carry
    # Instances do not depend on each other: the gradient of the sum holds each one's own.
    gradients = jax.grad(lambda params: losses(params, jax.random.fold_in(train_key, number)).sum())(params)
    updates, state = tx.update(gradients, state)
    return (optax.apply_updates(params, updates), state), None

  @functools.partial(jax.jit, donate_argnums=0)
  def run(carry, numbers):
    return jax.lax.scan(step, carry, numbers)[0]

  @jax.jit
  def final(params):
    keys = jax.vmap(lambda i: jax.random.fold_in(test_key, i))(jnp.arange(n_loss_batches))
    return jax.lax.map(lambda key: losses(params, key), keys).mean(0)

  carry, history = (params, tx.init(params)), {"step": [], "loss_TI": []}
  pieces = np.array_split(np.arange(config.n_steps), max(n_calls, n_records))
  bar = metrics.progress(config.n_steps, "steps", name)
  for piece in pieces:
    carry = run(carry, jnp.asarray(piece))
    if n_records:
      history["step"].append(piece[-1] + 1)
      history["loss_TI"].append(np.asarray(final(carry[0])))
      for leaf, value in carry[0].items():
        history.setdefault(leaf, []).append(np.asarray(value))
    jax.block_until_ready(carry)
    bar.update(len(piece))
  bar.close()
  params = jax.tree.map(np.asarray, carry[0])
  kept = {leaf: np.stack(values) for leaf, values in history.items()} if n_records else {}
  return Trained(params, np.asarray(final(carry[0])), kept)
