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

from monojax.sae.sparse.code import SILENT, Places, at, entries
from monojax.sae.sparse.select import SMALLEST, cut_at, places_of, top_k, top_k_above_0

# Features a row, on average, that a sparse code has room for, unless the settings or the method say how many.
_ROOM = 64


@dataclasses.dataclass(frozen=True)
class ReLU:
  """max(h, 0)."""

  # Whether features can be rescaled one by one, and not just all alike, without changing what is reconstructed.
  folds_norms = True
  # The mesh that codes are spread over, if they are.
  mesh: Mesh | None = dataclasses.field(default=None, kw_only=True)

  @property
  def spread(self):
    """Whether codes are spread over several devices."""
    return self.mesh is not None and self.mesh.size > 1

  def own(self, n_features):
    """Initial values of the parameters that this non-linearity adds."""
    return {}

  def value(self, h, params, places=None):
    """Features of entries that are kept, of h's shape."""
    return jax.nn.relu(h)

  def keep(self, h, params, places=None):
    """Which entries training keeps, bool, or None for all; `narrow` has left out all others of a sparse code."""
    return None

  def narrow(self, h_BF, params, slots):
    """The entries that carry value or gradient in training, where they are `slots` a row or fewer.

    Returns:
      h_VK: their pre-activations, `SILENT` in empty places.
      places: `Places`.
      fits: whether none is left out; otherwise the sparse code would not be exact.
    """
    return entries_where(h_BF > 0, h_BF, slots)

  def encode(self, h_BF, params):
    """Features outside of training."""
    return self.value(h_BF, params)

  def fold(self, params, norm_F):
    """This non-linearity's own parameters for features (and pre-activations) `norm_F` times as large."""
    return params

  def room(self, asked):
    """Features a row that a sparse code has room for, where the settings ask for so many, or for 0."""
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

  def narrow(self, h_BF, params, slots):
    lowest_F = jnp.exp(params["log_threshold_F"]) - self.bandwidth / 2
    return entries_where(h_BF > lowest_F[None], h_BF, slots)

  def room(self, asked):
    """Where h learns within the band, about four entries are in it for each that fires."""
    return asked or (3 * _ROOM if self.through_input else _ROOM)


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

  def narrow(self, h_BF, params, slots):
    if self.spread:
      h_BK, index_BK, found = *top_k(h_BF, slots, self.mesh), jnp.array(True)
    else:
      h_BK, index_BK, found = top_k_above_0(h_BF, slots)
    places = Places(jnp.where(h_BK > 0, index_BK, h_BF.shape[1]), jnp.zeros((0,), jnp.int32))
    return jnp.where(h_BK > 0, h_BK, SILENT), places, found

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
    return h >= self._cut(h) if places is None else None

  def narrow(self, h_BF, params, slots):
    h_VK, places, found, cut = self._candidates(h_BF, slots)
    kept_VK = h_VK >= cut
    places = places.replace(index_VK=jnp.where(kept_VK, places.index_VK, h_BF.shape[1]))
    return jnp.where(kept_VK, h_VK, SILENT), places, found

  def _cut(self, h_BF):
    """The smallest entry that is kept of a batch."""
    n_kept, slots = h_BF.shape[0] * self.k, self.room(0)
    if slots * 8 > h_BF.shape[1] or self.spread:  # with so many candidates it would not be sooner
      return cut_at(h_BF, n_kept)
    *_, found, cut = self._candidates(h_BF, slots)
    return jax.lax.cond(found, lambda: cut, lambda: cut_at(h_BF, n_kept))

  def _candidates(self, h_BF, slots, n_sample=512):
    """The entries that reach a level which a sample of the rows puts a quarter below what is kept.

    Returns:
      h_VK, places: as `narrow`.
      found: whether all are there, and the batch's B k largest are among them.
      cut: the smallest of these.
    """
    n_kept, sample_NF = h_BF.shape[0] * self.k, h_BF[:n_sample]
    level = cut_at(sample_NF, len(sample_NF) * self.k * 5 // 4)
    h_VK, places, fits = entries_where(h_BF >= level, h_BF, slots)
    enough = (level <= SMALLEST) | (jnp.sum(h_VK >= level, dtype=jnp.int32) >= n_kept)
    return h_VK, places, fits & enough, cut_at(h_VK, n_kept)

  def encode(self, h_BF, params):
    return jnp.where(h_BF > params["threshold"], jax.nn.relu(h_BF), 0.0)

  def fold(self, params, norm_F):
    return {**params, "threshold": params["threshold"] * norm_F[0]}  # all are alike: see folds_norms

  def room(self, asked):
    return asked or max(_ROOM, 2 * self.k)


def entries_where(mask_BF, h_BF, slots):
  """(h_VK, places, fits), as `ReLU.narrow` returns, of the entries that a mask names."""
  places, fits = places_of(mask_BF, slots)
  return entries(h_BF, places), places, fits


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
