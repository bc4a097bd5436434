"""Training a subject on tokens: next-token cross-entropy, AdamW, linear warm-up and a cosine.

Letters: S steps in one compiled call, B contexts of a batch, T positions, U = T + 1 tokens of a context and its last
target, C contexts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.metrics import MetricsConfig
from monojax.subjects.config import SubjectConfig
from monojax.subjects.loss import next_token_loss
from monojax.subjects.subject import LoadedSubject, build
from monojax.subjects.transformer import SHARDING_RULES, Transformer
from monojax.text.tokens import Tokens
from monojax.training import Loop, TrainState, train


def make_optimizer(config: SubjectConfig) -> optax.GradientTransformation:
  """AdamW with decay on matrices only, linear warm-up, cosine, and clipping by global norm."""
  warmup = min(config.warmup_steps, config.n_steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, config.n_steps,
      min(config.final_learning_rate, config.learning_rate))
  is_matrix = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(schedule, b1=0.9, b2=config.beta2, weight_decay=config.weight_decay, mask=is_matrix))


def make_step(model: Transformer, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> tuple:
  """The compiled step: (state, tokens_SBU) -> (state, metrics), its state donated.

  Args:
    model: the subject.
    tx: the optimiser.
    mesh: device mesh; contexts are split over "data".

  Returns:
    init: key -> `TrainState`, created on the mesh.
    step: takes the S batches of U = T + 1 tokens one after the other; metrics are means over them.
  """
  def init(key):
    def make():
      params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
      return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {})
    return meshes.born_sharded(make, mesh, SHARDING_RULES)

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


def train_subject(config: SubjectConfig, tokens: Tokens, directory, identity: dict, mesh: jax.sharding.Mesh,
                  metrics_config: MetricsConfig) -> LoadedSubject:
  """Trains (or goes on training) the subject in `directory`.

  Args:
    config: `SubjectConfig` with the vocabulary's size filled in.
    tokens: those of the training split.
    directory: receives `checkpoints/` and `metrics.jsonl`.
    identity: JSON-able dict kept with the checkpoints.
    mesh: device mesh.
    metrics_config: `MetricsConfig`.

  Returns:
    The trained subject, its parameters on the host.
  """
  meshes.require_divides(mesh, "data", config.batch_contexts)
  model = build(config)
  init, step = make_step(model, make_optimizer(config), mesh)
  width = config.n_context

  def batches(first, last):
    tokens_SBU = np.stack([tokens.batch(i, config.batch_contexts, width, config.seed)
                           for i in range(first, last)])
    return meshes.on_mesh(tokens_SBU, mesh, P(None, "data", None))

  loop = Loop(directory, identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps, (),
              "tokens", config.batch_contexts * width, "subject")
  state = train(init(jax.random.key(config.seed)), step, batches, loop, metrics_config)
  return LoadedSubject(model, meshes.to_host(state.params), config.n_context)


def contexts_per_batch(subject: LoadedSubject) -> int:
  """How many contexts to score at a time: up to 64, so that their float32 logits take at most 128 MiB."""
  return max(1, min(64, 2 ** 25 // (subject.n_context * subject.model.n_vocab)))


def validation_loss(subject: LoadedSubject, tokens: Tokens, context_C: np.ndarray,
                    batch_contexts: int | None = None) -> float:
  """Mean next-token loss over contexts of held-out text, in nats.

  Args:
    subject: the subject to score.
    tokens: those of the held-out split.
    context_C: numbers of contexts of n_context + 1 tokens, from `tokens.choose`.
    batch_contexts: contexts in a forward pass; by default as many as `contexts_per_batch` says.
  """
  batch_contexts = batch_contexts or contexts_per_batch(subject)
  width = subject.n_context

  @jax.jit
  def losses(params, tokens_BU):
    logits_BTV, _ = subject.model.apply({"params": params}, tokens_BU[:, :-1])
    return next_token_loss(logits_BTV, tokens_BU[:, 1:]).sum(1)

  total = 0.0
  for first in range(0, len(context_C), batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
    loss_B = np.asarray(losses(subject.params, tokens.context(padded_B, width + 1)), np.float64)
    total += loss_B[:len(index_B)].sum()
  return float(total) / (len(context_C) * width)
