"""The toy models of superposition (Elhage et al., 2022), and their training.

A toy model has to give back its inputs, which are sparse features, after they have passed through a hidden layer with
fewer dimensions than there are features. Many instances of one model, with features of different importance and
density, are trained together.

Letters: B rows of a batch, M hidden dimensions. In this module I is instances, N features, S sets of features and T
times at which training is recorded.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from monojax import metrics
from monojax.config import COUNT, POSITIVE, SEED, option, require, require_rules


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """A toy model, how its inputs are distributed, and its training."""
  n_features: int = option(5, "number of features, which are the model's inputs", COUNT)
  n_hidden: int = option(2, "number of hidden dimensions", COUNT)
  variant: str = option("relu", "what the model computes. relu: relu(W^T W x + b); linear: W^T W x + b; privileged: "
                                "relu(W^T relu(W x) + b); absolute: relu(W_out relu(W x) + b), which is to be |x|",
                        ("relu", "linear", "privileged", "absolute"))
  inputs: str = option("independent", "which features fire together: each fires independently of the others; or the "
                                      "features of a set fire together (correlated); or exactly one feature fires of "
                                      "each set that fires (anticorrelated)",
                       ("independent", "correlated", "anticorrelated"))
  set_size: int = option(2, "number of neighbouring features in a set, for correlated and anticorrelated", COUNT)
  n_steps: int = option(5000, "number of optimiser steps", COUNT)
  batch_rows: int = option(512, "number of rows in a step; all instances see the same random numbers", COUNT)
  learning_rate: float = option(3e-3, "Adam's learning rate at the first step, from which it falls to 0 as a cosine",
                                POSITIVE)
  seed: int = option(0, "seed of the weights and of the rows", SEED)

  def __post_init__(self) -> None:
    require_rules(self, "toy.")
    require(self.inputs == "independent" or self.n_features % self.set_size == 0, "toy.set_size", self.set_size,
            f"must divide n_features={self.n_features}")


class ToyModel(nn.Module):
  """A toy model, which is applied as subjects are: `apply({"params": params}, x_BN, edit=None) -> (outputs, sites)`.

  Its only site is "hidden".

  Attributes:
    config: the model's settings.
  """
  config: ToyConfig

  @nn.compact
  def __call__(self, x_BN: jax.Array,
               edit: dict[str, Callable] | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(outputs of shape (B, N), {"hidden": h_BM}); `edit` maps "hidden" to a function of h_BM."""
    c = self.config
    scale = (c.n_features * c.n_hidden) ** -0.25  # Xavier's scale for a square matrix with as many entries
    W_NM = self.param("W_NM", nn.initializers.normal(scale), (c.n_features, c.n_hidden))
    b_N = self.param("b_N", nn.initializers.zeros, (c.n_features,))
    params = {"W_NM": W_NM, "b_N": b_N}
    if c.variant == "absolute":
      params["W_out_MN"] = self.param("W_out_MN", nn.initializers.normal(scale), (c.n_hidden, c.n_features))
    edited = lambda h_MB: edit["hidden"](h_MB.T).T if edit and "hidden" in edit else h_MB
    y_NB, h_MB = forward(c.variant, params, x_BN.T, edited)
    return y_NB.T, {"hidden": h_MB.T}


def forward(variant: str, params: dict[str, Any], x_NB: jax.Array,
            edited: Callable[[jax.Array], jax.Array] = lambda h_MB: h_MB) -> tuple[jax.Array, jax.Array]:
  """The outputs and the hidden layer of a model, (y_NB, h_MB).

  Here each column is a row of the batch, because XLA's CPU products of many small matrices are then several times as
  fast.

  Args:
    variant: what the model computes, see `ToyConfig`.
    params: its parameters.
    x_NB: its inputs.
    edited: what the hidden layer is replaced by, a function of it.
  """
  h_MB = params["W_NM"].T @ x_NB
  h_MB = edited(nn.relu(h_MB) if variant in ("privileged", "absolute") else h_MB)
  y_NB = params.get("W_out_MN", params["W_NM"].T).T @ h_MB + params["b_N"][:, None]
  return y_NB if variant == "linear" else nn.relu(y_NB), h_MB


def draw(config: ToyConfig, key: jax.Array) -> dict[str, jax.Array]:
  """The random numbers of a batch, which all instances share.

  Returns:
    "value_NB", a uniform number for each feature and row. If features form sets, also "set_SB" and "member_SB", uniform
    numbers by which it is decided whether a set fires and which member of it.
  """
  value_key, set_key, member_key = jax.random.split(key, 3)
  drawn = {"value_NB": jax.random.uniform(value_key, (config.n_features, config.batch_rows))}
  if config.inputs != "independent":
    sets = (config.n_features // config.set_size, config.batch_rows)
    drawn |= {"set_SB": jax.random.uniform(set_key, sets), "member_SB": jax.random.uniform(member_key, sets)}
  return drawn


def inputs_of(config: ToyConfig, drawn: dict[str, jax.Array], probability_N: jax.Array) -> jax.Array:
  """The inputs of one instance, x_NB.

  A feature fires with its probability, and is then distributed as U[0, 1], or as U[-1, 1] if the model computes |x|.
  Where it does not fire it is 0.

  Args:
    config: the model's settings.
    drawn: the random numbers of the batch, from `draw`.
    probability_N: the probability that each feature fires. A set fires with the probability of its first feature.
  """
  value_NB, probability_N1 = drawn["value_NB"], probability_N[:, None]
  if config.inputs == "independent":
    # The same number decides whether a feature fires and gives its value, which is uniform where it fires.
    on_NB, value_NB = value_NB < probability_N1, value_NB / probability_N1
  else:
    on_NB = jnp.repeat(drawn["set_SB"] < probability_N1[::config.set_size], config.set_size, axis=0)
    if config.inputs == "anticorrelated":
      chosen_NB = jnp.repeat(jnp.floor(drawn["member_SB"] * config.set_size), config.set_size, axis=0)
      on_NB &= chosen_NB == (jnp.arange(config.n_features) % config.set_size)[:, None]
  if config.variant == "absolute":
    value_NB = 2 * value_NB - 1
  return jnp.where(on_NB, value_NB, 0)


def loss_of(variant: str, params: dict[str, Any], x_NB: jax.Array, importance_N: jax.Array) -> jax.Array:
  """The loss of each row, (B,): sum over features i of importance_i (target_i - y_i)^2."""
  y_NB, _ = forward(variant, params, x_NB)
  target_NB = jnp.abs(x_NB) if variant == "absolute" else x_NB
  return (importance_N[:, None] * jnp.square(target_NB - y_NB)).sum(0)


@dataclasses.dataclass(frozen=True)
class Trained:
  """Instances of a toy model after training.

  Attributes:
    params: the parameters by name, each with a leading axis for the instances, on the host.
    loss_I: the loss of each instance on rows that it was not trained on.
    history: the state of training at some steps, or nothing if it was not to be recorded: "step", (T,), the steps;
      "loss_TI", the losses; and each parameter by its name, (T, I, ...).
  """
  params: dict[str, np.ndarray]
  loss_I: np.ndarray
  history: dict[str, np.ndarray]

  def lowest(self, n_settings: int) -> "Trained":
    """The instance with the lowest loss for each setting; the instances of a setting are next to each other."""
    best_S = self.loss_I.reshape(n_settings, -1).argmin(1)
    index_S = np.arange(n_settings) * (len(self.loss_I) // n_settings) + best_S
    return Trained({name: leaf[index_S] for name, leaf in self.params.items()}, self.loss_I[index_S],
                   {name: value if name == "step" else value[:, index_S] for name, value in self.history.items()})


def train_toys(config: ToyConfig, importance_IN: Any, probability_IN: Any, n_records: int = 0,
               name: str = "toy models", n_calls: int = 20, n_loss_batches: int = 64) -> Trained:
  """Trains instances of a toy model together, in one compiled step that is mapped over them.

  Args:
    config: the model's settings.
    importance_IN: for each instance, the weight of each feature's error in the loss.
    probability_IN: for each instance, the probability that each feature fires; see `inputs_of`.
    n_records: how many times the state of training is recorded.
    name: the progress bar's label.
    n_calls: how many compiled calls the steps are cut into at least.
    n_loss_batches: how many batches the final loss is measured on.
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
    # Instances do not depend on each other, so that the gradient of their summed loss is the gradient of each.
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

  carry = params, tx.init(params)
  history: dict[str, list] = {"step": [], "loss_TI": []}
  pieces = np.array_split(np.arange(config.n_steps), max(n_calls, n_records))
  with metrics.progress(config.n_steps, "steps", name) as bar:
    for piece in pieces:
      carry = run(carry, jnp.asarray(piece))
      if n_records:
        history["step"].append(piece[-1] + 1)
        history["loss_TI"].append(np.asarray(final(carry[0])))
        for leaf, value in carry[0].items():
          history.setdefault(leaf, []).append(np.asarray(value))
      jax.block_until_ready(carry)
      bar.update(len(piece))
  params = jax.tree.map(np.asarray, carry[0])
  kept = {leaf: np.stack(values) for leaf, values in history.items()} if n_records else {}
  return Trained(params, np.asarray(final(carry[0])), kept)
