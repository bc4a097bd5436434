"""Starts: what recipes make of a model's initial parameters, given a sample of the data."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from monojax.sae.model import Dictionary, Wiring, kaiming_uniform, unit_rows
from monojax.sae.nonlinearity import Params
from monojax.sae.sparse.select import top_k

# (key, initial parameters, sample of what is read x_NM, of what is written y_NO) -> parameters to start from
Start = Callable[[jax.Array, Params, jax.Array, jax.Array], Params]


def small_directions(model: Dictionary, norm: float = 0.1) -> Start:
  """Random directions of a small norm, with the encoder as their transpose (Anthropic, April 2024)."""
  def start(key: jax.Array, params: Params, x_NM: jax.Array, y_NO: jax.Array) -> Params:
    W_dec_FO = norm * unit_rows(params["W_dec_FO"])
    W_enc_MF = transposed_or(params["W_enc_MF"], W_dec_FO, model.wiring)
    return model.within({**params, "W_dec_FO": W_dec_FO, "W_enc_MF": W_enc_MF})
  return start


def at_density(model: Dictionary, threshold: float) -> Start:
  """Encoder biases with which each feature fires on a fraction 10,000 / F of the sample (Anthropic, January 2025).

  That fraction is a tenth at most, for dictionaries too small for the published rule.
  """
  wiring = model.wiring
  m, f = wiring.n_inputs, model.n_features

  def start(key: jax.Array, params: Params, x_NM: jax.Array, y_NO: jax.Array) -> Params:
    decoder_key, encoder_key = jax.random.split(key)
    W_dec_FO = kaiming_uniform(decoder_key, params["W_dec_FO"].shape, m)
    W_enc_MF = (m / f * W_dec_FO.T if wiring.autoencodes
                else kaiming_uniform(encoder_key, params["W_enc_MF"].shape, f))
    params = model.within({**params, "W_dec_FO": W_dec_FO, "W_enc_MF": W_enc_MF})
    level_F = jax.lax.map(lambda w_M: jnp.quantile(x_NM[:8192] @ w_M, 1 - min(10_000 / f, 0.1)),
                          params["W_enc_MF"].T, batch_size=256)
    return {**params, "b_enc_F": threshold - level_F}
  return start


def scaled_encoder(wiring: Wiring, k: int) -> Start:
  """The encoder, divided so that unit inputs around the bias reconstruct with norm 1 from their k largest features.

  A sample of 256 random directions measures by how much. A transcoder's encoder is left as it is.
  """
  def start(key: jax.Array, params: Params, x_NM: jax.Array, y_NO: jax.Array) -> Params:
    if not wiring.autoencodes:
      return params
    unit_NM = unit_rows(jax.random.normal(key, (256, wiring.n_inputs)))
    f_NF = jax.nn.relu(unit_NM @ params["W_enc_MF"])
    kept_NF = jnp.where(f_NF >= top_k(f_NF, k)[0][:, -1:], f_NF, 0.0)
    norm = jnp.linalg.norm(kept_NF @ params["W_dec_FO"], axis=1).mean()
    return {**params, "W_enc_MF": params["W_enc_MF"] / norm}
  return start


def transposed_or(W_enc_MF: jax.Array, W_dec_FO: jax.Array, wiring: Wiring) -> jax.Array:
  """The decoder's transpose where the dictionary reads what it writes, otherwise the encoder given."""
  return W_dec_FO.T if wiring.autoencodes else W_enc_MF


def default_aux_k(wiring: Wiring) -> int:
  """Dead features that AuxK uses unless the settings say: a power of two near half the width read."""
  return 2 ** round(math.log2(max(wiring.n_inputs / 2, 1)))


def geometric_median(x_NM: jax.Array, n_iterations: int = 100) -> jax.Array:
  """The point with the smallest summed distance to the rows, by Weiszfeld's iteration from the mean.

  Args:
    x_NM: rows, any float dtype.
    n_iterations: 100 are ample (`dictionary_learning` takes as many).

  Returns:
    float32 array of shape (M,).
  """
  x_NM = jnp.asarray(x_NM, jnp.float32)

  def improve(_, median_M):
    distance_N = jnp.linalg.norm(x_NM - median_M[None], axis=1)
    weight_N = 1.0 / jnp.maximum(distance_N, 1e-8)
    return weight_N @ x_NM / weight_N.sum()
  return jax.lax.fori_loop(0, n_iterations, improve, x_NM.mean(0))
