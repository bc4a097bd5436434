"""How alike the effects of matched features are: on the logits, and on the tokens that really come next.

Letters: F features of A; P pairs of a feature of A and its match in B; J pairs at a time; V vocabulary; O width
written; N rows, one for each token.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from monojax.analysis.codes import Codes
from monojax.analysis.logits import direct_logits, path_of, shifted, used_tokens
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, LogitPath
from monojax.text.tokens import Tokens

_BLOCK_NUMBERS = 1 << 23  # of logit weights that are computed at a time


def effects_alike(a: tuple[LoadedSubject, SAE], b: tuple[LoadedSubject, SAE], codes: tuple[Codes, Codes],
                  match_F: np.ndarray, tokens: Tokens, next_N: np.ndarray,
                  min_token_count: int) -> dict[str, np.ndarray]:
  """How alike the effects of the features of A and of their matches in B are (Towards Monosemanticity, "Universality").

  Let v_k be what a feature adds to the logit of token k. The logit-weight similarity of two features is the Pearson
  correlation of v over the vocabulary. Their attribution similarity is that of f(n) v_next(n) over the rows n, where
  f(n) is the feature's activation and next(n) the token that comes after it in the text. The scale of the subject's
  last norm, which v is divided by, changes neither.

  Args:
    a, b: the two dictionaries with their subjects.
    codes: their activations on the same rows.
    match_F: for each feature of A its match in B; -1 for none.
    tokens: the text that tells which tokens of the vocabulary are used.
    next_N: the token after each row.
    min_token_count: tokens seen less often in the text do not take part in the correlation over the vocabulary.

  Returns:
    {"logit_similarity", "attribution_similarity"}: value_F, NaN where undefined; {} if the directions of one of the
    dictionaries reach no logits directly.
  """
  paths = [path_of(subject, sae) for subject, sae in (a, b)]
  found_a, found_b = paths
  if found_a is None or found_b is None:
    print("logit weights and attributions are not compared: what the features write reaches the logits only through "
          "later layers, or not at all", flush=True)
    return {}
  n_vocab = min(subject.model.n_vocab for subject, _ in (a, b))
  used_V = used_tokens(tokens, n_vocab, min_token_count)
  logits_a, logits_b = (logits_of(sae.direction_FO[:, columns], path, used_V)
                        for (_, sae), (path, columns) in ((a, found_a), (b, found_b)))
  feature_P = np.flatnonzero(match_F >= 0)
  found = {name: np.full(len(match_F), np.nan) for name in ("logit_similarity", "attribution_similarity")}
  step = max(1, _BLOCK_NUMBERS // n_vocab)
  for first in range(0, len(feature_P), step):
    a_J = feature_P[first:first + step]
    b_J = match_F[a_J]
    a_JV, b_JV = logits_a(a_J), logits_b(b_J)
    found["logit_similarity"][a_J] = _row_correlation(a_JV[:, used_V], b_JV[:, used_V])
    found["attribution_similarity"][a_J] = _attribution_similarity(codes, (a_J, b_J), (a_JV, b_JV), next_N)
  return found


def logits_of(direction_FM: np.ndarray, path: LogitPath, used_V: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """The function feature_J -> logit weights (J, V) of some directions at a site, but for the scale of the last norm.

  Their median over the tokens `used_V` is 0.
  """
  to_residual = jnp.eye(direction_FM.shape[1]) if path.to_residual_MD is None else jnp.asarray(path.to_residual_MD)
  W_unembed_DV = jnp.asarray(path.W_unembed_DV)[:, :len(used_V)]
  scale_D, centred = jnp.asarray(path.gain_D), path.norm == "layer"

  def logits(feature_J):
    directions = jnp.asarray(direction_FM[feature_J])
    return shifted(np.asarray(direct_logits(directions, to_residual, scale_D, W_unembed_DV, centred)), used_V)
  return logits


def _row_correlation(a_JV: np.ndarray, b_JV: np.ndarray) -> np.ndarray:
  """The Pearson correlation of each row of one array with that of the other; NaN for constant rows."""
  a_JV, b_JV = (x_JV - x_JV.mean(1, dtype=np.float64, keepdims=True) for x_JV in (a_JV, b_JV))
  norm_J = np.sqrt((a_JV * a_JV).sum(1) * (b_JV * b_JV).sum(1))
  return np.divide((a_JV * b_JV).sum(1), norm_J, out=np.full(len(a_JV), np.nan), where=norm_J > 0)


def _attribution_similarity(codes, features, logits, next_N):
  """The Pearson correlations of f(n) v_next(n) over the rows for pairs of features, (J,)."""
  n_rows = codes[0].n_rows
  a_JN, b_JN = (_attributed(*parts, next_N) for parts in zip(codes, features, logits, strict=True))
  mean_a_J, mean_b_J = a_JN.sum(1) / n_rows, b_JN.sum(1) / n_rows
  variance = lambda x_JN, mean_J: (x_JN * x_JN).sum(1) / n_rows - mean_J**2
  covariance_J = (a_JN * b_JN).sum(1) / n_rows - mean_a_J * mean_b_J
  norm_J = np.sqrt(np.maximum(variance(a_JN, mean_a_J) * variance(b_JN, mean_b_J), 0))
  return np.divide(covariance_J, norm_J, out=np.full(len(norm_J), np.nan), where=norm_J > 0)


def _attributed(codes, feature_J, logit_JV, next_N):
  """f(n) v_next(n) of some features as a sparse matrix (J, N)."""
  from scipy import sparse
  length_J = np.diff(codes.start_F)[feature_J]
  start_J = np.concatenate([[0], np.cumsum(length_J)])
  place_P = np.arange(start_J[-1]) + np.repeat(codes.start_F[feature_J] - start_J[:-1], length_J)
  row_P, number_P = codes.row_P[place_P], np.repeat(np.arange(len(feature_J)), length_J)
  value_P = codes.value_P[place_P].astype(np.float64) * logit_JV[number_P, next_N[row_P]]
  return sparse.csr_array((value_P, row_P, start_J), shape=(len(feature_J), len(next_N)))
