"""Training a subject on tokens, by the cross-entropy of each next token.

Letters: S steps of one compiled call, B contexts of a batch, T positions of a context, U = T + 1 (the positions and the
token after them), V tokens of the vocabulary, C contexts of a text.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.metrics import MetricsConfig
from monojax.subjects.config import SubjectConfig
from monojax.subjects.spliced import scores_by_position
from monojax.subjects.subject import LAST, LoadedSubject, build
from monojax.subjects.transformer import SHARDING_RULES, Transformer
from monojax.text.tokens import Tokens
from monojax.training import Loop, TrainState, train

# The root mean square that Muon's updates are scaled to, about that of AdamW's (arXiv 2502.16982, section 2.2).
_RMS_OF_ADAM = 0.2


def make_optimizer(config: SubjectConfig) -> optax.GradientTransformation:
  """AdamW or Muon, with clipped gradients, decay on matrices only, and a rate that rises linearly, then falls.

  With Muon (arXiv 2502.16982), the matrices of attention and MLPs are moved along orthogonalised momentum, and all
  other parameters by AdamW. Muon's updates are scaled to the size that AdamW's have, so that one rate serves both.
  """
  warmup = min(config.warmup_steps, config.n_steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, config.n_steps,
      min(config.final_learning_rate, config.learning_rate))
  is_matrix = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  tx = optax.adamw(schedule, b1=0.9, b2=config.beta2, weight_decay=config.weight_decay, mask=is_matrix)
  if config.optimizer == "muon":
    muon = optax.contrib.muon(schedule, weight_decay=config.weight_decay, consistent_rms=_RMS_OF_ADAM)
    tx = optax.partition({"muon": muon, "adamw": tx}, _optimizers)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)


def _optimizers(params: Any) -> Any:
  """Which optimizer each parameter has with Muon: the layers' matrices Muon, and AdamW the others."""
  def choose(path, leaf):
    in_layer = path[0].key.startswith("layer_")
    return "muon" if in_layer and leaf.ndim == 2 else "adamw"
  return jax.tree.map_with_path(choose, params)


def make_step(model: Transformer, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> tuple:
  """The function that makes a training state, and the compiled function that takes S training steps.

  Args:
    model: the subject.
    tx: the optimiser.
    mesh: the mesh; contexts are split over its axis "data".

  Returns:
    init: key -> `TrainState`, created on the mesh.
    step: (state, tokens_SBU) -> (state, metrics). It takes a step on each of the S batches in turn and donates its
      state; metrics are means over the steps.
  """
  def init(key):
    def make(key):
      params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
      return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {})
    return meshes.born_sharded(make, mesh, SHARDING_RULES, key)

  def one_step(state, tokens_BU):
    loss, gradients = jax.value_and_grad(model.training_loss)(state.params, tokens_BU)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, state.counters), {
        "loss": loss, "gradient_norm": optax.tree.norm(gradients)}

  def scan_steps(state, tokens_SBU):
    state, values = jax.lax.scan(one_step, state, tokens_SBU)
    return state, jax.tree.map(jnp.mean, values)

  state_shardings = meshes.shardings(jax.eval_shape(init, jax.random.key(0)), mesh, SHARDING_RULES)
  replicated = NamedSharding(mesh, P())
  step = jax.jit(scan_steps, donate_argnums=0, out_shardings=(state_shardings, replicated))
  return init, step


def train_subject(config: SubjectConfig, tokens: Tokens, directory: str | os.PathLike[str], identity: dict[str, Any],
                  mesh: jax.sharding.Mesh, metrics_config: MetricsConfig) -> LoadedSubject:
  """Trains the subject in a folder, from its newest checkpoint if there is one.

  Args:
    config: the settings, with the vocabulary's size filled in.
    tokens: the training split.
    directory: the folder, which receives `checkpoints/` and `metrics.jsonl`.
    identity: a JSON-able dict that is kept with the checkpoints.
    mesh: the mesh.
    metrics_config: where metrics go besides `metrics.jsonl`.

  Returns:
    The trained subject, with its parameters on the host.
  """
  meshes.require_divides(mesh, "data", config.batch_contexts, "subject.batch_contexts")
  model = build(config)
  assert isinstance(model, Transformer)  # the only family of subjects that is trained here
  _require_memory(config, model, mesh)
  init, step = make_step(model, make_optimizer(config), mesh)
  width = config.n_context

  def batches(first, last):
    tokens_SBU = np.stack([tokens.batch(i, config.batch_contexts, width, config.seed)
                           for i in range(first, last)])
    return meshes.on_mesh(tokens_SBU, mesh, P(None, "data", None))

  loop = Loop(pathlib.Path(directory), identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps, (),
              "tokens", config.batch_contexts * width, "subject")
  state = train(init(jax.random.key(config.seed)), step, batches, loop, metrics_config)
  return LoadedSubject(model, meshes.to_host(state.params), config.n_context)


def _require_memory(config: SubjectConfig, model: Transformer, mesh: jax.sharding.Mesh) -> None:
  """Raises `InputError` if weights, gradients, Adam's moments and the MLPs' activations cannot fit into memory."""
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  activations = 2 * config.batch_contexts * config.n_context * config.model.n_layers * config.model.d_mlp
  meshes.require_memory(
      mesh, 4 * meshes.bytes_of(params) + activations, "subject.model.d_model", config.model.d_model, "make it, "
      f"subject.model.d_mlp={config.model.d_mlp}, subject.model.n_layers={config.model.n_layers}, subject.n_context="
      f"{config.n_context} or subject.batch_contexts={config.batch_contexts} smaller")


def contexts_per_batch(subject: LoadedSubject) -> int:
  """How many contexts to score at a time: up to 64, of at most 4,096 positions, on a CPU of 512.

  More would hardly be faster, and every position has a dictionary's whole code in memory.
  """
  most = 512 if jax.default_backend() == "cpu" else 4096
  return max(1, min(64, most // subject.n_context))


def validation_loss(subject: LoadedSubject, tokens: Tokens, context_C: np.ndarray,
                    batch_contexts: int | None = None) -> float:
  """The mean loss of each next token over contexts of held-out text, in nats.

  Args:
    subject: the subject to score.
    tokens: the held-out split.
    context_C: the numbers of contexts of n_context + 1 tokens, from `tokens.choose`.
    batch_contexts: how many contexts a forward pass takes; by default as many as `contexts_per_batch` says.
  """
  batch_contexts = batch_contexts or contexts_per_batch(subject)
  width = subject.n_context

  @jax.jit
  def losses(params, tokens_BU):
    _, sites = subject.model.apply({"params": params}, tokens_BU[:, :-1], wanted=(LAST,))
    return scores_by_position(subject.model, params, {"as it is": sites[LAST]}, tokens_BU[:, 1:])["ce/as it is"].sum(1)

  total = 0.0
  for first in range(0, len(context_C), batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
    loss_B = np.asarray(losses(subject.params, tokens.context(padded_B, width + 1)), np.float64)
    total += loss_B[:len(index_B)].sum()
  return float(total) / (len(context_C) * width)
