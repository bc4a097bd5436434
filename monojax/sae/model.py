"""Dictionaries: activations to features and back.

Letters: B batch, M width read, O width written, F features.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from monojax.linear import matmul
from monojax.sae.nonlinearity import ReLU
from monojax.sae.sparse.code import decode

# Where a dictionary's parameters (and their optimiser moments and counters) live on the mesh.
_BY_FEATURE = ("b_enc_F", "log_threshold_F", "r_F", "b_mag_F", "last_fired_F")
SHARDING_RULES = {"W_enc_MF": P(None, "model"), "W_dec_FO": P("model", None),
                  **{name: P("model") for name in _BY_FEATURE}}


@dataclasses.dataclass(frozen=True)
class Wiring:
  """Which sites of a batch a dictionary reads, and which it reconstructs.

  A batch holds the activations of its sites side by side. An autoencoder reads and writes its one site, a
  transcoder reads one and writes another, a crosscoder reads and writes all.

  Attributes:
    widths: the sites' widths; they add up to the batch's.
    reads: numbers of the sites read.
    writes: numbers of the sites written.
  """
  widths: tuple[int, ...]
  reads: tuple[int, ...] = (0,)
  writes: tuple[int, ...] = (0,)

  @property
  def n_inputs(self):
    """M."""
    return sum(self.widths[i] for i in self.reads)

  @property
  def n_outputs(self):
    """O."""
    return sum(self.widths[i] for i in self.writes)

  @property
  def autoencodes(self):
    """Whether what is written is what is read."""
    return self.reads == self.writes

  def inputs(self, x):
    """The columns that are read, of an array whose last axis holds the sites."""
    return self._columns(x, self.reads)

  def targets(self, x):
    """The columns that are written."""
    return self._columns(x, self.writes)

  def written(self):
    """(first, last) column of each written site among the outputs."""
    ends = [sum(self.widths[i] for i in self.writes[:n]) for n in range(len(self.writes) + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))

  def _columns(self, x, sites):
    if sites == tuple(range(len(self.widths))):
      return x
    starts = [sum(self.widths[:i]) for i in sites]
    return jnp.concatenate([x[..., s:s + self.widths[i]] for s, i in zip(starts, sites, strict=True)], axis=-1)


def kaiming_uniform(key, shape, fan_in):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what a linear layer starts from in PyTorch."""
  bound = fan_in ** -0.5
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def unit_rows(W_dec_FO):
  """Each feature's direction scaled to unit L2 norm."""
  return W_dec_FO / jnp.linalg.norm(W_dec_FO, axis=1, keepdims=True)


class Dictionary(nn.Module):
  """A one-hidden-layer map from activations to features and on to what they reconstruct.

  f = nonlinearity(W_enc (x - b_dec) + b_enc),  y_hat = W_dec f + b_dec (+ W_skip x),
  where the subtraction of b_dec is the choice of Towards Monosemanticity and of the TopK family, and needs
  that what is written is what is read.

  Attributes:
    wiring: what is read and written.
    n_features: F.
    nonlinearity: from `monojax.sae.nonlinearity`.
    pre_bias: whether b_dec is subtracted before encoding.
    skip: whether the input also reaches the output through a matrix of its own (skip transcoders,
      arXiv 2501.18823), which starts at 0.
    encoder_init: "kaiming" or "decoder_transpose".
    dtype: of the matrix products; they accumulate in float32.
  """
  wiring: Wiring
  n_features: int
  nonlinearity: ReLU = ReLU()
  pre_bias: bool = True
  skip: bool = False
  encoder_init: str = "kaiming"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    m, o, f = self.wiring.n_inputs, self.wiring.n_outputs, self.n_features
    self.W_dec_FO = self.param("W_dec_FO", lambda key: unit_rows(kaiming_uniform(key, (f, o), f)))
    transpose = self.encoder_init == "decoder_transpose" and self.wiring.autoencodes
    self.W_enc_MF = self.param(
        "W_enc_MF", lambda key: self.W_dec_FO.T if transpose else kaiming_uniform(key, (m, f), m))
    self.b_enc_F = self.param("b_enc_F", nn.initializers.zeros, (f,))
    self.b_dec_O = self.param("b_dec_O", nn.initializers.zeros, (o,))
    for name, value in self.nonlinearity.own(f).items():
      setattr(self, name, self.param(name, lambda key, value=value: value))
    if self.skip:
      self.W_skip_MO = self.param("W_skip_MO", nn.initializers.zeros, (m, o))

  def centred(self, x_BM):
    """What the encoder multiplies, shape (B, M): x - b_dec, through which b_dec gets no gradient, or x."""
    return x_BM - jax.lax.stop_gradient(self.b_dec_O)[None] if self.pre_bias else x_BM

  def encoder_bias(self):
    """What is added to the product of the centred inputs, shape (F,): b_enc, with b_dec's gradient.

    Differentiating (x - b_dec) W_enc would cost a sixth matrix product of the batch only to sum it into b_dec.
    """
    if not self.pre_bias:
      return self.b_enc_F
    nothing_M = jax.lax.stop_gradient(self.b_dec_O) - self.b_dec_O
    return self.b_enc_F + jnp.matmul(nothing_M, self.W_enc_MF, precision=jax.lax.Precision.HIGHEST)

  def pre_activations(self, x_BM):
    """W_enc (x - b_dec) + b_enc, shape (B, F)."""
    return matmul(self.centred(x_BM), self.W_enc_MF, self.dtype) + self.encoder_bias()[None]

  def encode(self, x_BM):
    """Features f_BF of activations x_BM, as used outside of training."""
    return self.nonlinearity.encode(self.pre_activations(x_BM), self.variables["params"])

  def decode(self, f, places=None, x_BM=None):
    """Reconstructions of shape (B, O) from features (see `monojax.sae.sparse.code`); a skip needs the inputs, too."""
    return decode(f, places, self.W_dec_FO, self.dtype)[0] + self.offset(x_BM)

  def offset(self, x_BM):
    """What a reconstruction holds besides its features: b_dec, and W_skip x; (1, O) or (B, O)."""
    b_dec_1O = self.b_dec_O[None]
    return b_dec_1O + matmul(x_BM, self.W_skip_MO, self.dtype) if self.skip else b_dec_1O

  def __call__(self, x_BM):
    f_BF = self.encode(x_BM)
    return self.decode(f_BF, None, x_BM), f_BF
