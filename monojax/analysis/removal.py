"""How a subject's predictions change when one feature is taken out of it.

An activation x becomes x - f d at every position where the feature fires, f being its activation there and d its
direction; the part of x that the dictionary does not reconstruct stays (Towards Monosemanticity, "Feature Ablations").
What is measured is the prediction that the subject makes at a row, which is of the token that comes after it.

Where removing a feature at a row changes the prediction of that row alone, `monojax.analysis.removal_direct` computes
it from the residual stream. Elsewhere `again` runs the subject a second time for each pair of a feature and a context.

Letters: P pairs of a feature and a row whose prediction is asked for, J of them, or of other things, at a time; K
columns of the vocabulary; N rows; F features; O width written; M width read; D width of the residual stream; V
vocabulary; B contexts of a batch; T positions of a context.
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
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary
from monojax.subjects.loss import next_token_loss
from monojax.subjects.subject import LAST, LoadedSubject, Subject, unembedded

N_LISTED = 5              # tokens that are listed of those whose logits fall, and of those whose logits rise
_LOGITS = 1 << 22         # of the rows that are computed at a time: 16 MB
_BLOCK = 32               # rows that the vocabulary is folded into


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
    """Enters the fields of some predictions, which may have more rows than these, and tells the progress bar."""
    for field, array in zip(dataclasses.fields(self), found, strict=False):
      getattr(self, field.name)[which_P] = np.asarray(array)[:len(which_P)]
    bar.update(len(which_P))

  def at(self, which_P: np.ndarray | slice) -> "Effects":
    """Those of some predictions, or of all in another order."""
    return Effects(*(getattr(self, field.name)[which_P] for field in dataclasses.fields(self)))


def _blocks(x_JV: jax.Array, fill: float) -> jax.Array:
  """The vocabulary as a matrix, (J, 32, columns), filled up at its end: number v is in row v // columns.

  Sums and maxima over 32 rows are computed for many columns at once, and those over what is left are short.
  """
  padded = jnp.pad(x_JV, ((0, 0), (0, -x_JV.shape[1] % _BLOCK)), constant_values=fill)
  return padded.reshape(len(padded), _BLOCK, -1)


def log_total(logits_JV: jax.Array) -> jax.Array:
  """The logarithm of the sum of exp(logits), (J,)."""
  blocks = _blocks(logits_JV, -jnp.inf)
  most_J = blocks.max(1).max(1)
  return most_J + jnp.log(jnp.exp(blocks - most_J[:, None, None]).sum(1).sum(1))


def listed_changes(change_JV: jax.Array, used_V: jax.Array) -> list[jax.Array]:
  """The lists of `Effects` for J changes of logits; to be traced.

  The 5 columns of `_blocks` with the largest maxima hold the 5 largest numbers, and only these are sorted.
  """
  change, is_used = jax.lax.optimization_barrier(_blocks(change_JV, 0.0)), _blocks(used_V[None], False)
  n_columns, found = change.shape[2], []
  for sign in (-1.0, 1.0):
    most = min(N_LISTED, n_columns)
    _, column_JK = _top_k(jnp.where(is_used, sign * change, -jnp.inf).max(1), most)
    candidates = sign * jnp.take_along_axis(change, column_JK[:, None], axis=2)
    there = is_used[0].T[column_JK].swapaxes(1, 2)
    value_J5, place_J5 = _top_k(jnp.where(there, candidates, -jnp.inf).reshape(len(change), -1), N_LISTED)
    id_J5 = place_J5 // most * n_columns + jnp.take_along_axis(column_JK, place_J5 % most, axis=1)
    found += [jnp.where(value_J5 > -jnp.inf, id_J5, -1), jnp.where(value_J5 > -jnp.inf, sign * value_J5, 0.0)]
  return found


def _top_k(x_JK: jax.Array, k: int) -> tuple[jax.Array, ...]:
  """`lax.top_k` with nothing merged into it, which XLA's CPU backend would make a whole sort of."""
  return tuple(jax.lax.optimization_barrier(part) for part in jax.lax.top_k(jax.lax.optimization_barrier(x_JK), k))


def chunks(asked: Asked, which_P: np.ndarray, size: int) -> collections.abc.Iterator[tuple[np.ndarray, Asked, bool]]:
  """Some predictions in chunks that are all listed or all not: (which they are, filled up to `size`, listed)."""
  for listed in (False, True):
    of_kind_P = which_P[asked.listed_P[which_P] == listed]
    for first in range(0, len(of_kind_P), size):
      chunk_J = of_kind_P[first:first + size]
      yield chunk_J, asked.at(np.pad(chunk_J, (0, size - len(chunk_J)), mode="edge")), listed


def rows_at_once(n_vocab: int) -> int:
  return max(8, _LOGITS // n_vocab)


def sizes(sae: SAE, x_NM: typing.Any) -> np.ndarray:
  """What the reconstruction of each row is multiplied by, (N,): 1 but for dictionaries that scale each row."""
  return np.asarray(sizes_of(sae.model, sae.params, x_NM), np.float32)


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
  n_rows, used_on_device_V = rows_at_once(len(used_V)), jnp.asarray(used_V)
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
        for chunk_J, padded, listed in chunks(asked, which_P, min(n_rows, 8 * batch_contexts)):
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
    wanted = {*reads, *(() if adds else writes), *kept.sites, LAST}
    _, sites = subject.apply({"params": params}, tokens_BT, wanted=tuple(sorted(wanted)))
    size_BT = sizes_of(sae, sae_params, side_by_side(sites, reads)).reshape(tokens_BT.shape)
    written = None if adds else side_by_side(sites, writes).reshape(*tokens_BT.shape, -1)
    return sites[LAST], size_BT, written, jnp.broadcast_to(kept.counts(tokens_BT, sites), tokens_BT.shape)

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
    return subject.apply({"params": params}, tokens_BT[place_J], edit, wanted=(LAST,))[1][LAST]

  @functools.partial(jax.jit, static_argnames=("listed",))
  def changes(params, used_V, clean, changed_JTD, place_J, pass_J, position_J, target_J, listed):
    logits = lambda u_JD: unembedded(subject, params, u_JD[:, None])[:, 0]
    before_JV, after_JV = logits(clean[0][place_J, position_J]), logits(changed_JTD[pass_J, position_J])
    loss_J = next_token_loss(after_JV, target_J) - next_token_loss(before_JV, target_J)
    return loss_J, *(listed_changes(after_JV - before_JV, used_V) if listed else ())
  return _Passes(clean, changed, changes)


def sizes_of(sae: Dictionary, sae_params: dict, x_NM: jax.Array) -> jax.Array:
  """`sizes`, also while it is traced."""
  if not sae.rows:
    return jnp.ones(len(x_NM))
  return sae.apply({"params": sae_params}, x_NM, method="middle_and_size")[1][:, 0]
