"""How a subject's predictions change when one feature is taken out of it.

An activation x becomes x - f d at every position where the feature fires, f being its activation there and d its
direction; the part of x that the dictionary does not reconstruct stays (Towards Monosemanticity, "Feature Ablations").
What is measured is the prediction that the subject makes at a row, which is of the token that comes after it.

There are two ways. Where the site that is written goes into the residual stream and nowhere else (`LogitPath.only`),
removing a feature at a row changes the prediction of that row alone, and `directly` computes it from the residual
stream: no forward pass is run. The last norm divides by one number a row, and all else is linear, so that the changed
logits of a pair are a sum of two vectors over the vocabulary, one of the row and one of the feature. For instance, with
L of the row, K of the feature, and an RMSNorm, they are (L - f K) / rms(r - f k). Elsewhere `again` runs the subject a
second time for each pair of a feature and a context.

Letters: P pairs of a feature and a row whose prediction is asked for, J of them, or of other things, at a time; N rows
of the text; R rows at a time; F features; O width written; D width of the residual stream; V vocabulary; B contexts of
a batch; T positions of a context.
"""

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.activations.kept import Kept
from monojax.analysis.codes import Codes
from monojax.analysis.fidelity import side_by_side
from monojax.analysis.interventions import Wired, reads_first, wired
from monojax.analysis.text import AnalysedText
from monojax.linear import product
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.sae.sparse.select import top_k
from monojax.subjects.loss import next_token_loss
from monojax.subjects.subject import LoadedSubject, LogitPath, Subject

N_LISTED = 5  # tokens that are listed of those whose logits fall, and of those whose logits rise
_LAST = "final.in"  # the site that the unembedding reads, which every subject has
_LOGITS = 1 << 22         # of the rows that are computed at a time: 16 MB
_TABLE_LOGITS = 1 << 28   # of the features that are kept at a time: 1 GiB
_BLOCK = 32               # top_k is fast where this divides the length
Parts = collections.abc.Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Asked:
  """The predictions that are asked for, in the order of the rows.

  Attributes:
    feature_P: int64, the number of the feature that is removed.
    row_P: int64, the row that the prediction is made at.
    value_P: float32, the feature's activation there.
    target_P: int32, the token that comes next. The prediction of another token is none, so that a row at the end of a
      context may have any.
    listed_P: bool, whether the tokens whose logits change most are wanted.
  """
  feature_P: np.ndarray
  row_P: np.ndarray
  value_P: np.ndarray
  target_P: np.ndarray
  listed_P: np.ndarray

  def __len__(self) -> int:
    return len(self.row_P)

  def at(self, which_P: np.ndarray) -> "Asked":
    """Some of them, or all in another order."""
    return Asked(*(getattr(self, field.name)[which_P] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Effects:
  """What removing features does, each array with a row for each prediction that was asked for.

  Attributes:
    loss_P: how much the loss of the token that comes next rises, in nats: above 0 where the feature helped.
    lowered_ids_P5, lowered_values_P5: the tokens whose logits fall most, and by how much they change, the largest fall
      first. -1 and 0 where they were not wanted, and where there are not so many.
    raised_ids_P5, raised_values_P5: the same of those that rise.
  """
  loss_P: np.ndarray
  lowered_ids_P5: np.ndarray
  lowered_values_P5: np.ndarray
  raised_ids_P5: np.ndarray
  raised_values_P5: np.ndarray

  @classmethod
  def none(cls, n: int) -> "Effects":
    """That nothing changes."""
    ids, values = (lambda: np.full((n, N_LISTED), -1, np.int32)), (lambda: np.zeros((n, N_LISTED), np.float32))
    return cls(np.zeros(n, np.float32), ids(), values(), ids(), values())

  def put(self, which_P: np.ndarray, found: collections.abc.Sequence[jax.Array], bar: typing.Any) -> None:
    """Enters what `_changes` found, which may have more rows than there are, and tells the progress bar."""
    for field, array in zip(dataclasses.fields(self), found, strict=False):
      getattr(self, field.name)[which_P] = np.asarray(array)[:len(which_P)]
    bar.update(len(which_P))

  def at(self, which_P: np.ndarray | slice) -> "Effects":
    """Those of some predictions, or of all in another order."""
    return Effects(*(getattr(self, field.name)[which_P] for field in dataclasses.fields(self)))


def _changes(before_JV: jax.Array, after_JV: jax.Array, target_J: jax.Array, used_V: jax.Array,
             listed: bool) -> tuple[jax.Array, ...]:
  """The fields of `Effects` for J predictions, without lists unless they are `listed`; to be traced."""
  loss_J = next_token_loss(after_JV, target_J) - next_token_loss(before_JV, target_J)
  if not listed:
    return (loss_J,)
  change_JV = after_JV - before_JV
  found = [loss_J]
  for sign in (-1.0, 1.0):
    rise_JV = jnp.where(used_V[None], sign * change_JV, -jnp.inf)
    rise_JV = jnp.pad(rise_JV, ((0, 0), (0, -len(used_V) % _BLOCK)), constant_values=-jnp.inf)
    value_J5, id_J5 = top_k(rise_JV, N_LISTED)
    there_J5 = value_J5 > -jnp.inf
    found += [jnp.where(there_J5, id_J5, -1), jnp.where(there_J5, sign * value_J5, 0.0)]
  return tuple(found)


def _chunks(asked: Asked, which_P: np.ndarray, size: int) -> collections.abc.Iterator[tuple[np.ndarray, Asked, bool]]:
  """Some predictions in chunks that are all listed or all not: (which they are, filled up to `size`, listed)."""
  for listed in (False, True):
    of_kind_P = which_P[asked.listed_P[which_P] == listed]
    for first in range(0, len(of_kind_P), size):
      chunk_J = of_kind_P[first:first + size]
      yield chunk_J, asked.at(np.pad(chunk_J, (0, size - len(chunk_J)), mode="edge")), listed


def _rows_at_once(n_vocab: int) -> int:
  return max(8, _LOGITS // n_vocab)


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

  def parts(self, row_J: np.ndarray) -> Parts:
    """(residual stream (R, D), sizes (R,)) of some rows, part by part."""
    for first in range(0, len(row_J), 1 << 13):
      row_R = row_J[first:first + (1 << 13)]
      yield self.x_ND[row_R], self.size_N[row_R]


def sizes(sae: SAE, x_NM: typing.Any) -> np.ndarray:
  """What the reconstruction of each row is multiplied by, (N,): 1 but for dictionaries that scale each row."""
  return np.asarray(_sizes_of(sae.model, sae.params, x_NM), np.float32)


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
  n_rows = head.rows_at_once
  which_P = np.flatnonzero((asked.feature_P >= here_F[0]) & (asked.feature_P <= here_F[-1]))
  row_J, place_P = np.unique(asked.row_P[which_P], return_inverse=True)
  start = 0
  for x_RD, size_R in parts(row_J):
    for at in range(0, len(x_RD), n_rows):
      part_RD = x_RD[at:at + n_rows]
      rows = head.through(jnp.asarray(np.pad(part_RD, ((0, n_rows - len(part_RD)), (0, 0)), mode="edge")))
      pairs = slice(*np.searchsorted(place_P, [start + at, start + at + len(part_RD)]))
      for chunk_J, padded, listed in _chunks(asked, which_P[pairs], max(8, n_rows // 4)):
        row_R = np.searchsorted(row_J, padded.row_P) - start
        effects.put(chunk_J, head.changes(rows, features, row_R - at, np.searchsorted(here_F, padded.feature_P),
                                          padded.value_P * size_R[row_R], padded.target_P, listed), bar)
    start += len(x_RD)


class _Head:
  """The last norm and the unembedding, as functions of what does not depend on the norm's scale."""

  def __init__(self, path: LogitPath, used_V: np.ndarray):
    self._path, self._used_V = path, jnp.asarray(used_V)
    self.rows_at_once = _rows_at_once(len(used_V))
    self._W_DV = path.W_unembed_DV.astype(jnp.float32)
    self._gain_D = path.gain_D.astype(jnp.float32)
    bias_1D = None if path.bias_D is None else path.bias_D.astype(jnp.float32)[None]
    self._b_V = jnp.zeros(len(used_V)) if bias_1D is None else product(bias_1D, self._W_DV, jnp.float32)[0]

  def through(self, x_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x without its mean where the norm subtracts it, the logits of that times the gain)."""
    return _through(x_RD, self._gain_D, self._W_DV, self._path.norm == "layer")

  def changes(self, rows, features, row_J, feature_J, value_J, target_J, listed):
    """`_changes` of J pairs of a row and a feature, by their places, with the activation that is removed.

    `rows` and `features` are what `through` gives of the residual stream and of what one unit of each feature adds.
    """
    return _direct_changes(*rows, *features, self._b_V, self._used_V, row_J.astype(np.int32),
                           feature_J.astype(np.int32), value_J, target_J, self._path.epsilon, self._path.logit_cap,
                           listed)


@functools.partial(jax.jit, static_argnames=("centred",))
def _through(x_RD, gain_D, W_DV, centred):
  c_RD = x_RD - x_RD.mean(1, keepdims=True) if centred else x_RD
  return c_RD, product(c_RD * gain_D[None], W_DV, jnp.float32)


@functools.partial(jax.jit, static_argnames=("epsilon", "cap", "listed"))
def _direct_changes(c_RD, L_RV, k_FD, K_FV, b_V, used_V, row_J, feature_J, value_J, target_J, epsilon, cap, listed):
  value_J1 = value_J[:, None]
  c_JD = c_RD[row_J]
  # Rows are copied first: read where they lie, each number's place would be looked up by itself.
  L_JV, K_JV = jax.lax.optimization_barrier((L_RV[row_J], K_FV[feature_J]))

  def logits(c_JD, L_JV):
    scale_J1 = jax.lax.rsqrt(jnp.square(c_JD).mean(1, keepdims=True) + epsilon)
    logits_JV = L_JV * scale_J1 + b_V[None]
    return cap * jnp.tanh(logits_JV / cap) if cap else logits_JV
  return _changes(logits(c_JD, L_JV), logits(c_JD - value_J1 * k_FD[feature_J], L_JV - value_J1 * K_JV), target_J,
                  used_V, listed)


def again(subject: LoadedSubject, sae: SAE, codes: Codes, text: AnalysedText, asked: Asked, used_V: np.ndarray,
          batch_contexts: int, kept: Kept) -> Effects:
  """What removing features does, by running the subject again for each feature and context.

  Sites that the dictionary writes are changed as `monojax.analysis.interventions` changes them.

  Args:
    subject, sae: the models.
    codes: the features' activations on the text.
    text: contexts of `subject.n_context` tokens.
    asked: the predictions.
    used_V: bool, the tokens that may be listed.
    batch_contexts: contexts in one pass, of as many features.
    kept: the positions that count.
  """
  n_context, direction_FO = subject.n_context, sae.direction_FO
  run = _make_passes(subject.model, wired(sae, kept))
  tokens_CT = text.token_N.reshape(-1, n_context)
  effects = Effects.none(len(asked))
  n_rows, used_on_device_V = _rows_at_once(len(used_V)), jnp.asarray(used_V)
  context_P = asked.row_P // n_context
  there_C = np.unique(context_P)
  filled = lambda x_J: np.pad(x_J, (0, batch_contexts - len(x_J)), mode="edge")
  with metrics.progress(len(asked), "predictions", "effects", scale=True) as bar:
    for first in range(0, len(there_C), batch_contexts):
      context_B = there_C[first:first + batch_contexts]
      tokens_BT = tokens_CT[filled(context_B)]
      clean = run.clean(subject.params, sae.params, tokens_BT)
      lowest, end = np.searchsorted(context_P, [context_B[0], context_B[-1] + 1])
      place_P = np.searchsorted(context_B, context_P[lowest:end])
      pass_J, pass_P = np.unique(place_P * len(direction_FO) + asked.feature_P[lowest:end], return_inverse=True)
      for at in range(0, len(pass_J), batch_contexts):
        place_J, feature_J = np.divmod(filled(pass_J[at:at + batch_contexts]), len(direction_FO))
        value_JT = _values(codes, feature_J, context_B[place_J], n_context)
        changed = run.changed(subject.params, tokens_BT, clean, place_J, value_JT, direction_FO[feature_J])
        which_P = lowest + np.flatnonzero((pass_P >= at) & (pass_P < at + batch_contexts))
        for chunk_J, padded, listed in _chunks(asked, which_P, min(n_rows, 8 * batch_contexts)):
          pass_of_J = np.pad(pass_P[chunk_J - lowest], (0, len(padded) - len(chunk_J)), mode="edge") - at
          effects.put(chunk_J, run.changes(subject.params, used_on_device_V, clean, changed, place_J[pass_of_J],
                                           pass_of_J, padded.row_P % n_context, padded.target_P, listed), bar)
  return effects


def _values(codes: Codes, feature_J: np.ndarray, context_J: np.ndarray, n_context: int) -> np.ndarray:
  """The activations of J features, each on a context of its own, (J, T) float32."""
  value_JT = np.zeros((len(feature_J), n_context), np.float32)
  for j, (feature, context) in enumerate(zip(feature_J.tolist(), context_J.tolist(), strict=True)):
    row_P, value_P = codes.feature(feature)
    here = slice(*np.searchsorted(row_P, [context * n_context, (context + 1) * n_context]))
    value_JT[j, row_P[here] - context * n_context] = value_P[here]
  return value_JT


class _Passes(typing.NamedTuple):
  """The compiled functions of `again`.

  `clean` gives (what the unembedding reads, the sizes of rows, the sites written, where positions count) of a batch of
  contexts; `changed` gives what the unembedding reads in passes with a feature each removed; `changes` compares them.
  """
  clean: collections.abc.Callable
  changed: collections.abc.Callable
  changes: collections.abc.Callable


@functools.lru_cache(maxsize=8)
def _make_passes(subject: Subject, dictionary: Wired) -> _Passes:
  sae, reads, writes, kept = dictionary
  adds = reads_first(dictionary, subject)
  ends = np.cumsum([sae.wiring.widths[i] for i in sae.wiring.writes])[:-1]

  @jax.jit
  def clean(params, sae_params, tokens_BT):
    wanted = {*reads, *(() if adds else writes), *kept.sites, _LAST}
    _, sites = subject.apply({"params": params}, tokens_BT, wanted=tuple(sorted(wanted)))
    size_BT = _sizes_of(sae, sae_params, side_by_side(sites, reads)).reshape(tokens_BT.shape)
    written = None if adds else side_by_side(sites, writes).reshape(*tokens_BT.shape, -1)
    return sites[_LAST], size_BT, written, jnp.broadcast_to(kept.counts(tokens_BT, sites), tokens_BT.shape)

  @jax.jit
  def changed(params, tokens_BT, clean, place_J, value_JT, direction_JO):
    _, size_BT, written, counts_BT = clean
    change_JTO = -(value_JT * size_BT[place_J])[:, :, None] * direction_JO[:, None]
    if adds:
      put = lambda x, part: x + part.astype(x.dtype)
    else:
      change_JTO, counts_JT1 = change_JTO + written[place_J], counts_BT[place_J][..., None]
      put = lambda x, part: jnp.where(counts_JT1, part.astype(x.dtype), x)
    edit = {site: lambda x, part=part: put(x, part)
            for site, part in zip(writes, jnp.split(change_JTO, ends, axis=-1), strict=True)}
    return subject.apply({"params": params}, tokens_BT[place_J], edit, wanted=(_LAST,))[1][_LAST]

  @functools.partial(jax.jit, static_argnames=("listed",))
  def changes(params, used_V, clean, changed_JTD, place_J, pass_J, position_J, target_J, listed):
    def logits(u_JD):
      nothing_J1 = jnp.zeros((len(u_JD), 1), jnp.int32)  # what an edit ignores is not computed
      return subject.apply({"params": params}, nothing_J1, {_LAST: lambda x: u_JD[:, None]}, wanted=())[0][:, 0]
    return _changes(logits(clean[0][place_J, position_J]), logits(changed_JTD[pass_J, position_J]), target_J,
                    used_V, listed)
  return _Passes(clean, changed, changes)


def _sizes_of(sae: Dictionary, sae_params: dict, x_NM: jax.Array) -> jax.Array:
  """`sizes`, also while it is traced."""
  if not sae.rows:
    return jnp.ones(len(x_NM))
  return sae.apply({"params": sae_params}, x_NM, method="middle_and_size")[1][:, 0]
