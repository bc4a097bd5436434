"""The non-linearities of dictionaries: how pre-activations become features.

A non-linearity is what tells most recipes apart: ReLU, JumpReLU, Gated, TopK and BatchTopK. `Nonlinearity` lists
what the model, the losses and the training step ask of one. Throughout, `h` stands for pre-activations: all of them,
of shape (B, F), or beside `Places` only those entries that a sparse code looks at, of shape (V, K)
(`monojax.sae.sparse.code` explains both forms).
"""

import abc
import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from monojax.sae.sparse.code import SILENT, Places, at, entries
from monojax.sae.sparse.select import SMALLEST, cut_at, places_of, top_k, top_k_above_0

Params = dict[str, jax.Array]  # a dictionary's parameters by name

# Features a row, on average, that a sparse code has room for, unless the settings or the non-linearity say how many.
_ROOM = 64


@dataclasses.dataclass(frozen=True)
class Nonlinearity(abc.ABC):
  """What every non-linearity must say (`value`, `narrow`), and hooks that do nothing unless it needs them.

  A mesh, where a method takes one, is the device mesh that the batch is spread over, or None for one device. It
  never changes a result, only how the result is found.
  """

  # Whether features may be rescaled one by one without changing what the dictionary reconstructs. False where
  # features compete with each other by their size: those can only be rescaled all by the same factor.
  folds_norms: ClassVar[bool] = True

  def per_feature(self, n_features: int) -> Params:
    """Initial values of the parameters that this non-linearity adds, those with one number for each feature."""
    return {}

  def overall(self) -> Params:
    """Initial values of the parameters that this non-linearity adds, those that are one number for all features."""
    return {}

  @abc.abstractmethod
  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    """The features of entries that are kept, of h's shape."""

  def keep(self, h: jax.Array, params: Params, places: Places | None = None,
           mesh: Mesh | None = None) -> jax.Array | None:
    """Which entries training keeps, as bools of h's shape; None keeps all that `value` and `narrow` leave."""
    return None

  @abc.abstractmethod
  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    """Picks the few entries of each row that carry a value or a gradient in training.

    Args:
      h_BF: all pre-activations of a batch.
      params: the dictionary's parameters.
      slots: entries a row, on average over the batch, that there is room for.
      mesh: see the class.

    Returns:
      h_VK: the pre-activations of the entries picked, `SILENT` in places that stay empty.
      places: `Places`, the row and the feature of each.
      fits: scalar bool, whether nothing was left out. If not, the sparse code is not exact and must not be used.
    """

  def encode(self, h_BF: jax.Array, params: Params, mesh: Mesh | None = None) -> jax.Array:
    """The features f_BF outside of training."""
    return self.value(h_BF, params)

  def observe(self, params: Params, f: jax.Array) -> Params:
    """New values of the parameters that follow the batches' features instead of a gradient."""
    return {}

  def fold(self, params: Params, norm_F: jax.Array) -> Params:
    """The parameters with this non-linearity's own changed for pre-activations that are `norm_F` times as large."""
    return params

  def room(self, asked: int) -> int:
    """Features a row that a sparse code has room for, where the settings ask for `asked`, 0 for no wish."""
    return asked or _ROOM


@dataclasses.dataclass(frozen=True)
class ReLU(Nonlinearity):
  """max(h, 0)."""

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    return jax.nn.relu(h)

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    return entries_where(h_BF > 0, h_BF, slots)


@dataclasses.dataclass(frozen=True)
class JumpReLU(Nonlinearity):
  """h where h > theta, else 0, with a learned threshold theta = exp(log_threshold_F) for each feature.

  The threshold's gradient is a straight-through estimate over a band of width `bandwidth` around it
  (arXiv 2407.14435): d f / d theta = -(theta / bandwidth) K((h - theta) / bandwidth).

  Attributes:
    log_threshold: log theta at the start.
    bandwidth: the width of the band.
    through_input: whether h, too, receives the estimate, with the opposite sign (Anthropic, January 2025).
    per_log: whether the estimate stands for the derivative by log theta, as January 2025 prints it;
      otherwise the chain rule adds the factor theta.
  """
  log_threshold: float = math.log(1e-3)
  bandwidth: float = 1e-3
  through_input: bool = False
  per_log: bool = False

  def per_feature(self, n_features: int) -> Params:
    return {"log_threshold_F": jnp.full((n_features,), self.log_threshold, jnp.float32)}

  def threshold(self, params: Params, places: Places | None = None) -> jax.Array:
    """theta, shaped to stand beside h."""
    t = at(params["log_threshold_F"], places)
    if self.per_log:
      return jax.lax.stop_gradient(jnp.exp(t) - t) + t
    return jnp.exp(t)

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    theta = jnp.broadcast_to(self.threshold(params, places), h.shape)
    return jump(h, theta, self.bandwidth, self.through_input)

  def active(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    """1 where h > theta, else 0, differentiable by theta with the same estimate."""
    theta = jnp.broadcast_to(self.threshold(params, places), h.shape)
    return step_at(h, theta, self.bandwidth)

  def fold(self, params: Params, norm_F: jax.Array) -> Params:
    return {**params, "log_threshold_F": params["log_threshold_F"] + jnp.log(norm_F)}

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    # Entries just below the threshold do not fire, but those within the band teach it.
    lowest_F = jnp.exp(params["log_threshold_F"]) - self.bandwidth / 2
    return entries_where(h_BF > lowest_F[None], h_BF, slots)

  def room(self, asked: int) -> int:
    """Where h learns within the band, about four entries are in it for each that fires."""
    return asked or (3 * _ROOM if self.through_input else _ROOM)


@dataclasses.dataclass(frozen=True)
class Threshold(Nonlinearity):
  """max(h, 0) where h > theta, else 0, with the thresholds theta themselves as the parameter `threshold_F`.

  What other tools call JumpReLU, as they save it: a logarithm would round the thresholds, and has none for those that
  are not above 0. It is for use; training from such a dictionary goes on with the recipe's own non-linearity.
  """

  def per_feature(self, n_features: int) -> Params:
    return {"threshold_F": jnp.zeros((n_features,))}

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    return jnp.where(h > at(params["threshold_F"], places), jax.nn.relu(h), 0.0)

  def fold(self, params: Params, norm_F: jax.Array) -> Params:
    return {**params, "threshold_F": params["threshold_F"] * norm_F}

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    return entries_where(self.value(h_BF, params) > 0, h_BF, slots)


@dataclasses.dataclass(frozen=True)
class Gated(Nonlinearity):
  """1[h > 0] ReLU(exp(r) (h - b_enc) + b_mag): the encoder decides, and rescaled it says how much (arXiv 2404.16014).

  h - b_enc is the encoder without its bias, so that the decision and the magnitude have biases of their own.
  """

  def per_feature(self, n_features: int) -> Params:
    return {"r_F": jnp.zeros((n_features,)), "b_mag_F": jnp.zeros((n_features,))}

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    r, b_mag, b_gate = (at(params[name], places) for name in ("r_F", "b_mag_F", "b_enc_F"))
    return jnp.where(h > 0, jax.nn.relu(jnp.exp(r) * (h - b_gate) + b_mag), 0.0)

  def fold(self, params: Params, norm_F: jax.Array) -> Params:
    return {**params, "b_mag_F": params["b_mag_F"] * norm_F}

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    return entries_where(h_BF > 0, h_BF, slots)


@dataclasses.dataclass(frozen=True)
class TopK(Nonlinearity):
  """The k largest of each row, those above 0 (arXiv 2406.04093). Of equal ones at the cut, those of the first features.

  Attributes:
    k: features kept of a row.
    n_sparse: entries of a row that a sparse code finds, where a loss looks beyond k; 0 for k.
  """
  k: int = 32
  n_sparse: int = 0
  folds_norms: ClassVar[bool] = False

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    return jax.nn.relu(h)

  def keep(self, h: jax.Array, params: Params, places: Places | None = None, mesh: Mesh | None = None) -> jax.Array:
    return self.largest(h, places, self.k, mesh)

  def largest(self, h: jax.Array, places: Places | None, n: int, mesh: Mesh | None = None) -> jax.Array:
    """Which entries are among the n largest of their row, as bools of h's shape; further ones are not above 0.

    The rows of a sparse code are sorted from large to small, so that its first n columns are meant; it holds no more
    than max(k, n_sparse).
    """
    if places is not None:
      return jnp.broadcast_to(jnp.arange(h.shape[1])[None] < n, h.shape)
    h_BK = top_k(h, min(n + 1, h.shape[1]), mesh)[0]  # one more, to see whether entries at the cut are equal
    cut_B1 = h_BK[:, n - 1:n]
    reach_BF = h >= cut_B1

    def first_of_equal() -> jax.Array:
      above_BF, equal_BF = h > cut_B1, h == cut_B1
      left_B1 = n - above_BF.sum(1, keepdims=True)
      return above_BF | equal_BF & (jnp.cumsum(equal_BF, axis=1) <= left_B1)
    too_many = jnp.any((h_BK[:, n:] == cut_B1) & (cut_B1 > 0))
    return jax.lax.cond(too_many, first_of_equal, lambda: reach_BF)

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    # One more than there is room for, to see whether entries at a cut are equal: those are left to a dense code, which
    # keeps the first. In which order `top_k` finds equal entries depends on how it looks for them.
    n_asked = min(slots + 1, h_BF.shape[1])
    if is_spread(mesh):
      h_BK, index_BK, found = *top_k(h_BF, n_asked, mesh), jnp.array(True)
    else:
      h_BK, index_BK, found = top_k_above_0(h_BF, n_asked)
    for n in {self.k, slots} - {n_asked}:
      found &= ~jnp.any((h_BK[:, n - 1] == h_BK[:, n]) & (h_BK[:, n] > 0))
    h_BK, index_BK = h_BK[:, :slots], index_BK[:, :slots]
    places = Places(jnp.where(h_BK > 0, index_BK, h_BF.shape[1]), jnp.zeros((0,), jnp.int32))
    return jnp.where(h_BK > 0, h_BK, SILENT), places, found

  def encode(self, h_BF: jax.Array, params: Params, mesh: Mesh | None = None) -> jax.Array:
    return jnp.where(self.keep(h_BF, params, None, mesh), jax.nn.relu(h_BF), 0.0)

  def room(self, asked: int) -> int:
    """Just what is kept: every row has that many, whatever the settings ask for."""
    return max(self.k, self.n_sparse)


@dataclasses.dataclass(frozen=True)
class BatchTopK(Nonlinearity):
  """The B k largest of a whole batch, those above 0; outside of training, those above one constant threshold.

  Where entries at the cut are equal, all of them are kept, so that there can be a few more than B k.

  The threshold is a running mean over batches of the smallest value kept (arXiv 2412.06410).

  Attributes:
    k: features kept of a row, on average over the batch.
  """
  k: int = 32
  folds_norms: ClassVar[bool] = False

  def overall(self) -> Params:
    return {"threshold": jnp.full((), -1.0, jnp.float32)}  # negative until the first batch

  def value(self, h: jax.Array, params: Params, places: Places | None = None) -> jax.Array:
    return jax.nn.relu(h)

  def keep(self, h: jax.Array, params: Params, places: Places | None = None,
           mesh: Mesh | None = None) -> jax.Array | None:
    return h >= self._cut(h, mesh) if places is None else None

  def narrow(self, h_BF: jax.Array, params: Params, slots: int,
             mesh: Mesh | None = None) -> tuple[jax.Array, Places, jax.Array]:
    h_VK, places, found, cut = self._candidates(h_BF, slots)
    kept_VK = h_VK >= cut
    places = Places(jnp.where(kept_VK, places.index_VK, h_BF.shape[1]), places.extra_row)
    return jnp.where(kept_VK, h_VK, SILENT), places, found

  def _cut(self, h_BF: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The smallest entry that is kept of a batch."""
    n_kept, slots = h_BF.shape[0] * self.k, self.room(0)
    if slots * 8 > h_BF.shape[1] or is_spread(mesh):  # with so many candidates it would not be sooner
      return cut_at(h_BF, n_kept)
    *_, found, cut = self._candidates(h_BF, slots)
    return jax.lax.cond(found, lambda: cut, lambda: cut_at(h_BF, n_kept))

  def _candidates(self, h_BF: jax.Array, slots: int,
                  n_sample: int = 512) -> tuple[jax.Array, Places, jax.Array, jax.Array]:
    """The entries that reach a level which a sample of the rows puts a quarter below what is kept.

    Returns:
      h_VK, places: as `narrow`.
      found: whether all such entries are there, and the batch's B k largest are among them.
      cut: the smallest of these.
    """
    n_kept, sample_NF = h_BF.shape[0] * self.k, h_BF[:n_sample]
    level = cut_at(sample_NF, len(sample_NF) * self.k * 5 // 4)
    h_VK, places, fits = entries_where(h_BF >= level, h_BF, slots)
    enough = (level <= SMALLEST) | (jnp.sum(h_VK >= level, dtype=jnp.int32) >= n_kept)
    return h_VK, places, fits & enough, cut_at(h_VK, n_kept)

  def encode(self, h_BF: jax.Array, params: Params, mesh: Mesh | None = None) -> jax.Array:
    return jnp.where(h_BF > params["threshold"], jax.nn.relu(h_BF), 0.0)

  def observe(self, params: Params, f: jax.Array, rate: float = 0.1) -> Params:
    """The threshold moves by `rate` towards the smallest value kept of a batch; the first batch sets it."""
    smallest = jnp.min(jnp.where(f > 0, f, jnp.inf))
    old = params["threshold"]
    new = jnp.where(old < 0, smallest, old + rate * (smallest - old))
    return {"threshold": jnp.where(jnp.isfinite(smallest), new, old)}

  def fold(self, params: Params, norm_F: jax.Array) -> Params:
    return {**params, "threshold": params["threshold"] * norm_F[0]}  # all are alike: see folds_norms

  def room(self, asked: int) -> int:
    """Rows differ in how many of the batch's largest entries they hold, so there is room for twice the mean."""
    return asked or max(_ROOM, 2 * self.k)


def is_spread(mesh: Mesh | None) -> bool:
  """Whether a batch is spread over several devices."""
  return mesh is not None and mesh.size > 1


def entries_where(mask_BF: jax.Array, h_BF: jax.Array, slots: int) -> tuple[jax.Array, Places, jax.Array]:
  """The entries where a mask is set, as `Nonlinearity.narrow` returns them: (h_VK, places, fits)."""
  places, fits = places_of(mask_BF, slots)
  return entries(h_BF, places), places, fits


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def jump(h: jax.Array, theta: jax.Array, bandwidth: float, through_input: bool) -> jax.Array:
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
def step_at(h: jax.Array, theta: jax.Array, bandwidth: float) -> jax.Array:
  """1 where h > theta, else 0; its gradient by theta is -K((h - theta) / bandwidth) / bandwidth."""
  return (h > theta).astype(h.dtype)


def _step_forward(h, theta, bandwidth):
  return step_at(h, theta, bandwidth), (h, theta)


def _step_backward(bandwidth, residuals, g):
  h, theta = residuals
  return jnp.zeros_like(h), jnp.where(_in_band(h, theta, bandwidth), -g / bandwidth, 0.0)


step_at.defvjp(_step_forward, _step_backward)
