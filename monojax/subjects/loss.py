"""The cross-entropy of next tokens: of given logits, and, for training, computed together with the unembedding.

Letters: B contexts of a batch, T positions of a context, D width of the residual stream, V tokens of the vocabulary,
N rows of one chunk.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from monojax.linear import product

# Logits are computed chunk by chunk. A chunk has at most half a GiB of logits, and on a CPU at most 2,048 rows. With
# smaller chunks than these, the sums for the unembedding's gradient, one for each chunk, would cost more time than the
# memory saves.
MAX_LOGITS = 2 ** 27
MAX_ROWS_ON_CPU = 2048


def next_token_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """The cross-entropy of each next token in nats.

  Args:
    logits: logits of shape (..., V).
    targets: ids of the tokens that come next, of shape (...).

  Returns:
    Losses of shape (...).
  """
  log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)[..., 0]
  return log_total - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def divergence(clean: jax.Array, changed: jax.Array) -> jax.Array:
  """KL(clean || changed) in nats of the distributions with these logits (..., V), of shape (...)."""
  return divergences(clean, {"": changed})[""]


def divergences(clean: jax.Array, changed: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """`divergence` of each of several changed distributions from the same one, by name."""
  # `logsumexp` and not `log_softmax`: `next_token_loss` of the same logits has it, too, and it is computed once.
  log_total = jax.nn.logsumexp(clean, axis=-1, keepdims=True)
  # The barrier keeps XLA from computing the exponentials anew for each of them.
  p = jax.lax.optimization_barrier(jnp.exp(clean - log_total)) if len(changed) > 1 else jnp.exp(clean - log_total)
  apart = {name: jax.nn.logsumexp(logits, axis=-1, keepdims=True) - log_total for name, logits in changed.items()}
  return {name: (p * (clean - logits + apart[name])).sum(-1) for name, logits in changed.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def unembed_loss(u_BTD: jax.Array, W_DV: jax.Array, targets_BT: jax.Array, dtype: Any) -> jax.Array:
  """The mean `next_token_loss` of the logits u W, computed without ever holding all logits.

  The logits, and their gradient, which is softmax minus one-hot, exist for one chunk of positions at a time. The
  gradients by u and W are computed in the forward pass, so that the loss alone costs as much as the loss and its
  gradient.

  Args:
    u_BTD: what the unembedding reads.
    W_DV: the unembedding, float32.
    targets_BT: ids of the tokens that come next.
    dtype: dtype of the matrix products' operands; sums are float32.

  Returns:
    The loss in nats, a float32 scalar.
  """
  return _forward(u_BTD, W_DV, targets_BT, dtype)[0]


def _forward(u_BTD: jax.Array, W_DV: jax.Array, targets_BT: jax.Array,
             dtype: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  n_batch, n_positions, width = u_BTD.shape
  n_tokens = n_batch * n_positions
  length = chunk_positions(n_batch, n_positions, W_DV.shape[1])
  n_padded = -n_positions % length

  def chunked(x_BT, fill):
    """The array cut into chunks of positions, of which the last is filled up. The axis of the batch stays whole.

    A mesh splits that axis over devices, which each chunk must therefore have in full.
    """
    padded = jnp.pad(x_BT, ((0, 0), (0, n_padded), *((0, 0),) * (x_BT.ndim - 2)), constant_values=fill)
    return jnp.moveaxis(padded.reshape(n_batch, -1, length, *x_BT.shape[2:]), 1, 0)

  W_VD = jax.lax.optimization_barrier(W_DV.T)  # XLA's CPU products read a transposed operand slowly

  def chunk(sums, inputs):
    loss, dW_DV = sums
    u_ND, target_N = inputs[0].reshape(-1, width), inputs[1].reshape(-1)
    logits_NV = product(u_ND, W_DV, dtype)
    largest_N = logits_NV.max(axis=-1)
    # Written once and read for the sums and for the gradient: exponentials cost more than a pass over memory.
    exp_NV = jax.lax.optimization_barrier(jnp.exp(logits_NV - largest_N[:, None]))
    total_N = exp_NV.sum(axis=-1)
    is_target_NV = jax.lax.broadcasted_iota(target_N.dtype, logits_NV.shape, 1) == target_N[:, None]
    weight_N = (target_N >= 0) / n_tokens
    d_NV = exp_NV * (weight_N / total_N)[:, None] - is_target_NV * weight_N[:, None]
    target_logit_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=1)[:, 0]
    du_ND = product(d_NV, W_VD, dtype).astype(u_ND.dtype)
    loss += jnp.sum((largest_N + jnp.log(total_N) - target_logit_N) * weight_N)
    u_DN = jax.lax.optimization_barrier(u_ND.T)
    return (loss, dW_DV + product(u_DN, d_NV, dtype)), du_ND.reshape(inputs[0].shape)

  start = jnp.zeros(()), jnp.zeros(W_DV.shape)
  (loss, dW_DV), du_CBLD = jax.lax.scan(chunk, start, (chunked(u_BTD, 0), chunked(targets_BT, -1)))
  du_BTD = jnp.moveaxis(du_CBLD, 0, 1).reshape(n_batch, -1, width)[:, :n_positions]
  return loss, (du_BTD, dW_DV.astype(W_DV.dtype))


def _backward(dtype: Any, residuals: tuple[jax.Array, jax.Array],
              gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
  du_BTD, dW_DV = residuals
  return gradient.astype(du_BTD.dtype) * du_BTD, gradient * dW_DV, None


unembed_loss.defvjp(_forward, _backward)


def chunk_positions(n_batch: int, n_positions: int, vocab_size: int) -> int:
  """How many positions a chunk has, so that there are as few chunks as the limits allow and all are equally long."""
  rows = MAX_LOGITS // vocab_size
  if jax.default_backend() == "cpu":
    rows = min(rows, MAX_ROWS_ON_CPU)
  n_chunks = -(-n_positions // max(1, rows // n_batch))
  return -(-n_positions // n_chunks)
