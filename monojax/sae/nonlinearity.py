"""The non-linearities of dictionaries: from pre-activations to features.

Each says which parameters it adds (`own`), its value entry by entry, which entries it keeps in training, and
how it picks the few entries of a row that carry value or gradient. h is a pre-activation, of shape (B, F), or
(V, K) beside `Places` where only
those entries are looked at.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from monojax.sae.code import Places, at

_TINY = float(jnp.finfo(jnp.float32).tiny)
# Features of a row that a sparse code makes room for, unless the settings or the method say how many.
_ROOM = 64


@dataclasses.dataclass(frozen=True)
class ReLU:
  """max(h, 0)."""

  # Whether features can be rescaled one by one, and not just all alike, without changing what is reconstructed.
  folds_norms = True
  # The mesh that codes are spread over, if they are.
  mesh: Mesh | None = dataclasses.field(default=None, kw_only=True)

  def own(self, n_features):
    """Initial values of the parameters that this non-linearity adds."""
    return {}

  def value(self, h, params, places=None):
    """Features of entries that are kept, of h's shape."""
    return jax.nn.relu(h)

  def keep(self, h, params, places=None):
    """Which entries training keeps, bool, or None for all; `narrow` has left out all others of a sparse code."""
    return None

  def narrow(self, h_BF, params, n_kept):
    """The entries that carry value or gradient in training, in rows of `n_kept` places.

    Returns:
      places: `Places`.
      fits: whether none is left out; otherwise the sparse code would not be exact.
    """
    return narrowed(h_BF, n_kept, self.mesh, lambda h_VK: _TINY)

  def encode(self, h_BF, params):
    """Features outside of training."""
    return self.value(h_BF, params)

  def fold(self, params, norm_F):
    """This non-linearity's own parameters for features (and pre-activations) `norm_F` times as large."""
    return params

  def room(self, asked):
    """Features of a row that a sparse code makes room for, where the settings ask for so many, or for 0."""
    return asked or _ROOM


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

  def threshold(self, params, places=None):
    """theta beside a code."""
    t = at(params["log_threshold_F"], places)
    if self.per_log:
      return jax.lax.stop_gradient(jnp.exp(t) - t) + t
    return jnp.exp(t)

  def value(self, h, params, places=None):
    theta = jnp.broadcast_to(self.threshold(params, places), h.shape)
    return jump(h, theta, self.bandwidth, self.through_input)

  def active(self, h, params, places=None):
    """1 where h > theta, else 0, differentiable in theta by the same estimate."""
    theta = jnp.broadcast_to(self.threshold(params, places), h.shape)
    return step_at(h, theta, self.bandwidth)

  def fold(self, params, norm_F):
    return {**params, "log_threshold_F": params["log_threshold_F"] + jnp.log(norm_F)}

  def narrow(self, h_BF, params, n_kept):
    above_BF = h_BF - jnp.exp(params["log_threshold_F"])[None]
    return narrowed(above_BF, n_kept, self.mesh, lambda above_VK: -self.bandwidth / 2)


@dataclasses.dataclass(frozen=True)
class Gated(ReLU):
  """1[h > 0] ReLU(exp(r) (h - b_enc) + b_mag), where h - b_enc is the encoder without its bias (arXiv 2404.16014)."""

  def own(self, n_features):
    return {"r_F": jnp.zeros((n_features,)), "b_mag_F": jnp.zeros((n_features,))}

  def value(self, h, params, places=None):
    r, b_mag, b_gate = (at(params[name], places) for name in ("r_F", "b_mag_F", "b_enc_F"))
    return jnp.where(h > 0, jax.nn.relu(jnp.exp(r) * (h - b_gate) + b_mag), 0.0)

  def fold(self, params, norm_F):
    return {**params, "b_mag_F": params["b_mag_F"] * norm_F}


@dataclasses.dataclass(frozen=True)
class TopK(ReLU):
  """The k largest of each row, those above 0 (arXiv 2406.04093).

  Attributes:
    k: kept.
    more: how many a sparse code finds in each row, where an objective looks beyond k; 0 for k.
  """
  k: int = 32
  more: int = 0
  folds_norms = False

  def keep(self, h, params, places=None):
    return self.largest(h, places, self.k)

  def largest(self, h, places, n):
    """Which entries are among the n largest of their row; of a sparse code, whose rows fall, n <= max(k, more)."""
    if places is not None:
      return jnp.broadcast_to(jnp.arange(h.shape[1])[None] < n, h.shape)
    return h >= top_k(h, n, self.mesh)[0][:, -1:]

  def narrow(self, h_BF, params, n_kept):
    h_BK, index_BK = top_k(h_BF, n_kept, self.mesh)
    return Places(jnp.where(h_BK > 0, index_BK, h_BF.shape[1]), jnp.zeros((0,), jnp.int32)), jnp.array(True)

  def encode(self, h_BF, params):
    return jnp.where(self.keep(h_BF, params), jax.nn.relu(h_BF), 0.0)

  def room(self, asked):
    return max(self.k, self.more)


@dataclasses.dataclass(frozen=True)
class BatchTopK(ReLU):
  """The B k largest of a batch, those above 0; outside of training, those above a constant threshold.

  The threshold is a running mean over batches of the smallest value kept (arXiv 2412.06410).
  """
  k: int = 32
  folds_norms = False

  def own(self, n_features):
    return {"threshold": jnp.full((), -1.0, jnp.float32)}  # negative until the first batch

  def keep(self, h, params, places=None):
    return h >= cut_at(h, h.shape[0] * self.k) if places is None else None

  def narrow(self, h_BF, params, n_kept):
    return narrowed(h_BF, n_kept, self.mesh, lambda h_VK: cut_at(h_VK, h_BF.shape[0] * self.k))

  def encode(self, h_BF, params):
    return jnp.where(h_BF > params["threshold"], jax.nn.relu(h_BF), 0.0)

  def fold(self, params, norm_F):
    return {**params, "threshold": params["threshold"] * norm_F[0]}  # all are alike: see folds_norms

  def room(self, asked):
    return asked or max(_ROOM, 2 * self.k)


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


def narrowed(h_BF, n_kept, mesh, level_of, tiers=((1 / 16, 5), (1 / 256, 20))):
  """The entries of h from a level up: (`Places`, whether none is left out).

  Each row has `n_kept` places. A few rows with more go on in extra rows, and very few at length: the features
  that fire on a row vary, so that were there room only for the average, no batch would fit.

  Args:
    h_BF: (B, F).
    n_kept: K.
    mesh: see `top_k`.
    level_of: the entries found, (V, K) -> the level.
    tiers: (fraction of rows, how many times K places each of them has), ever fewer and longer.
  """
  n_rows, n_features = h_BF.shape
  tiers = [(int(part * n_rows), min(wide, n_features // n_kept)) for part, wide in tiers]
  row_B = jnp.arange(n_rows, dtype=jnp.int32)
  h_BK, index_BK, extra, left_out = _largest_and_longer(h_BF, row_B, 1, n_kept, tiers, mesh)
  h_VK, index_VK, row_V = (jnp.concatenate(parts)
                           for parts in zip((h_BK, index_BK, row_B), *extra, strict=True))
  level = level_of(h_VK)
  return Places(jnp.where(h_VK >= level, index_VK, n_features), row_V[n_rows:]), left_out < level


def _largest_and_longer(h_BF, row_R, n_wide, n_kept, tiers, mesh):
  """The `n_wide` K largest of some rows of h, and more of those whose last counts most.

  Returns:
    h_RL, index_RL: the largest entries of each row, falling, and where they are.
    extra: a list of (h_EK, index_EK, row_E), what the longer rows have beyond, in rows of K.
    left_out: the largest entry of all that is in none of these.
  """
  h_RL, index_RL = top_k(h_BF if len(row_R) == len(h_BF) else h_BF[row_R], n_wide * n_kept, mesh)
  if n_wide * n_kept == h_BF.shape[1]:
    return h_RL, index_RL, [], -jnp.inf
  tiers = [(n_long, wide) for n_long, wide in tiers if 0 < n_long < len(row_R) and wide > n_wide]
  if not tiers:
    return h_RL, index_RL, [], jnp.max(h_RL[:, -1])
  n_long, wide = tiers[0]
  (last_S,), (at_S,) = _top_k(h_RL[None, :, -1], n_long + 1)
  at_S, left_out = at_S[:-1].astype(jnp.int32), last_S[-1]
  row_S = row_R[at_S]
  h_SL, index_SL, extra, longer_left_out = _largest_and_longer(h_BF, row_S, wide, n_kept, tiers[1:], mesh)
  # A longer row's first places are set again, since the two searches may order equal entries differently.
  first = n_wide * n_kept
  h_RL, index_RL = h_RL.at[at_S].set(h_SL[:, :first]), index_RL.at[at_S].set(index_SL[:, :first])
  beyond = (h_SL[:, first:].reshape(-1, n_kept), index_SL[:, first:].reshape(-1, n_kept),
            jnp.repeat(row_S, wide - n_wide))
  return h_RL, index_RL, [beyond, *extra], jnp.maximum(left_out, longer_left_out)


def top_k(h_BF, k, mesh=None):
  """The k largest of each row, falling: (values_BK, index_BK), exactly.

  On a mesh each device finds the k largest of its own features, and only those are compared: features of
  different devices never meet in one place.
  """
  n_rows, n_features = h_BF.shape
  n_shards = mesh.shape["model"] if mesh else 1
  if n_shards == 1 or n_features % n_shards or n_rows % mesh.shape["data"] or k >= n_features // n_shards:
    return _largest(h_BF, k)
  of_features = P("data", "model")
  value_BJ, index_BJ = jax.shard_map(lambda h_bf: _largest(h_bf, k), mesh=mesh, in_specs=of_features,
                                     out_specs=(of_features, of_features))(h_BF)
  index_BJ = index_BJ + n_features // n_shards * (jnp.arange(n_shards * k, dtype=jnp.int32) // k)[None]
  value_BK, place_BK = _top_k(value_BJ, k)
  return value_BK, jnp.take_along_axis(index_BJ, place_BK, axis=1)


def _largest(h_BF, k, block=16):
  """`lax.top_k`: the k blocks of features with the largest maxima hold the k largest entries."""
  n_rows, n_features = h_BF.shape
  if n_features % block or 2 * k * block > n_features:
    return _top_k(h_BF, k)
  h_BJL = h_BF.reshape(n_rows, n_features // block, block)
  _, block_BK = _top_k(h_BJL.max(2), k)
  candidates_BKL = jnp.take_along_axis(h_BJL, block_BK[:, :, None], axis=1)
  value_BK, place_BK = _top_k(candidates_BKL.reshape(n_rows, k * block), k)
  return value_BK, block * jnp.take_along_axis(block_BK, place_BK // block, axis=1) + place_BK % block


def _top_k(h_BF, k):
  """`lax.top_k` as XLA's CPU backend does not turn it into a whole sort: with no slice merged into it."""
  return tuple(jax.lax.optimization_barrier(part) for part in jax.lax.top_k(h_BF, k))


def cut_at(h, n):
  """A number above 0 that exactly n entries reach: all above 0 where fewer are, more only for ties at the cut.

  A search between 0 and the largest entry: two of three steps aim by the counts at both ends, as counts fall
  about exponentially, the third halves the floats in between. A step is one count, whatever the sharding.
  """
  bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32)  # floats above 0 are ordered as their bits are
  number = lambda b: jax.lax.bitcast_convert_type(b, jnp.float32)
  count = lambda x: jnp.sum(jnp.sum(h >= x, axis=0, dtype=jnp.int32))

  def unfinished(state):  # at least n entries reach `low`, fewer than n `high`
    _, low, high, n_low, _ = state
    return (n_low > n) & (high - low > 1)

  def closer(state):
    i, low, high, n_low, n_high = state
    share = jnp.log(n_low / n) / jnp.log(n_low / jnp.maximum(n_high, 0.5))
    aimed = bits(number(low) + jnp.clip(share, 0.01, 0.99) * (number(high) - number(low)))
    middle = jnp.where(i % 3 == 2, low + (high - low) // 2, jnp.clip(aimed, low + 1, high - 1))
    found = count(number(middle))
    enough = found >= n
    return (i + 1, jnp.where(enough, middle, low), jnp.where(enough, high, middle),
            jnp.where(enough, found, n_low), jnp.where(enough, n_high, found))
  highest = bits(jnp.maximum(jnp.max(h), _TINY)) + 1
  start = jnp.int32(0), bits(jnp.float32(_TINY)), highest, count(_TINY), jnp.int32(0)
  return number(jax.lax.while_loop(unfinished, closer, start)[1])
