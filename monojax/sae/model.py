"""The model of a dictionary: activations to features and back, and which sites it reads and writes.

Letters: B rows of a batch, M numbers read of a row, O numbers written, F features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from monojax.config import require
from monojax.linear import matmul
from monojax.sae.nonlinearity import Nonlinearity, Params, ReLU
from monojax.sae.sparse.code import Places, decode

# Where a dictionary's parameters (and their optimiser moments and counters) live on the mesh.
_BY_FEATURE = ("b_enc_F", "log_threshold_F", "threshold_F", "r_F", "b_mag_F", "last_fired_F")
SHARDING_RULES = {"W_enc_MF": P(None, "model"), "W_dec_FO": P("model", None),
                  **{name: P("model") for name in _BY_FEATURE}}
_ROW_EPSILON = 1e-5  # added to a row's standard deviation before the row is divided by it


@dataclasses.dataclass(frozen=True)
class Wiring:
  """Which sites of a batch a dictionary reads, and which it reconstructs.

  A batch holds the activations of its sites side by side. An autoencoder reads and writes its one site, a
  transcoder reads one and writes another, a crosscoder reads and writes several. `Wiring((512,))` is an
  autoencoder of one site of width 512.

  Attributes:
    widths: the widths of the batch's sites; they add up to the batch's.
    reads: positions in `widths` of the sites that are read.
    writes: positions of the sites that are reconstructed.
    earlier: for each site that is read the position of the same site at an earlier token, which only training looks at
      (the recipe `tsae`); () where a batch does not hold them. They are the last ones of `widths`.
  """
  widths: tuple[int, ...]
  reads: tuple[int, ...] = (0,)
  writes: tuple[int, ...] = (0,)
  earlier: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    first = len(self.widths) - len(self.earlier)
    widths = [[self.widths[i] for i in sites] for sites in (self.reads, self.earlier)]
    require(not self.earlier or (widths[0] == widths[1] and self.earlier == tuple(range(first, len(self.widths)))
                                 and max(self.reads + self.writes) < first), "wiring.earlier", self.earlier,
            f"must be the last sites of widths {self.widths}, as many and as wide as those that are read, "
            f"{self.reads}")

  @property
  def n_inputs(self) -> int:
    """M, the numbers that are read of a row."""
    return sum(self.widths[i] for i in self.reads)

  @property
  def n_outputs(self) -> int:
    """O, the numbers that are written."""
    return sum(self.widths[i] for i in self.writes)

  @property
  def autoencodes(self) -> bool:
    """Whether what is written is what is read."""
    return self.reads == self.writes

  def inputs(self, x: Any) -> Any:
    """The columns that are read, of an array whose last axis holds the sites side by side."""
    return self._columns(x, self.reads)

  def targets(self, x: Any) -> Any:
    """The columns that are to be reconstructed, of an array whose last axis holds the sites side by side."""
    return self._columns(x, self.writes)

  def inputs_earlier(self, x: Any) -> Any:
    """The columns of an earlier token's inputs; None where there are none."""
    return self._columns(x, self.earlier) if self.earlier else None

  def in_use(self) -> "Wiring":
    """The wiring of the finished dictionary, which no longer looks at earlier tokens."""
    return dataclasses.replace(self, widths=self.widths[:len(self.widths) - len(self.earlier)], earlier=())

  def alike(self, scale_W: jax.Array) -> jax.Array:
    """The scale of each column, that of an earlier token's as for the row's own."""
    starts = np.cumsum((0, *self.widths))
    for own, earlier in zip(self.reads, self.earlier, strict=bool(self.earlier)):
      scale_W = scale_W.at[starts[earlier]:starts[earlier + 1]].set(scale_W[starts[own]:starts[own + 1]])
    return scale_W

  def written(self) -> list[tuple[int, int]]:
    """(first, last) column of each written site among the O outputs."""
    ends = [sum(self.widths[i] for i in self.writes[:n]) for n in range(len(self.writes) + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))

  def _columns(self, x: Any, sites: Sequence[int]) -> Any:
    if sites == tuple(range(len(self.widths))):
      return x
    starts = [sum(self.widths[:i]) for i in sites]
    return jnp.concatenate([x[..., s:s + self.widths[i]] for s, i in zip(starts, sites, strict=True)], axis=-1)


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what a linear layer starts from in PyTorch."""
  bound = fan_in ** -0.5
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def unit_rows(W_dec_FO: jax.Array) -> jax.Array:
  """Each feature's direction scaled to unit L2 norm."""
  return W_dec_FO / jnp.linalg.norm(W_dec_FO, axis=1, keepdims=True)


class Dictionary(nn.Module):
  """A one-hidden-layer map from activations to features and on to what they reconstruct.

  f = nonlinearity(W_enc (x - b_dec) + b_enc),  y_hat = W_dec f + b_dec (+ W_skip x).

  Subtracting b_dec from the input is the choice of Towards Monosemanticity and of the TopK family. It needs
  that what is written is what is read.

  `by_norm` and `rows` are for dictionaries of other tools (`monojax.sae.form`); no recipe trains with them.

  Attributes:
    wiring: what is read and written.
    n_features: F.
    nonlinearity: from `monojax.sae.nonlinearity`.
    pre_bias: whether b_dec is subtracted before encoding.
    skip: whether the input also reaches the output through a matrix of its own (skip transcoders,
      arXiv 2501.18823), which starts at 0.
    encoder_init: "kaiming" starts the encoder at random, "decoder_transpose" as the decoder's transpose.
    dtype: the dtype of the matrix products' operands; they accumulate in float32.
    by_norm: whether features are measured by what they add to the reconstruction: h is multiplied by the norm of the
      feature's direction before the non-linearity, and directions are divided by their norm.
    rows: what is done to each row by itself before it is encoded, and undone in the reconstruction: "" for nothing,
      "standardised" for (x - mean) / (standard deviation + 1e-5), "rescaled" for x sqrt(M) / |x|. b_dec is then in
      the units of such rows.
    causal: whether each feature belongs to one of the sites read, which is all that it reads, and writes the site with
      the same number and those after it: cross-layer transcoders, and weakly causal crosscoders. The first F / L
      features, of L sites, are those of the first site, and so on. The other weights are 0.
  """
  wiring: Wiring
  n_features: int
  nonlinearity: Nonlinearity = ReLU()
  pre_bias: bool = True
  skip: bool = False
  encoder_init: str = "kaiming"
  dtype: Any = jnp.float32
  by_norm: bool = False
  rows: str = ""
  causal: bool = False

  def setup(self) -> None:
    m, o, f = self.wiring.n_inputs, self.wiring.n_outputs, self.n_features
    within = lambda name, value: self.within({name: value})[name]
    self.W_dec_FO = self.param(
        "W_dec_FO", lambda key: unit_rows(within("W_dec_FO", kaiming_uniform(key, (f, o), f))))
    transpose = self.encoder_init == "decoder_transpose" and self.wiring.autoencodes
    self.W_enc_MF = self.param("W_enc_MF", lambda key: within(
        "W_enc_MF", self.W_dec_FO.T if transpose else kaiming_uniform(key, (m, f), m)))
    self.b_enc_F = self.param("b_enc_F", nn.initializers.zeros, (f,))
    self.b_dec_O = self.param("b_dec_O", nn.initializers.zeros, (o,))
    for name, value in {**self.nonlinearity.per_feature(f), **self.nonlinearity.overall()}.items():
      setattr(self, name, self.param(name, lambda key, value=value: value))
    if self.skip:
      self.W_skip_MO = self.param("W_skip_MO", nn.initializers.zeros, (m, o))

  def within(self, params: Params) -> Params:
    """The parameters with 0 for the weights that a `causal` dictionary does not have."""
    if not self.causal:
      return params
    n_sites = len(self.wiring.reads)
    site_M, site_O = (jnp.repeat(jnp.arange(n_sites), np.array([self.wiring.widths[i] for i in sites]))
                      for sites in (self.wiring.reads, self.wiring.writes))
    site_F = jnp.arange(self.n_features) // (self.n_features // n_sites)
    has = {"W_enc_MF": site_M[:, None] == site_F[None], "W_dec_FO": site_F[:, None] <= site_O[None]}
    return {name: jnp.where(has[name], value, 0.0) if name in has else value for name, value in params.items()}

  def centred(self, x_BM: jax.Array) -> jax.Array:
    """What the encoder multiplies, shape (B, M): x - b_dec, through which b_dec gets no gradient, or x."""
    if self.rows:
      middle_B1, size_B1 = self.middle_and_size(x_BM)
      x_BM = (x_BM - middle_B1) / (size_B1 + _ROW_EPSILON if self.rows == "standardised" else size_B1)
    return x_BM - jax.lax.stop_gradient(self.b_dec_O)[None] if self.pre_bias else x_BM

  def encoder_bias(self) -> jax.Array:
    """What is added to the product of the centred inputs, shape (F,): b_enc, with b_dec's gradient.

    The value is b_enc. The gradient by b_dec, which `centred` leaves out, comes from a product of one row with W_enc
    whose value is 0: differentiating (x - b_dec) W_enc instead would cost a sixth matrix product of the whole batch.
    """
    if not self.pre_bias:
      return self.b_enc_F
    nothing_M = jax.lax.stop_gradient(self.b_dec_O) - self.b_dec_O
    return self.b_enc_F + jnp.matmul(nothing_M, self.W_enc_MF, precision=jax.lax.Precision.HIGHEST)

  def pre_activations(self, x_BM: jax.Array) -> jax.Array:
    """W_enc (x - b_dec) + b_enc, shape (B, F)."""
    h_BF = matmul(self.centred(x_BM), self.W_enc_MF, self.dtype) + self.encoder_bias()[None]
    return h_BF * jnp.linalg.norm(self.W_dec_FO, axis=1)[None] if self.by_norm else h_BF

  def encode(self, x_BM: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Features f_BF of activations x_BM, as used outside of training; `mesh` is what they are spread over, if any."""
    return self.nonlinearity.encode(self.pre_activations(x_BM), dict(self.variables["params"]), mesh)

  def decode(self, f: jax.Array, places: Places | None = None, x_BM: jax.Array | None = None) -> jax.Array:
    """Reconstructions of shape (B, O) from features (see `monojax.sae.sparse.code`).

    A dictionary that `needs_input` needs the inputs, too.
    """
    y_BO = decode(f, places, self.directions(), self.dtype)[0] + self.offset(x_BM)
    if x_BM is None or not self.rows:
      return y_BO
    middle_B1, size_B1 = self.middle_and_size(x_BM)
    return y_BO * size_B1 + middle_B1

  @property
  def needs_input(self) -> bool:
    """Whether a reconstruction depends on the input also otherwise than through the features."""
    return self.skip or bool(self.rows)

  def directions(self) -> jax.Array:
    """What one unit of each feature adds to a reconstruction, shape (F, O); see `rows`."""
    if not self.by_norm:
      return self.W_dec_FO
    norm_F1 = jnp.linalg.norm(self.W_dec_FO, axis=1, keepdims=True)
    return self.W_dec_FO / jnp.where(norm_F1 > 0, norm_F1, 1.0)  # some tools leave directions of zeros

  def change(self, change_BJ: jax.Array, feature_J: jax.Array, x_BM: jax.Array) -> jax.Array:
    """What changes of some features add to the reconstructions of rows x_BM, shape (B, O)."""
    y_BO = change_BJ @ self.directions()[feature_J]
    return y_BO * self.middle_and_size(x_BM)[1] if self.rows else y_BO

  def middle_and_size(self, x_BM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shift and the scale, each of shape (B, 1), that `rows` takes out of each row."""
    if self.rows == "standardised":
      return x_BM.mean(1, keepdims=True), x_BM.std(1, keepdims=True, ddof=1)
    return jnp.zeros((len(x_BM), 1)), jnp.linalg.norm(x_BM, axis=1, keepdims=True) / x_BM.shape[1] ** 0.5

  def offset(self, x_BM: jax.Array | None) -> jax.Array:
    """What a reconstruction holds besides its features: b_dec, shape (1, O), or b_dec + W_skip x, shape (B, O)."""
    b_dec_1O = self.b_dec_O[None]
    return b_dec_1O + matmul(x_BM, self.W_skip_MO, self.dtype) if self.skip else b_dec_1O

  def __call__(self, x_BM: jax.Array, mesh: Mesh | None = None) -> tuple[jax.Array, jax.Array]:
    """(reconstruction y_BO, features f_BF) of activations x_BM."""
    f_BF = self.encode(x_BM, mesh)
    return self.decode(f_BF, None, x_BM), f_BF
