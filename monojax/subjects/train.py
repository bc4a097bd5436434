"""Training a subject on tokens: next-token cross-entropy, AdamW, warm-up and cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.subjects.loss import next_token_loss, unembed_loss
from monojax.subjects.transformer import SHARDING_RULES, Transformer
from monojax.training import Run, TrainState, compute_dtype, train


def make_optimizer(config):
  """AdamW with decay on matrices only, linear warm-up, cosine, and clipping by global norm."""
  warmup = min(config.warmup_steps, config.n_steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, config.n_steps,
      min(config.final_learning_rate, config.learning_rate))
  is_matrix = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(schedule, b1=0.9, b2=config.beta2, weight_decay=config.weight_decay, mask=is_matrix))


def make_step(model, tx, mesh):
  """The compiled step: (state, tokens_SBU) -> (state, metrics), its state donated.

  Args:
    model: `Transformer`.
    tx: optax transformation.
    mesh: device mesh; contexts are split over "data".

  Returns:
    init: key -> `TrainState` born on the mesh.
    step: scans the S resident batches of U = T + 1 tokens; metrics are means over the scan.
  """
  def init(key):
    def make():
      params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
      return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {})
    return meshes.born_sharded(make, mesh, SHARDING_RULES)

  def loss_fn(params, tokens_BU):
    _, sites = model.apply({"params": params}, tokens_BU[:, :-1])
    return unembed_loss(sites["final.in"], params["W_unembed_DV"], tokens_BU[:, 1:], model.dtype)

  def one_step(state, tokens_BU):
    loss, gradients = jax.value_and_grad(loss_fn)(state.params, tokens_BU)
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


def train_subject(config, tokens, directory, identity, mesh, metrics_config):
  """Trains (or goes on training) the subject in `directory`.

  Args:
    config: `SubjectConfig` with the vocabulary's size filled in.
    tokens: `monojax.text.tokens.Tokens` of the training split.
    directory: receives `checkpoints/` and `metrics.jsonl`.
    identity: JSON-able dict kept with the checkpoints.
    mesh: device mesh.
    metrics_config: `MetricsConfig`.

  Returns:
    (model, parameters on the host).
  """
  meshes.require_divides(mesh, "data", config.batch_contexts)
  model = Transformer(config.model, compute_dtype(config.compute_dtype))
  init, step = make_step(model, make_optimizer(config), mesh)
  width = config.model.n_context

  def batches(first, last):
    tokens_SBU = np.stack([tokens.batch(i, config.batch_contexts, width, config.seed)
                           for i in range(first, last)])
    return meshes.on_mesh(tokens_SBU, mesh, P(None, "data", None))

  run = Run(directory, identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps, (),
            "tokens", config.batch_contexts * width, "subject")
  state = train(init(jax.random.key(config.seed)), step, batches, run, metrics_config)
  return model, meshes.to_host(state.params)


def contexts_per_batch(config):
  """How many contexts to score at a time: up to 64, with float32 logits of at most 128 MiB.

  Args:
    config: `TransformerConfig`.
  """
  return max(1, min(64, 2 ** 25 // (config.n_context * config.vocab_size)))


def validation_loss(model, params, tokens, context_C, batch_contexts=None):
  """Mean next-token loss over contexts of held-out text, in nats.

  Args:
    model: `Transformer`.
    params: its parameters.
    tokens: `Tokens` of the held-out split.
    context_C: numbers of contexts of n_context + 1 tokens, from `tokens.choose`.
    batch_contexts: contexts in a forward pass; by default as many as `contexts_per_batch` says.
  """
  batch_contexts = batch_contexts or contexts_per_batch(model.config)
  width = model.config.n_context

  @jax.jit
  def losses(params, tokens_BU):
    logits_BTV, _ = model.apply({"params": params}, tokens_BU[:, :-1])
    return next_token_loss(logits_BTV, tokens_BU[:, 1:]).sum(1)

  total = 0.0
  for first in range(0, len(context_C), batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
    loss_B = np.asarray(losses(params, tokens.context(padded_B, width + 1)), np.float64)
    total += loss_B[:len(index_B)].sum()
  return float(total) / (len(context_C) * width)


def sample(model, params, prompt, n_tokens, key, temperature=0.8):
  """Continues a prompt, one token at a time.

  Args:
    model: `Transformer`.
    params: its parameters.
    prompt: list of token ids, at least one.
    n_tokens: how many to add; the sum must fit the model's context.
    key: random key.
    temperature: divides the logits.

  Returns:
    The prompt and its continuation, a list of ids.
  """
  length = min(model.config.n_context, len(prompt) + n_tokens)

  def add(params, tokens_1T, position, key):
    logits_1TV, _ = model.apply({"params": params}, tokens_1T)
    token = jax.random.categorical(key, logits_1TV[0, position - 1] / temperature)
    return tokens_1T.at[0, position].set(token)

  @jax.jit
  def fill(params, tokens_1T):
    def body(position, tokens_1T):
      return add(params, tokens_1T, position, jax.random.fold_in(key, position))
    return jax.lax.fori_loop(len(prompt), length, body, tokens_1T)

  tokens_1T = np.zeros((1, length), np.int32)
  tokens_1T[0, :len(prompt)] = prompt
  return np.asarray(fill(params, tokens_1T))[0].tolist()
