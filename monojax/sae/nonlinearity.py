"""The non-linearities of dictionaries: from pre-activations to features.

Each says which parameters it adds (`own`), its value entry by entry, which entries it keeps in training, and
how it picks the few entries of a row that carry value or gradient. h is a pre-activation, of shape (B, F), or
(B, K) where only the features `index_BK` of each row are looked at.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from monojax.sae.code import at


@dataclasses.dataclass(frozen=True)
class ReLU:
  """max(h, 0)."""

  # Whether features can be rescaled one by one without changing what is reconstructed.
  folds_norms = True

  def own(self, n_features):
    """Initial values of the parameters that this non-linearity adds."""
    return {}

  def value(self, h, params, index=None):
    """Features of entries that are kept, of h's shape."""
    return jax.nn.relu(h)

  def keep(self, h_BF, params):
    """Which entries training keeps, bool, or None for all."""
    return None

  def narrow(self, h_BF, params, n_kept):
    """The entries that carry value or gradient, at most `n_kept` a row.

    Returns:
      index_BK: feature numbers.
      keep_BK: which of them training keeps, or None for all.
      fits: whether no row has more; otherwise the sparse code would not be exact.
    """
    h_BK, index_BK = top_k(h_BF, n_kept)
    return index_BK, None, (n_kept >= h_BF.shape[1]) | jnp.all(h_BK[:, -1] <= 0)

  def encode(self, h_BF, params):
    """Features outside of training."""
    return self.value(h_BF, params)

  def fold(self, params, norm_F):
    """This non-linearity's own parameters for features (and pre-activations) `norm_F` times as large."""
    return params


@dataclasses.dataclass(frozen=True)
class JumpReLU(ReLU):
  """h where h > theta, else 0, with a learned threshold theta = exp(log_threshold_F).

  The threshold's gradient is a straight-through estimate over a band of width `bandwidth` around it
  (arXiv 2407.14435): d f / d theta = -(theta / bandwidth) K((h - theta) / bandwidth).

  Attributes:
    log_threshold: its start.
    bandwidth: of the estimate.
    through_input: whether h, too, receives the estimate, with the opposite sign (Anthropic, January 2025).
    per_log: whether the estimate is taken for the derivative by log theta, as January 2025 prints it;
      otherwise the chain rule adds the factor theta.
  """
  log_threshold: float = math.log(1e-3)
  bandwidth: float = 1e-3
  through_input: bool = False
  per_log: bool = False

  def own(self, n_features):
    return {"log_threshold_F": jnp.full((n_features,), self.log_threshold, jnp.float32)}

  def threshold(self, params, index=None):
    """theta beside a code."""
    t = at(params["log_threshold_F"], index)
    if self.per_log:
      return jax.lax.stop_gradient(jnp.exp(t) - t) + t
    return jnp.exp(t)

  def value(self, h, params, index=None):
    theta = jnp.broadcast_to(self.threshold(params, index), h.shape)
    return jump(h, theta, self.bandwidth, self.through_input)

  def active(self, h, params, index=None):
    """1 where h > theta, else 0, differentiable in theta by the same estimate."""
    theta = jnp.broadcast_to(self.threshold(params, index), h.shape)
    return step_at(h, theta, self.bandwidth)

  def fold(self, params, norm_F):
    return {**params, "log_threshold_F": params["log_threshold_F"] + jnp.log(norm_F)}

  def narrow(self, h_BF, params, n_kept):
    above_BK, index_BK = top_k(h_BF - jnp.exp(params["log_threshold_F"])[None], n_kept)
    return index_BK, None, (n_kept >= h_BF.shape[1]) | jnp.all(above_BK[:, -1] <= -self.bandwidth / 2)


@dataclasses.dataclass(frozen=True)
class Gated(ReLU):
  """1[h > 0] ReLU(exp(r) (h - b_enc) + b_mag), where h - b_enc is the encoder without its bias (arXiv 2404.16014)."""

  def own(self, n_features):
    return {"r_F": jnp.zeros((n_features,)), "b_mag_F": jnp.zeros((n_features,))}

  def value(self, h, params, index=None):
    r, b_mag, b_gate = (at(params[name], index) for name in ("r_F", "b_mag_F", "b_enc_F"))
    return jnp.where(h > 0, jax.nn.relu(jnp.exp(r) * (h - b_gate) + b_mag), 0.0)

  def fold(self, params, norm_F):
    return {**params, "b_mag_F": params["b_mag_F"] * norm_F}


@dataclasses.dataclass(frozen=True)
class TopK(ReLU):
  """The k largest of each row, those above 0 (arXiv 2406.04093)."""
  k: int = 32
  folds_norms = False

  def keep(self, h_BF, params):
    smallest_B1 = top_k(h_BF, self.k)[0][:, -1:]
    return h_BF >= smallest_B1

  def narrow(self, h_BF, params, n_kept):
    return top_k(h_BF, self.k)[1], None, jnp.array(True)

  def encode(self, h_BF, params):
    return jnp.where(self.keep(h_BF, params), jax.nn.relu(h_BF), 0.0)


@dataclasses.dataclass(frozen=True)
class BatchTopK(ReLU):
  """The B k largest of a batch, those above 0; outside of training, those above a constant threshold.

  The threshold is a running mean over batches of the smallest value kept (arXiv 2412.06410).
  """
  k: int = 32
  folds_norms = False

  def own(self, n_features):
    return {"threshold": jnp.full((), -1.0, jnp.float32)}  # negative until the first batch

  def keep(self, h_BF, params):
    f_BF = jax.nn.relu(h_BF)
    return f_BF >= jnp.maximum(nth_largest(f_BF, f_BF.shape[0] * self.k), jnp.finfo(jnp.float32).tiny)

  def narrow(self, h_BF, params, n_kept):
    h_BK, index_BK = top_k(h_BF, n_kept)
    f_BK = jax.nn.relu(h_BK)
    smallest = jnp.maximum(nth_largest(f_BK, f_BK.shape[0] * self.k), jnp.finfo(jnp.float32).tiny)
    return index_BK, f_BK >= smallest, (n_kept >= h_BF.shape[1]) | jnp.all(f_BK[:, -1] < smallest)

  def encode(self, h_BF, params):
    return jnp.where(h_BF > params["threshold"], jax.nn.relu(h_BF), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def jump(h, theta, bandwidth, through_input):
  """h where h > theta, else 0."""
  return jnp.where(h > theta, h, 0.0)


def _in_band(h, theta, bandwidth):
  return jnp.abs(h - theta) < bandwidth / 2


def _jump_forward(h, theta, bandwidth, through_input):
  return jump(h, theta, bandwidth, through_input), (h, theta)


def _jump_backward(bandwidth, through_input, residuals, g):
  h, theta = residuals
  estimate = jnp.where(_in_band(h, theta, bandwidth), g * theta / bandwidth, 0.0)
  g_h = jnp.where(h > theta, g, 0.0)
  return g_h + estimate if through_input else g_h, -estimate


jump.defvjp(_jump_forward, _jump_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def step_at(h, theta, bandwidth):
  """1 where h > theta, else 0; its gradient by theta is -K((h - theta) / bandwidth) / bandwidth."""
  return (h > theta).astype(h.dtype)


def _step_forward(h, theta, bandwidth):
  return step_at(h, theta, bandwidth), (h, theta)


def _step_backward(bandwidth, residuals, g):
  h, theta = residuals
  return jnp.zeros_like(h), jnp.where(_in_band(h, theta, bandwidth), -g / bandwidth, 0.0)


step_at.defvjp(_step_forward, _step_backward)


def top_k(h_BF, k, block=512):
  """The k largest of each row, falling: (values_BK, index_BK).

  Found within blocks of features and then among the blocks' winners, so that features sharded over devices
  never meet in one place: only k values of each block do.
  """
  n_rows, n_features = h_BF.shape
  n_blocks = n_features // block
  if n_features % block or k >= block or n_blocks < 2:
    return jax.lax.top_k(h_BF, k)
  value_BJK, index_BJK = jax.lax.top_k(h_BF.reshape(n_rows, n_blocks, block), k)
  index_BJK = index_BJK + block * jnp.arange(n_blocks, dtype=jnp.int32)[None, :, None]
  value_BK, place_BK = jax.lax.top_k(value_BJK.reshape(n_rows, -1), k)
  return value_BK, jnp.take_along_axis(index_BJK.reshape(n_rows, -1), place_BK, axis=1)


def nth_largest(f, n):
  """The n-th largest of entries that are not negative, exactly; 0 where fewer are positive.

  Bisection on the bits of the floats, which order as the floats do: 31 counts, whatever the sharding.
  """
  bits = jax.lax.bitcast_convert_type(f.astype(jnp.float32), jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    enough = jnp.sum(bits >= middle) >= n
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)
  low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(0x7F800001)))
  return jax.lax.bitcast_convert_type(low, jnp.float32)
