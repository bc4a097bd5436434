"""The subject of the index-arithmetic study: a multi-layer perceptron (MLP) on numbers.

It is trained with batch normalisation, which is put into its weights and biases when training ends.

Letters: B rows of a batch, I the numbers that a layer reads, O the numbers that the MLP gives out, M width of a site, S
steps of one compiled call. In this module H is units of a layer.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.config import COUNT, COUNT_OR_0, FRACTION, NOT_NEGATIVE, POSITIVE, SEED, option, require, require_rules
from monojax.linear import matmul
from monojax.metrics import MetricsConfig
from monojax.training import Loop, TrainState, train

_EPSILON = 1e-5  # what is added to a variance before dividing by its root

# The mean and the variance of each unit's pre-activations in a layer.
Moments = Sequence[tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class MLPConfig:
  """The MLP's architecture and its training."""
  n_inputs: int = option(10, "number of numbers in a row", COUNT)
  hidden: tuple[int, ...] = option((256, 512, 256), "number of units of each hidden layer", COUNT)
  n_normed: int = option(2, "number of hidden layers, from the first on, whose pre-activations are batch-normalised in "
                            "training", COUNT_OR_0)
  n_outputs: int = option(1, "number of numbers that the MLP gives out for a row", COUNT)
  n_linear: int = option(0, "number of hidden layers, from the first on, without a ReLU; of inputs that are symbols, "
                            "one such layer is an embedding", COUNT_OR_0)
  n_steps: int = option(6000, "number of optimiser steps", COUNT)
  batch_rows: int = option(1024, "number of rows in a step", COUNT)
  learning_rate: float = option(1e-2, "AdamW's learning rate at its peak, between one rise and one fall (one cycle)",
                                POSITIVE)
  weight_decay: float = option(1e-5, "AdamW's weight decay", NOT_NEGATIVE)
  activity_penalties: tuple[float, ...] = option((), "for each hidden layer, the weight of a penalty on the sum of its "
                                                     "activations, which rises from 0 over the first third of the "
                                                     "steps; no penalties by default", NOT_NEGATIVE)
  noise: tuple[float, ...] = option((), "for each hidden layer, the standard deviation of Gaussian noise that is added "
                                        "to its activations in training, over their root mean square; no noise by "
                                        "default", NOT_NEGATIVE)
  relaxed_fraction: float = option(0.0, "last part of the steps, 0 to 1, over which penalties and noise fall linearly "
                                        "to 0, so that they leave less bias", FRACTION)
  scan_steps: int = option(50, "steps in one call of the compiled function, and between lines of metrics", COUNT)
  checkpoint_every_steps: int = option(2000, "steps between checkpoints, from which an interrupted training resumes",
                                       COUNT)
  seed: int = option(0, "seed of the initial weights", SEED)

  def __post_init__(self) -> None:
    require_rules(self, "mlp.")
    require(self.hidden, "mlp.hidden", self.hidden, "needs the width of a layer or more")
    for name in ("activity_penalties", "noise"):
      values = getattr(self, name)
      require(not values or len(values) == len(self.hidden), f"mlp.{name}", ",".join(map(str, values)),
              f"needs a number for each of {len(self.hidden)} hidden layers")
    require(not any(self.noise[:max(self.n_normed - 1, 0)]), "mlp.noise", ",".join(map(str, self.noise)),
            "must be 0 before a normalised layer, whose moments it would change")
    for name in ("n_normed", "n_linear"):
      require(getattr(self, name) <= len(self.hidden), f"mlp.{name}", getattr(self, name),
              f"must not exceed {len(self.hidden)}, the number of hidden layers")

  @property
  def widths(self) -> tuple[int, ...]:
    """The number of inputs, of units of each hidden layer, and of outputs."""
    return (self.n_inputs, *self.hidden, self.n_outputs)


class MLP(nn.Module):
  """The trained MLP, whose batch normalisation is part of its weights and biases (see `folded`).

  It is applied as subjects are, but to rows of numbers: `apply({"params": params}, x_BI, edit=None) -> (y_BO, sites)`.
  Its sites are `layer.L.mlp.hidden`, the activations of hidden layer L after its ReLU, if it has one.

  Attributes:
    config: the architecture.
  """
  config: MLPConfig

  @nn.compact
  def __call__(self, x_BI: jax.Array,
               edit: dict[str, Callable] | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(outputs y_BO, {site: activations of shape (B, M)}); `edit` maps a site to a function of its activations."""
    widths, edit = self.config.widths, edit or {}
    sites: dict[str, jax.Array] = {}
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
      W_IH = self.param(f"W_{i}_IH", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), (n_in, n_out))
      b_H = self.param(f"b_{i}_H", nn.initializers.zeros, (n_out,))
      x_BI = matmul(x_BI, W_IH, jnp.float32) + b_H[None]
      if i < len(self.config.hidden):
        name = f"layer.{i}.mlp.hidden"
        x_BI = x_BI if i < self.config.n_linear else nn.relu(x_BI)
        sites[name] = x_BI = edit[name](x_BI) if name in edit else x_BI
    if unknown := set(edit) - set(sites):
      raise ValueError(f"edit names {sorted(unknown)}; this subject's sites are {sorted(sites)}")
    return x_BI, sites


def normed_forward(config: MLPConfig, params: dict[str, jax.Array], x_BI: jax.Array,
                   noise_key: jax.Array | None = None,
                   noise_scale: float | jax.Array = 1.0) -> tuple[jax.Array, Moments, list[jax.Array]]:
  """The MLP as it is in training: each batch is normalised by its own moments, and noise may be added.

  Args:
    config: the architecture, and how strong the noise is.
    params: the parameters of training.
    x_BI: the rows of the batch.
    noise_key: the random key of the noise; no noise is added without it.
    noise_scale: a factor of the noise.

  Returns:
    (y_BO, [(mean_H, variance_H)] of the normalised layers, [sum of the activations] of each hidden layer, averaged over
    rows).
  """
  moments: list[tuple[jax.Array, jax.Array]] = []
  activity: list[jax.Array] = []
  last = len(config.widths) - 2
  for i in range(last + 1):
    x_BI = matmul(x_BI, params[f"W_{i}_IH"], jnp.float32) + params[f"b_{i}_H"][None]
    if i < config.n_normed:
      mean_H, variance_H = x_BI.mean(0), x_BI.var(0)
      moments.append((mean_H, variance_H))
      x_BI = (x_BI - mean_H[None]) * jax.lax.rsqrt(variance_H + _EPSILON)[None]
      x_BI = x_BI * params[f"gain_{i}_H"][None] + params[f"shift_{i}_H"][None]
    if i < last:
      x_BI = x_BI if i < config.n_linear else nn.relu(x_BI)
      activity.append(jnp.abs(x_BI).sum(1).mean())
      if noise_key is not None and config.noise and config.noise[i]:
        scale = noise_scale * config.noise[i] * jax.lax.stop_gradient(jnp.sqrt(jnp.square(x_BI).mean()))
        x_BI += scale * jax.random.normal(jax.random.fold_in(noise_key, i), x_BI.shape)
  return x_BI, moments, activity


def folded(config: MLPConfig, params: dict[str, jax.Array], moments: Moments) -> dict[str, jax.Array]:
  """The parameters of `MLP`: those of training, with the normalisation put into weights and biases.

  Args:
    config: the architecture.
    params: the parameters of training.
    moments: [(mean_H, variance_H)] that the normalised layers are normalised by from now on.
  """
  found: dict[str, jax.Array] = {}
  for i in range(len(config.widths) - 1):
    W_IH, b_H = params[f"W_{i}_IH"], params[f"b_{i}_H"]
    if i < config.n_normed:
      mean_H, variance_H = moments[i]
      scale_H = params[f"gain_{i}_H"] * jax.lax.rsqrt(variance_H + _EPSILON)
      W_IH, b_H = W_IH * scale_H[None], (b_H - mean_H) * scale_H + params[f"shift_{i}_H"]
    found |= {f"W_{i}_IH": W_IH, f"b_{i}_H": b_H}
  return found


def train_mlp(config: MLPConfig, batches: Callable[[int, int], tuple[Any, Any]], rows_for_moments: Any,
              directory: str | os.PathLike[str], identity: dict[str, Any], mesh: jax.sharding.Mesh,
              metrics_config: MetricsConfig, name: str = "mlp") -> tuple[MLP, dict[str, Any]]:
  """Trains an MLP by squared error, from the newest checkpoint in the folder if there is one.

  Penalties on activations (`activity_penalties`) make few units active at a time. Noise on activations makes the MLP
  insensitive to small errors in them, such as those of a reconstruction.

  Args:
    config: the settings.
    batches: (first step, last step) -> (x_SBI, y_SBO), the rows and answers of those steps; a pure function. Rows are
      split over the mesh's axis "data".
    rows_for_moments: x_BI, the rows whose moments the trained MLP is normalised by.
    directory: the folder, which receives `checkpoints/` and `metrics.jsonl`.
    identity: a JSON-able dict that is kept with the checkpoints.
    mesh: the mesh.
    metrics_config: where metrics go besides `metrics.jsonl`.
    name: the progress bar's label.

  Returns:
    (the MLP, its parameters on the host).
  """
  n_weights = sum(n_in * n_out for n_in, n_out in zip(config.widths[:-1], config.widths[1:], strict=True))
  n_numbers = 4 * n_weights + config.batch_rows * sum(config.widths)  # with gradients and moments; activations
  meshes.require_memory(mesh, 4 * n_numbers, "mlp.hidden", config.hidden, 
                        f"take fewer units, or fewer rows in a step than mlp.batch_rows={config.batch_rows}")
  model = MLP(config)
  schedule = optax.cosine_onecycle_schedule(config.n_steps, config.learning_rate)
  tx = optax.adamw(schedule, weight_decay=config.weight_decay)

  def begin():
    params = model.init(jax.random.key(config.seed), jnp.zeros((1, config.n_inputs)))["params"]
    for i in range(config.n_normed):
      width = config.hidden[i]
      params |= {f"gain_{i}_H": jnp.ones((width,)), f"shift_{i}_H": jnp.zeros((width,))}
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {})

  def one_step(state, batch):
    x_BI, y_BO = batch
    done = state.step / config.n_steps
    fall = jnp.minimum(1.0, (1 - done) / config.relaxed_fraction) if config.relaxed_fraction else 1.0
    strength = fall * jnp.minimum(1.0, 3 * done)
    noise_key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)

    def loss_of(params):
      found_BO, _, activity = normed_forward(config, params, x_BI, noise_key, fall)
      mse = jnp.square(found_BO - y_BO).mean()
      pairs = zip(config.activity_penalties, activity, strict=False)  # there are no pairs where no penalties are given
      return mse + strength * sum(penalty * level for penalty, level in pairs), mse
    (loss, mse), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, {}), {"loss": loss, "mse": mse}

  def step(state, batch):
    state, values = jax.lax.scan(one_step, state, batch)
    return state, jax.tree.map(jnp.mean, values)

  def placed(first, last):
    return tuple(meshes.on_mesh(part, mesh, P(None, "data", None)) for part in batches(first, last))

  meshes.require_divides(mesh, "data", config.batch_rows)
  loop = Loop(pathlib.Path(directory), identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps, (),
              "rows", config.batch_rows, name)
  state = train(meshes.born_sharded(begin, mesh, {}), jax.jit(step, donate_argnums=0), placed, loop, metrics_config)
  finish = jax.jit(lambda params, x_BI: folded(config, params, normed_forward(config, params, x_BI)[1]))
  return model, meshes.to_host(finish(state.params, rows_for_moments))
