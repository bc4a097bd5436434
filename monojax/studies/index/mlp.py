"""A multi-layer perceptron on numbers, with batch normalisation while it trains.

Letters: B rows of a batch, I inputs, H hidden units of a layer.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.config import option, require, require_positive
from monojax.linear import matmul
from monojax.training import Loop, TrainState, train

_EPSILON = 1e-5  # added to a batch's variance


@dataclasses.dataclass(frozen=True)
class MLPConfig:
  """The architecture and its training. The defaults' shape is that of the index-arithmetic study."""
  n_inputs: int = option(10, "numbers in a row")
  hidden: tuple[int, ...] = option((256, 512, 256), "units of the hidden layers")
  n_normed: int = option(2, "hidden layers, from the first on, whose pre-activations are batch-normalised in training")
  n_outputs: int = option(1, "numbers given out")
  n_steps: int = option(6000, "optimiser steps")
  batch_rows: int = option(1024, "rows in a step")
  learning_rate: float = option(1e-2, "peak of the one-cycle schedule")
  weight_decay: float = option(1e-5, "AdamW's decay")
  activity_penalties: tuple[float, ...] = option((), "weight of the sum of a hidden layer's activations in the loss, "
                                                     "one for each layer, rising from 0 in the first third of the "
                                                     "steps; none by default")
  noise: tuple[float, ...] = option((), "standard deviation of the Gaussian noise added to a hidden layer's "
                                        "activations in training, over their root mean square, one for each layer; "
                                        "none by default")
  scan_steps: int = option(50, "steps in one compiled call")
  checkpoint_every_steps: int = option(2000, "steps between checkpoints")
  seed: int = option(0, "of the initial weights")

  def __post_init__(self):
    require_positive(self, "mlp.", "n_inputs", "n_outputs", "n_steps", "batch_rows", "learning_rate", "scan_steps",
                     "checkpoint_every_steps")
    require(self.hidden and all(width > 0 for width in self.hidden), "mlp.hidden", self.hidden, "needs positive widths")
    for name in ("activity_penalties", "noise"):
      values = getattr(self, name)
      require(not values or len(values) == len(self.hidden) and min(values) >= 0, f"mlp.{name}",
              ",".join(map(str, values)), f"needs one of at least 0 for each of {len(self.hidden)} layers")
    require(not any(self.noise[:max(self.n_normed - 1, 0)]), "mlp.noise", ",".join(map(str, self.noise)),
            "must be 0 before a normalised layer, whose moments it would change")
    require(0 <= self.n_normed <= len(self.hidden), "mlp.n_normed", self.n_normed, "must not exceed the hidden layers")

  @property
  def widths(self):
    """Of the inputs, the hidden layers and the outputs."""
    return (self.n_inputs, *self.hidden, self.n_outputs)


class MLP(nn.Module):
  """`apply({"params": params}, x_BI, edit=None) -> (y_BO, sites)`, the contract of every subject.

  `sites` has each layer's activations after its ReLU, `layer.L.mlp.hidden`; `edit` maps a site to a function x -> x.
  Batch normalisation is folded into weights and biases (`folded`).
  """
  config: MLPConfig

  @nn.compact
  def __call__(self, x_BI, edit=None):
    widths, sites, edit = self.config.widths, {}, edit or {}
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
      W_IH = self.param(f"W_{i}_IH", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), (n_in, n_out))
      b_H = self.param(f"b_{i}_H", nn.initializers.zeros, (n_out,))
      x_BI = matmul(x_BI, W_IH, jnp.float32) + b_H[None]
      if i < len(self.config.hidden):
        name = f"layer.{i}.mlp.hidden"
        x_BI = nn.relu(x_BI)
        sites[name] = x_BI = edit[name](x_BI) if name in edit else x_BI
    if unknown := set(edit) - set(sites):
      raise ValueError(f"edit names {sorted(unknown)}; this subject's sites are {sorted(sites)}")
    return x_BI, sites


def normed_forward(config, params, x_BI, noise_key=None):
  """The network as it trains, on a batch's own moments; with a key, with noise.

  Returns:
    (y_BO, [(mean_H, variance_H)] of the normalised layers, the activation of each hidden layer summed over its units
    and averaged over rows).
  """
  moments, activity, last = [], [], len(config.widths) - 2
  for i in range(last + 1):
    x_BI = matmul(x_BI, params[f"W_{i}_IH"], jnp.float32) + params[f"b_{i}_H"][None]
    if i < config.n_normed:
      mean_H, variance_H = x_BI.mean(0), x_BI.var(0)
      moments.append((mean_H, variance_H))
      x_BI = (x_BI - mean_H[None]) * jax.lax.rsqrt(variance_H + _EPSILON)[None]
      x_BI = x_BI * params[f"gain_{i}_H"][None] + params[f"shift_{i}_H"][None]
    if i < last:
      x_BI = nn.relu(x_BI)
      activity.append(x_BI.sum(1).mean())
      if noise_key is not None and config.noise and config.noise[i]:
        scale = config.noise[i] * jax.lax.stop_gradient(jnp.sqrt(jnp.square(x_BI).mean()))
        x_BI += scale * jax.random.normal(jax.random.fold_in(noise_key, i), x_BI.shape)
  return x_BI, moments, activity


def folded(config, params, moments):
  """`MLP`'s parameters: those of training with the normalisation by given moments put into weights and biases."""
  found = {}
  for i in range(len(config.widths) - 1):
    W_IH, b_H = params[f"W_{i}_IH"], params[f"b_{i}_H"]
    if i < config.n_normed:
      mean_H, variance_H = moments[i]
      scale_H = params[f"gain_{i}_H"] * jax.lax.rsqrt(variance_H + _EPSILON)
      W_IH, b_H = W_IH * scale_H[None], (b_H - mean_H) * scale_H + params[f"shift_{i}_H"]
    found |= {f"W_{i}_IH": W_IH, f"b_{i}_H": b_H}
  return found


def train_mlp(config, batches, rows_for_moments, directory, identity, mesh, metrics_config, name="mlp"):
  """Trains (or goes on training) an MLP on squared error: AdamW, one cycle.

  With `activity_penalties` the L1 of hidden activations is added; `noise` makes the network one that small errors of
  its activations, such as a reconstruction's, do not mislead.

  Args:
    config: `MLPConfig`.
    batches: (first step, last step) -> (x_SBI, y_SBO), a pure function; rows are split over "data".
    rows_for_moments: x_BI, the rows whose moments the folded network normalises by.
    directory: receives `checkpoints/` and `metrics.jsonl`.
    identity: JSON-able dict kept with the checkpoints.
    mesh: device mesh.
    metrics_config: `MetricsConfig`.
    name: the progress bar's label.

  Returns:
    (`MLP`, its parameters on the host).
  """
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
    rise = jnp.minimum(1.0, 3 * state.step / config.n_steps)
    noise_key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)

    def loss_of(params):
      found_BO, _, activity = normed_forward(config, params, x_BI, noise_key)
      mse = jnp.square(found_BO - y_BO).mean()
      pairs = zip(config.activity_penalties, activity, strict=False)  # of no penalties at all: none
      return mse + rise * sum(penalty * level for penalty, level in pairs), mse
    (_, mse), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, {}), {"mse": mse}

  def step(state, batch):
    state, values = jax.lax.scan(one_step, state, batch)
    return state, jax.tree.map(jnp.mean, values)

  def placed(first, last):
    return tuple(meshes.on_mesh(part, mesh, P(None, "data", None)) for part in batches(first, last))

  meshes.require_divides(mesh, "data", config.batch_rows)
  loop = Loop(directory, identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps, (), "rows",
              config.batch_rows, name)
  state = train(meshes.born_sharded(begin, mesh, {}), jax.jit(step, donate_argnums=0), placed, loop, metrics_config)
  finish = jax.jit(lambda params, x_BI: folded(config, params, normed_forward(config, params, x_BI)[1]))
  return model, meshes.to_host(finish(state.params, rows_for_moments))
