"""Logit weights: which tokens a feature makes likelier, computed from weights alone.

Letters: F features, J of them at a time, M width of the site, D residual width, V vocabulary, K listed tokens, H bins.
"""

import concurrent.futures
import functools
import os
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, LogitPath
from monojax.text.tokens import Tokens


def path_of(subject: LoadedSubject, sae: SAE) -> tuple[LogitPath, slice] | None:
  """How a dictionary's features reach the logits directly, and which columns of its directions do.

  A dictionary that writes several sites is judged by the last of them that has a path to the logits; None if none has.
  """
  for site, (first, last) in reversed(list(zip(sae.writes, sae.model.wiring.written(), strict=True))):
    if path := subject.model.logit_path(subject.params, site):
      return path, slice(first, last)
  return None


def used_tokens(tokens: Tokens, n_vocab: int, min_count: int) -> np.ndarray:
  """used_V, bool: the tokens that occur at least `min_count` times in a text, or as often as the most frequent one.

  Args:
    tokens: the text.
    n_vocab: V, at least as many as the tokenizer has.
    min_count: logit weights of rarer tokens mean little, since the subject has hardly seen them.
  """
  counts_V = np.zeros(n_vocab, np.int64)
  for start in range(0, tokens.n_tokens, 1 << 24):
    counts_V += np.bincount(tokens.tokens_N[start:start + (1 << 24)], minlength=n_vocab)
  return counts_V >= min(min_count, counts_V.max())


@functools.partial(jax.jit, static_argnames="centred")
def direct_logits(W_dec_JM: jax.Array, W_out_MD: jax.Array, scale_D: jax.Array, W_unembed_DV: jax.Array,
                  centred: bool) -> jax.Array:
  """What J directions add to the logits, (J, V).

  Args:
    W_dec_JM: the directions at the site.
    W_out_MD: from the site to the residual stream.
    scale_D: the gain of the last norm over the residual stream's typical scale.
    W_unembed_DV: from the normed residual stream to the logits.
    centred: whether the norm removes the mean over the residual stream.
  """
  residual_JD = W_dec_JM @ W_out_MD
  if centred:
    residual_JD = residual_JD - residual_JD.mean(1, keepdims=True)
  return (residual_JD * scale_D[None]) @ W_unembed_DV


def shifted(logit_JV: np.ndarray, used_V: np.ndarray) -> np.ndarray:
  """Logits of directions without their median over the used vocabulary, which all tokens have in common."""
  return logit_JV - in_threads(functools.partial(np.median, axis=1, keepdims=True), logit_JV[:, used_V])


def in_threads(function: typing.Callable[[np.ndarray], np.ndarray], x_JV: np.ndarray) -> np.ndarray:
  """A function of an array's rows, computed for parts of them at once, one part a core.

  NumPy sorts and selects without holding Python's lock, which XLA's CPU programs do an order of magnitude more slowly.
  """
  parts = np.array_split(x_JV, min(len(x_JV), os.cpu_count() or 1))
  with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
    return np.concatenate(list(pool.map(function, parts)))


def logit_weights(W_dec_FO: np.ndarray, path: LogitPath, typical_scale: float, used_V: np.ndarray, n_listed: int = 10,
                  n_bins: int = 40, block_features: int = 256) -> dict[str, np.ndarray]:
  """Direct effect of each feature on the logits, its median over the vocabulary shifted to 0.

  v_i = d_i W_out pi L W_unembed (Towards Monosemanticity, "Feature logit weights"), where pi removes the mean over the
  residual stream if the last norm is a LayerNorm, and L is that norm's gain over the residual stream's typical scale.

  Args:
    W_dec_FO: the features' directions at the site.
    path: how a direction at the site reaches the logits.
    typical_scale: what the last norm divides by, averaged over tokens.
    used_V: bool, the tokens that are common enough to have meaningful weights.
    n_listed: K, how many tokens to list at either end.
    n_bins: H of the histograms.
    block_features: how many features are computed at a time, which bounds memory.

  Returns:
    dict of `logit_counts_FH`, `logit_range_F2`, `top_logit_ids_FK`, `top_logit_values_FK`,
    `bottom_logit_ids_FK`, `bottom_logit_values_FK`; `monojax.analysis.columns` says what each is.
  """
  used_V = np.asarray(used_V)
  width = W_dec_FO.shape[1]
  W_out_MD = np.eye(width, dtype=np.float32) if path.to_residual_MD is None else np.asarray(path.to_residual_MD)
  n_listed = min(n_listed, int(used_V.sum()))
  columns: dict[str, list[np.ndarray]] = {
      name: [] for name in ("logit_counts_FH", "logit_range_F2", "top_logit_ids_FK", "top_logit_values_FK",
                            "bottom_logit_ids_FK", "bottom_logit_values_FK")}
  used_ids = np.flatnonzero(used_V)
  for first in range(0, len(W_dec_FO), block_features):
    logit_JV = np.asarray(direct_logits(
        jnp.asarray(W_dec_FO[first:first + block_features]), jnp.asarray(W_out_MD),
        jnp.asarray(path.gain_D) / typical_scale, jnp.asarray(path.W_unembed_DV), path.norm == "layer"))
    logit_JV = shifted(logit_JV, used_V)[:, used_V]  # V is the used tokens from here on
    low_J, high_J = logit_JV.min(1), logit_JV.max(1)
    columns["logit_counts_FH"].append(_histograms(logit_JV, low_J, high_J, n_bins))
    columns["logit_range_F2"].append(np.stack([low_J, high_J], axis=1))
    for side, sign in (("top", -1), ("bottom", 1)):
      ids_JK = in_threads(functools.partial(_first, n=n_listed), sign * logit_JV)
      columns[f"{side}_logit_ids_FK"].append(used_ids[ids_JK].astype(np.int32))
      columns[f"{side}_logit_values_FK"].append(np.take_along_axis(logit_JV, ids_JK, axis=1))
  return {name: np.concatenate(parts) for name, parts in columns.items()}


def _histograms(logit_JV: np.ndarray, low_J: np.ndarray, high_J: np.ndarray, n_bins: int) -> np.ndarray:
  """How many of each row's numbers are in each of `n_bins` equal bins from its lowest to its highest, int32."""
  scale_J1 = (n_bins / np.maximum(high_J - low_J, 1e-12))[:, None]
  bin_JV = np.clip(((logit_JV - low_J[:, None]) * scale_J1).astype(np.int32), 0, n_bins - 1)
  bin_JV += np.arange(len(logit_JV), dtype=np.int32)[:, None] * n_bins
  return np.bincount(bin_JV.ravel(), minlength=len(logit_JV) * n_bins).reshape(-1, n_bins).astype(np.int32)


def _first(key_JV: np.ndarray, n: int) -> np.ndarray:
  """The places of each row's n smallest numbers, the smallest first."""
  ids_JK = np.argpartition(key_JV, n - 1, axis=1)[:, :n]
  order_JK = np.argsort(np.take_along_axis(key_JV, ids_JK, axis=1), axis=1, kind="stable")
  return np.take_along_axis(ids_JK, order_JK, axis=1)


def typical_scale(subject: LoadedSubject, path: LogitPath, tokens: Tokens, batch_contexts: int, seed: int,
                  n_tokens: int = 65_536, kept: Kept = EVERY) -> float:
  """What the last norm divides the residual stream by, averaged over held-out tokens.

  For a LayerNorm that is the standard deviation over the residual stream's width; otherwise the root mean square.

  Args:
    subject: the subject.
    path: from its `logit_path`.
    tokens: text to measure on.
    batch_contexts: contexts in a forward pass.
    seed: seed of the choice of contexts.
    n_tokens: about how many tokens to take.
    kept: the positions that count.
  """
  @jax.jit
  def scales(params, tokens_BT):
    _, sites = subject.model.apply({"params": params}, tokens_BT, wanted=(path.scale_site,))
    residual_BTD = sites[path.scale_site].astype(jnp.float32)
    if path.norm == "layer":
      scale_BT = jnp.std(residual_BTD, axis=-1)
    else:
      scale_BT = jnp.sqrt(jnp.square(residual_BTD).mean(-1))
    return scale_BT.mean() if kept.all else scale_BT.mean(where=kept.mask(tokens_BT))

  chosen_C = tokens.choose(subject.n_context, n_tokens, seed)
  batches = np.array_split(chosen_C, max(1, len(chosen_C) // batch_contexts))
  return float(np.mean([scales(subject.params, tokens.context(batch_B, subject.n_context)) for batch_B in batches]))
