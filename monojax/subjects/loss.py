"""Next-token cross-entropy: of given logits, and fused with the unembedding for training.

Letters: B batch, T position, D residual width, V vocabulary, N rows of one chunk.
"""

import functools

import jax
import jax.numpy as jnp

from monojax.linear import product

# A chunk holds at most half a GiB of logits, and on a CPU 2,048 rows of them: with fewer, the unembedding's
# gradient is added up so often that it costs more than the memory saves.
MAX_LOGITS = 2 ** 27
MAX_ROWS_ON_CPU = 2048


def next_token_loss(logits, targets):
  """Cross-entropy of each next token, in nats: logits (..., V) and targets (...) give (...)."""
  log_total = jax.nn.logsumexp(logits, axis=-1)
  return log_total - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def unembed_loss(u_BTD, W_DV, targets_BT, dtype):
  """Mean `next_token_loss` of the logits u W, without ever holding all of them.

  The logits and their gradient, softmax minus one-hot, exist for a chunk of positions at a time; the
  gradients of u and W are complete when the forward pass ends.

  Args:
    u_BTD: what the unembedding reads.
    W_DV: the unembedding, float32.
    targets_BT: token ids.
    dtype: of the matrix products; they accumulate in float32.

  Returns:
    A float32 scalar, in nats. Asked for alone, without its gradient, it costs as much as with it.
  """
  return _forward(u_BTD, W_DV, targets_BT, dtype)[0]


def _forward(u_BTD, W_DV, targets_BT, dtype):
  n_batch, n_positions, width = u_BTD.shape
  n_tokens = n_batch * n_positions
  length = chunk_positions(n_batch, n_positions, W_DV.shape[1])
  n_padded = -n_positions % length

  def chunked(x_BT, fill):
    """Chunks of positions, not of the batch, which a mesh splits over devices; the last one is filled up."""
    padded = jnp.pad(x_BT, ((0, 0), (0, n_padded), *((0, 0),) * (x_BT.ndim - 2)), constant_values=fill)
    return jnp.moveaxis(padded.reshape(n_batch, -1, length, *x_BT.shape[2:]), 1, 0)

  W_VD = jax.lax.optimization_barrier(W_DV.T)  # XLA's CPU products read a transposed operand slowly

  def chunk(sums, inputs):
    loss, dW_DV = sums
    u_ND, target_N = inputs[0].reshape(-1, width), inputs[1].reshape(-1)
    logits_NV = product(u_ND, W_DV, dtype)
    log_total_N = jax.nn.logsumexp(logits_NV, axis=-1)
    is_target_NV = jax.lax.broadcasted_iota(target_N.dtype, logits_NV.shape, 1) == target_N[:, None]
    weight_N = (target_N >= 0) / n_tokens
    d_NV = (jnp.exp(logits_NV - log_total_N[:, None]) - is_target_NV) * weight_N[:, None]
    target_logit_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=1)[:, 0]
    du_ND = product(d_NV, W_VD, dtype).astype(u_ND.dtype)
    loss += jnp.sum((log_total_N - target_logit_N) * weight_N)
    u_DN = jax.lax.optimization_barrier(u_ND.T)
    return (loss, dW_DV + product(u_DN, d_NV, dtype)), du_ND.reshape(inputs[0].shape)

  start = jnp.zeros(()), jnp.zeros(W_DV.shape)
  (loss, dW_DV), du_CBLD = jax.lax.scan(chunk, start, (chunked(u_BTD, 0), chunked(targets_BT, -1)))
  du_BTD = jnp.moveaxis(du_CBLD, 0, 1).reshape(n_batch, -1, width)[:, :n_positions]
  return loss, (du_BTD, dW_DV.astype(W_DV.dtype))


def _backward(dtype, residuals, gradient):
  du_BTD, dW_DV = residuals
  return gradient.astype(du_BTD.dtype) * du_BTD, gradient * dW_DV, None


unembed_loss.defvjp(_forward, _backward)


def chunk_positions(n_batch, n_positions, vocab_size):
  """Positions in a chunk: as few chunks as the limits allow, of equal lengths."""
  rows = MAX_LOGITS // vocab_size
  if jax.default_backend() == "cpu":
    rows = min(rows, MAX_ROWS_ON_CPU)
  n_chunks = -(-n_positions // max(1, rows // n_batch))
  return -(-n_positions // n_chunks)
