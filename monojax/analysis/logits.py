"""Logit weights: which tokens a feature makes likelier, read off the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnames="n_bins")
def _block(W_dec_JM, W_out_MD, scale_D, W_unembed_DV, used_V, n_bins):
  """Logit weights of J features over the used vocabulary: their histograms and their extremes."""
  residual_JD = W_dec_JM @ W_out_MD
  residual_JD = (residual_JD - residual_JD.mean(1, keepdims=True)) * scale_D[None]
  logit_JV = residual_JD @ W_unembed_DV
  logit_JV = logit_JV - jnp.nanmedian(jnp.where(used_V[None], logit_JV, jnp.nan), axis=1, keepdims=True)
  low_J = jnp.where(used_V[None], logit_JV, jnp.inf).min(1)
  high_J = jnp.where(used_V[None], logit_JV, -jnp.inf).max(1)
  place_JV = (logit_JV - low_J[:, None]) / jnp.maximum(high_J - low_J, 1e-12)[:, None] * n_bins
  bin_JV = jnp.clip(place_JV.astype(jnp.int32), 0, n_bins - 1)
  count = lambda bins_V: jnp.zeros(n_bins, jnp.int32).at[bins_V].add(used_V.astype(jnp.int32))
  return logit_JV, jax.vmap(count)(bin_JV), jnp.stack([low_J, high_J], 1)


def logit_weights(W_dec_FO, W_out_MD, final_gain_D, typical_std, W_unembed_DV, used_V, n_listed=10,
                  n_bins=40, block_features=256):
  """Direct effect of each feature on the logits, its median over the vocabulary shifted to 0.

  v_i = d_i W_out pi L W_unembed (Towards Monosemanticity, "Feature logit weights"): pi removes the mean
  over the residual stream, L is the final LayerNorm's gain over the residual's typical standard deviation
  (its mean over tokens).

  Args:
    W_dec_FO: decoder.
    W_out_MD: from the dictionary's site into the residual stream.
    final_gain_D: gain of the last LayerNorm.
    typical_std: standard deviation of the residual stream over D, averaged over tokens.
    W_unembed_DV: unembedding.
    used_V: bool, the tokens that are common enough to have meaningful weights.
    n_listed: K, how many tokens to list at either end.
    n_bins: H of the histograms.
    block_features: features at a time, which bounds memory.

  Returns:
    dict of `logit_counts_FH`, `logit_range_F2`, `top_logit_ids_FK`, `top_logit_values_FK`,
    `bottom_logit_ids_FK`, `bottom_logit_values_FK` (see `FeatureTables`).
  """
  used_V = np.asarray(used_V)
  n_listed = min(n_listed, int(used_V.sum()))
  columns = {name: [] for name in ("logit_counts_FH", "logit_range_F2", "top_logit_ids_FK",
                                   "top_logit_values_FK", "bottom_logit_ids_FK", "bottom_logit_values_FK")}
  for first in range(0, len(W_dec_FO), block_features):
    logit_JV, counts_JH, range_J2 = _block(
        jnp.asarray(W_dec_FO[first:first + block_features]), jnp.asarray(W_out_MD),
        jnp.asarray(final_gain_D) / typical_std, jnp.asarray(W_unembed_DV), jnp.asarray(used_V), n_bins)
    logit_JV = np.asarray(logit_JV)
    columns["logit_counts_FH"].append(np.asarray(counts_JH))
    columns["logit_range_F2"].append(np.asarray(range_J2))
    for side, sign in (("top", -1), ("bottom", 1)):
      key_JV = np.where(used_V[None], sign * logit_JV, np.inf)
      ids_JK = np.argpartition(key_JV, n_listed - 1, axis=1)[:, :n_listed]
      order_JK = np.argsort(np.take_along_axis(key_JV, ids_JK, axis=1), axis=1, kind="stable")
      ids_JK = np.take_along_axis(ids_JK, order_JK, axis=1)
      columns[f"{side}_logit_ids_FK"].append(ids_JK.astype(np.int32))
      columns[f"{side}_logit_values_FK"].append(np.take_along_axis(logit_JV, ids_JK, axis=1))
  return {name: np.concatenate(parts) for name, parts in columns.items()}
