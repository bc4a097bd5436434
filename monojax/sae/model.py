"""Dictionaries: activations to features and back.

Letters: B batch, M width of the activation, F features.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from monojax.linear import matmul

# Where a dictionary's parameters (and their optimiser moments and counters) live on the mesh.
SHARDING_RULES = {
    "W_enc_MF": P(None, "model"), "b_enc_F": P("model"), "W_dec_FM": P("model", None),
    "last_fired_F": P("model"),
}


def kaiming_uniform(key, shape, fan_in):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what a linear layer starts from in PyTorch."""
  bound = fan_in ** -0.5
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def unit_rows(W_dec_FM):
  """Each feature's direction scaled to unit L2 norm."""
  return W_dec_FM / jnp.linalg.norm(W_dec_FM, axis=1, keepdims=True)


class Dictionary(nn.Module):
  """A one-hidden-layer autoencoder with a pre-encoder bias tied to minus the decoder's.

  f = activation(W_enc (x - b_dec) + b_enc),  x_hat = W_dec f + b_dec
  (Towards Monosemanticity, "Sparse Autoencoder Setup").

  Attributes:
    n_inputs: M.
    n_features: F.
    activation: the non-linearity, (B, F) -> (B, F).
    encoder_init: "kaiming" or "decoder_transpose".
    dtype: of the matrix products; they accumulate in float32.
  """
  n_inputs: int
  n_features: int
  activation: Callable = jax.nn.relu
  encoder_init: str = "kaiming"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    m, f = self.n_inputs, self.n_features
    self.W_dec_FM = self.param("W_dec_FM", lambda key: unit_rows(kaiming_uniform(key, (f, m), f)))
    if self.encoder_init == "kaiming":
      self.W_enc_MF = self.param("W_enc_MF", lambda key: kaiming_uniform(key, (m, f), m))
    else:
      self.W_enc_MF = self.param("W_enc_MF", lambda key: self.W_dec_FM.T)
    self.b_enc_F = self.param("b_enc_F", nn.initializers.zeros, (f,))
    self.b_dec_M = self.param("b_dec_M", nn.initializers.zeros, (m,))

  def pre_activations(self, x_BM):
    """W_enc (x - b_dec) + b_enc, shape (B, F).

    b_dec enters through the encoder's bias: differentiating (x - b_dec) W_enc would cost a sixth
    matrix product of the batch only to sum it into b_dec.
    """
    bias_F = self.b_enc_F - self.b_dec_M @ self.W_enc_MF
    return matmul(x_BM, self.W_enc_MF, self.dtype) + bias_F[None]

  def encode(self, x_BM):
    """Features f_BF of activations x_BM."""
    return self.activation(self.pre_activations(x_BM))

  def decode(self, f_BF):
    """Reconstructions of shape (B, M) from features f_BF, or from only the first few columns of them."""
    return matmul(f_BF, self.W_dec_FM[:f_BF.shape[1]], self.dtype) + self.b_dec_M[None]

  def __call__(self, x_BM):
    f_BF = self.encode(x_BM)
    return self.decode(f_BF), f_BF
