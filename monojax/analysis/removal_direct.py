"""Removing a feature where that changes the prediction of the same row alone, and no forward pass is needed for it.

That is so where the site that is written goes into the residual stream and nowhere else (`LogitPath.only`). The last
norm divides by one number a row, and all else is linear, so that the changed logits of a pair are a sum of two vectors
over the vocabulary, one of the row and one of the feature. For instance, with L of the row, K of the feature, and an
RMSNorm, they are (L - f K) / rms(r - f k): r is the residual stream, and k what one unit of the feature adds to it.

Letters: P pairs of a feature and a row whose prediction is asked for, J of them at a time; N rows of the text; R rows
at a time; F features; O width written; D width of the residual stream; V vocabulary; B contexts of a batch; T positions
of a context.
"""

import collections.abc
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.analysis.fidelity import side_by_side
from monojax.analysis.removal import Asked, Effects, chunks, listed_changes, log_total, rows_at_once, sizes
from monojax.analysis.text import AnalysedText
from monojax.linear import product
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, LogitPath, Subject

_TABLE_LOGITS = 1 << 28  # of the features that are kept at a time: 1 GiB
Parts = collections.abc.Iterator[tuple[np.ndarray, np.ndarray]]


class LastRows:
  """The residual stream before the last norm on every row of a text, kept while the text is encoded."""

  def __init__(self, n_rows: int, width: int):
    self.x_ND, self.size_N = np.empty((n_rows, width), np.float32), np.empty(n_rows, np.float32)
    self._n_rows = 0

  def add(self, x_RD: typing.Any, size_R: np.ndarray) -> None:
    """Keeps the rows that come next, with the `sizes` of what the dictionary reads there."""
    rows = slice(self._n_rows, self._n_rows + len(x_RD))
    self.x_ND[rows], self.size_N[rows] = np.asarray(x_RD), size_R
    self._n_rows = rows.stop

  @property
  def is_whole(self) -> bool:
    """Whether all rows have come."""
    return self._n_rows == len(self.x_ND)

  def parts(self, row_J: np.ndarray) -> Parts:
    """(residual stream (R, D), sizes (R,)) of some rows, part by part."""
    for first in range(0, len(row_J), 1 << 13):
      row_R = row_J[first:first + (1 << 13)]
      yield self.x_ND[row_R], self.size_N[row_R]


@functools.lru_cache(maxsize=8)
def _make_last(subject: Subject, reads: tuple[str, ...], site: str) -> collections.abc.Callable:
  """The compiled function (params, tokens_BT) -> (the residual stream there, what the dictionary reads), as rows."""
  @jax.jit
  def run(params, tokens_BT):
    _, sites = subject.apply({"params": params}, tokens_BT, wanted=tuple(dict.fromkeys((*reads, site))))
    return side_by_side(sites, (site,)), side_by_side(sites, reads)
  return run


def computed_parts(subject: LoadedSubject, sae: SAE, site: str, text: AnalysedText,
                   batch_contexts: int) -> collections.abc.Callable[[np.ndarray], Parts]:
  """`LastRows.parts` without having kept the rows: the subject is run on the contexts that they are in."""
  n_context = subject.n_context
  tokens_CT = text.token_N.reshape(-1, n_context)
  run = _make_last(subject.model, sae.reads, site)

  def parts(row_J):
    context_J = row_J // n_context
    there_C = np.unique(context_J)
    for first in range(0, len(there_C), batch_contexts):
      context_B = there_C[first:first + batch_contexts]
      padded_B = np.pad(context_B, (0, batch_contexts - len(context_B)), mode="edge")
      x_ND, read_NM = run(subject.params, tokens_CT[padded_B])
      row_R = row_J[slice(*np.searchsorted(context_J, [context_B[0], context_B[-1] + 1]))]
      local_R = np.searchsorted(context_B, row_R // n_context) * n_context + row_R % n_context
      yield np.asarray(x_ND)[local_R], sizes(sae, read_NM)[local_R]
  return parts


def directly(path: LogitPath, direction_FO: np.ndarray, asked: Asked,
             parts: collections.abc.Callable[[np.ndarray], Parts], used_V: np.ndarray) -> Effects:
  """What removing features does, where only the predictions of the rows change on which they fire.

  Everything is computed in float32. Memory is needed for the logits of some features and of some rows, at most 1.1 GiB.

  Args:
    path: how the site that is written reaches the logits; `path.only`.
    direction_FO: the features' directions at that site.
    asked: the predictions.
    parts: gives the residual stream on some rows: see `LastRows.parts`.
    used_V: bool, the tokens that may be listed.
  """
  effects = Effects.none(len(asked))
  head = _Head(path, used_V)
  feature_F = np.unique(asked.feature_P)
  most = max(1, min(len(feature_F), _TABLE_LOGITS // len(used_V)))
  with metrics.progress(len(asked), "predictions", "effects", scale=True) as bar:
    for first in range(0, len(feature_F), most):
      here_F = np.pad(feature_F[first:first + most], (0, max(0, first + most - len(feature_F))), mode="edge")
      to_residual = jnp.asarray(direction_FO[here_F], jnp.float32)
      if path.to_residual_MD is not None:
        to_residual = product(to_residual, path.to_residual_MD.astype(jnp.float32), jnp.float32)
      _put_features(effects, head, here_F, head.through(to_residual), asked, parts, bar)
  return effects


def _put_features(effects: Effects, head: "_Head", here_F: np.ndarray, features: tuple[jax.Array, jax.Array],
                  asked: Asked, parts: collections.abc.Callable[[np.ndarray], Parts], bar: typing.Any) -> None:
  """Enters what removing some features does, of which `_Head.through` has made `features`."""
  n_rows = head.n_rows
  which_P = np.flatnonzero((asked.feature_P >= here_F[0]) & (asked.feature_P <= here_F[-1]))
  row_J, place_P = np.unique(asked.row_P[which_P], return_inverse=True)
  start = 0
  for x_RD, size_R in parts(row_J):
    for at in range(0, len(x_RD), n_rows):
      part_RD = x_RD[at:at + n_rows]
      rows = head.rows(part_RD)
      pairs = slice(*np.searchsorted(place_P, [start + at, start + at + len(part_RD)]))
      for chunk_J, padded, listed in chunks(asked, which_P[pairs], max(8, n_rows // 4)):
        row_R = np.searchsorted(row_J, padded.row_P) - start
        effects.put(chunk_J, head.changes(rows, features, row_R - at, np.searchsorted(here_F, padded.feature_P),
                                          padded.value_P * size_R[row_R], padded.target_P, listed), bar)
    start += len(x_RD)


class _Head:
  """The last norm and the unembedding, as functions of what does not depend on the norm's scale."""

  def __init__(self, path: LogitPath, used_V: np.ndarray):
    self._path, self._used_V = path, jnp.asarray(used_V)
    self.n_rows = rows_at_once(len(used_V))
    self._W_DV = path.W_unembed_DV.astype(jnp.float32)
    self._gain_D = path.gain_D.astype(jnp.float32)
    bias_1D = None if path.bias_D is None else path.bias_D.astype(jnp.float32)[None]
    self._b_V = jnp.zeros(len(used_V)) if bias_1D is None else product(bias_1D, self._W_DV, jnp.float32)[0]

  def through(self, x_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x without its mean where the norm subtracts it, the logits of that times the gain)."""
    return _through(x_RD, self._gain_D, self._W_DV, self._path.norm == "layer")

  def rows(self, x_RD: np.ndarray) -> tuple[jax.Array, ...]:
    """What `through` gives of the residual stream on some rows, and the logarithm of the sum of exp(logits)."""
    filled = np.pad(x_RD, ((0, self.n_rows - len(x_RD)), (0, 0)), mode="edge")
    c_RD, L_RV = self.through(jnp.asarray(filled))
    return c_RD, L_RV, _log_totals(c_RD, L_RV, self._b_V, self._path.epsilon, self._path.logit_cap)

  def changes(self, rows, features, row_J, feature_J, value_J, target_J, listed):
    """The fields of `Effects` for J pairs of a row and a feature, without lists unless they are `listed`.

    Args:
      rows: from `rows`.
      features: what `through` gives of what one unit of each feature adds to the residual stream.
      row_J, feature_J: places in these.
      value_J: the activation that is removed.
      target_J: the token that comes next.
      listed: whether there are lists.
    """
    return _direct_changes(rows, features, self._b_V, self._used_V, row_J.astype(np.int32),
                           feature_J.astype(np.int32), value_J, target_J, self._path.epsilon, self._path.logit_cap,
                           listed)


@functools.partial(jax.jit, static_argnames=("centred",))
def _through(x_RD, gain_D, W_DV, centred):
  c_RD = x_RD - x_RD.mean(1, keepdims=True) if centred else x_RD
  return c_RD, product(c_RD * gain_D[None], W_DV, jnp.float32)


@functools.partial(jax.jit, static_argnames=("epsilon", "cap"))
def _log_totals(c_RD, L_RV, b_V, epsilon, cap):
  return log_total(_capped(L_RV * _scale(c_RD, epsilon) + b_V[None], cap))


def _scale(c_RD, epsilon):
  return jax.lax.rsqrt(jnp.square(c_RD).mean(1, keepdims=True) + epsilon)


def _capped(logits, cap):
  return cap * jnp.tanh(logits / cap) if cap else logits


@functools.partial(jax.jit, static_argnames=("epsilon", "cap", "listed"))
def _direct_changes(rows, features, b_V, used_V, row_J, feature_J, value_J, target_J, epsilon, cap, listed):
  (c_RD, L_RV, log_total_R), (k_FD, K_FV) = rows, features
  c_JD, L_JV, value_J1 = c_RD[row_J], L_RV[row_J], value_J[:, None]
  scale_J1 = _scale(c_JD, epsilon)
  after_JV = (L_JV - value_J1 * K_FV[feature_J]) * _scale(c_JD - value_J1 * k_FD[feature_J], epsilon) + b_V[None]
  after_JV = _capped(after_JV, cap)
  of_target = lambda x_JV: jnp.take_along_axis(x_JV, target_J[:, None], axis=1)[:, 0]
  before_J = _capped(of_target(L_JV) * scale_J1[:, 0] + b_V[target_J], cap) - log_total_R[row_J]
  loss_J = before_J - (of_target(after_JV) - log_total(after_JV))
  return loss_J, *(listed_changes(after_JV - _capped(L_JV * scale_J1 + b_V[None], cap), used_V) if listed else ())
