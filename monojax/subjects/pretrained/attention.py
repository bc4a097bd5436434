"""Rotary positions and attention, block by block of queries.

Letters: B contexts of a batch, T positions of queries, S of keys, A width of a head. In this module H is heads of keys
and values, and J is the heads of queries that share one of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from monojax.subjects.pretrained.architecture import Architecture

_BLOCK_QUERIES = 256  # queries whose scores are held at a time; at most 16 blocks, which are then longer
_MOST_BLOCKS = 16


def rotation(frequencies: tuple[Any, float], position_T: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of the angle of each position and pair of dimensions, (T, pairs)."""
  frequency, factor = frequencies
  angle_TA = position_T.astype(jnp.float32)[:, None] * jnp.asarray(frequency)[None]
  return (jnp.cos(angle_TA) * factor).astype(dtype), (jnp.sin(angle_TA) * factor).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates dimensions i and i + n of a head together, for the first 2 n dimensions; the others stay as they are.

  Args:
    x: queries or keys, (B, T, ..., A).
    cos, sin: (T, ..., n), of x's rank less one.
  """
  n = cos.shape[-1]
  cos, sin = cos[None], sin[None]
  first, second, rest = x[..., :n], x[..., n:2 * n], x[..., 2 * n:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attend(q_BTHJA: jax.Array, k_BSHA: jax.Array, v_BSHA: jax.Array, position_T: jax.Array, a: Architecture,
           is_local: Any, seen_BS: jax.Array | None, aligned: bool, freeze: bool = False) -> jax.Array:
  """Attention, block by block of queries, so that the scores of all of them never exist at once.

  Args:
    q_BTHJA, k_BSHA, v_BSHA: queries, keys and values; J queries share a key.
    position_T: position of each query; key s is at position s.
    a: the architecture.
    is_local: whether this layer has a window, a bool or a traced one.
    seen_BS: the keys that may be attended to; None for all.
    aligned: whether query t is at position t, so that a causal block needs no keys beyond its end.
    freeze: whether the weights, which say how much a query reads of each key, are constants to derivatives.

  Returns:
    (B, T, H, J, A). Scores and softmax are in float32.
  """
  (_, n_queries, n_heads, n_shared, width), n_keys = q_BTHJA.shape, k_BSHA.shape[1]
  block = _block_of(n_queries)
  window = jnp.where(is_local, a.window, n_keys) if is_local is not False else None
  # Heads in front, the queries that share a key below each other: each product is then one of contiguous matrices.
  q_BHTJA = jnp.moveaxis(q_BTHJA, 1, 2)
  k_BHSA, v_BHSA = jnp.swapaxes(k_BSHA, 1, 2), jnp.swapaxes(v_BSHA, 1, 2)

  def queries(first, last):
    end = last if a.causal and aligned else n_keys
    n = last - first
    scores = jnp.einsum("bhqa,bhsa->bhqs", q_BHTJA[:, :, first:last].reshape(-1, n_heads, n * n_shared, width),
                        k_BHSA[:, :, :end], preferred_element_type=jnp.float32) * a.score_scale
    scores = scores.reshape(-1, n_heads, n, n_shared, end)
    if a.score_cap:
      scores = a.score_cap * jnp.tanh(scores / a.score_cap)
    key_1S, query_T1 = jnp.arange(end)[None], position_T[first:last, None]
    seen = key_1S <= query_T1 if a.causal else jnp.ones((1, end), bool)
    if window is not None:
      seen = seen & (key_1S > query_T1 - window)
    seen = seen[None] if seen_BS is None else seen[None] & seen_BS[:, None, :end]
    weights = jax.nn.softmax(jnp.where(seen[:, None, :, None], scores, -1e30), axis=-1).astype(v_BSHA.dtype)
    if freeze:
      weights = jax.lax.stop_gradient(weights)
    z = jnp.einsum("bhqs,bhsa->bhqa", weights.reshape(-1, n_heads, n * n_shared, end), v_BHSA[:, :, :end])
    return jnp.moveaxis(z.reshape(-1, n_heads, n, n_shared, width), 2, 1)
  parts = [queries(first, min(first + block, n_queries)) for first in range(0, n_queries, block)]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _block_of(n_queries: int) -> int:
  """How many queries attention takes at a time."""
  return max(_BLOCK_QUERIES, -(-n_queries // _MOST_BLOCKS))


def n_blocks(n_queries: int) -> int:
  """How many blocks of queries attention takes one by one; a causal one reads no keys beyond its end."""
  return -(-n_queries // _block_of(n_queries))
