"""What removing each feature does to the subject's predictions in the feature's own examples.

In every window of an example each token gets an effect: how much the loss of this token rises when the feature is
removed from everything before it. With an activation on `B` in `A B C`, the effect is on `C`, as on the published pages
of Towards Monosemanticity. And for each example's own token there are the tokens whose logits, in the prediction made
there, fall and rise most. `monojax.analysis.removal` and `removal_direct` have the two ways of computing this; here is
what is asked for, for which features, and the tables.

Letters: F features, J some of them or of other things, E examples, W tokens of an example's window, P pairs of a
feature and a row whose prediction is asked for, T positions of a context, N rows, V vocabulary.
"""

import dataclasses
import functools

import jax
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis.codes import Codes
from monojax.analysis.config import AnalysisConfig
from monojax.analysis.examples import SIDE
from monojax.analysis.logits import path_of
from monojax.analysis.removal import N_LISTED, Asked, Effects, again
from monojax.analysis.removal_direct import LastRows, computed_parts, directly
from monojax.analysis.status import variance_share
from monojax.analysis.tables import EXAMPLE_GROUPS
from monojax.analysis.text import AnalysedText
from monojax.host_memory import total_bytes
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject, LogitPath

_LEAST_SHARE = 0.01  # of the features that fire: effects of fewer are not worth the time, unless they are asked for
LISTS = ("lowered", "raised")
_N_INTERVALS = len(EXAMPLE_GROUPS) - 2
_FIRING = slice(-EXAMPLE_GROUPS[-1][1])  # the examples on which a feature fires


def direct_path(subject: LoadedSubject, sae: SAE) -> tuple[LogitPath, slice] | None:
  """`path_of` where what the dictionary writes reaches the logits by no other way, otherwise None."""
  found = path_of(subject, sae)
  return found if found and found[0].only and len(sae.writes) == 1 else None


def last_rows(subject: LoadedSubject, sae: SAE, n_rows: int) -> LastRows | None:
  """Where the residual stream of so many rows is to be kept for `directly`; None if there is too little memory."""
  found = direct_path(subject, sae)
  width = subject.model.site_widths[found[0].scale_site] if found else 0
  return LastRows(n_rows, width) if found and 4 * n_rows * width <= total_bytes() // 8 else None


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """A text with the features that fire on it, and what is needed to ask what the subject would predict without them.

  Attributes:
    subject, sae: the models.
    codes: activations of the F features.
    text: contexts of `subject.n_context` tokens.
    used_V: bool, the tokens that may be listed.
    batch_contexts: contexts in one forward pass.
    kept: the positions that count.
    last: the residual stream before the last norm, if it was kept.
  """
  subject: LoadedSubject
  sae: SAE
  codes: Codes
  text: AnalysedText
  used_V: np.ndarray
  batch_contexts: int
  kept: Kept = EVERY
  last: LastRows | None = None

  @functools.cached_property
  def direct(self) -> tuple[LogitPath, slice] | None:
    """`direct_path` of the models."""
    return direct_path(self.subject, self.sae)

  def effects(self, asked: Asked) -> Effects:
    """What removing the features changes in the predictions that are asked for, in any order."""
    order_P = np.argsort(asked.row_P, kind="stable")
    in_order = asked.at(order_P)
    if self.direct:
      path, columns = self.direct
      parts = self.last.parts if self.last else computed_parts(self.subject, self.sae, path.scale_site, self.text,
                                                               self.batch_contexts)
      effects = directly(path, self.sae.direction_FO[:, columns], in_order, parts, self.used_V)
    else:
      effects = again(self.subject, self.sae, self.codes, self.text, in_order, self.used_V, self.batch_contexts,
                      self.kept)
    place_P = np.empty_like(order_P)
    place_P[order_P] = np.arange(len(order_P))
    return effects.at(place_P)

  def asked(self, feature: int, row_EW: np.ndarray) -> Asked:
    """The predictions that tell what removing a feature does in windows around its examples.

    Those of tokens behind which nothing changes are left out: the feature does not fire before them in their context,
    or, where a change reaches no other position, not on the token just before.

    Args:
      feature: its number.
      row_EW: the rows of the windows' tokens, -1 for none; the token that an example was chosen for is in the middle.

    Returns:
      `Asked`, rows rising.
    """
    n_context = self.subject.n_context
    middle_E = row_EW[:, row_EW.shape[1] // 2]
    row_J = np.unique(np.concatenate([_predicted_at(row_EW, n_context).reshape(-1), middle_E]))
    row_J = row_J[row_J >= 0]
    row_P, value_P = self.codes.feature(feature)
    if not len(row_P):
      row_J = row_J[:0]
    value_J = _at(row_P, value_P, row_J)
    if self.direct:
      changes_J = value_J != 0
    else:
      first_J = np.searchsorted(row_P, row_J // n_context * n_context)
      changes_J = np.append(row_P, np.iinfo(np.int32).max)[first_J] <= row_J
    row_J, value_J = row_J[changes_J], value_J[changes_J]
    next_J = np.minimum(row_J + 1, self.text.n_rows - 1)
    return Asked(np.full(len(row_J), feature), row_J, value_J, self.text.token_N[next_J].astype(np.int32),
                 np.isin(row_J, middle_E))


def _predicted_at(row_EW: np.ndarray, n_context: int) -> np.ndarray:
  """The rows at which the tokens of windows are predicted, -1 where they are not: a context's first token is not."""
  return np.where((row_EW >= 0) & (row_EW % n_context > 0), row_EW - 1, -1)


def _at(row_J: np.ndarray, value_J: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The values on some rows, 0 on those that are not in `row_J`, which rises."""
  if not len(row_J):
    return np.zeros(wanted.shape, value_J.dtype)
  place = np.minimum(np.searchsorted(row_J, wanted), len(row_J) - 1)
  return np.where(row_J[place] == wanted, value_J[place], 0).astype(value_J.dtype)


def loss_in_windows(row_EW: np.ndarray, asked: Asked, effects: Effects, n_context: int) -> np.ndarray:
  """The effects on the tokens of windows, (E, W) float32: 0 where nothing was asked, since nothing changes there."""
  return _at(asked.row_P, effects.loss_P, _predicted_at(row_EW, n_context))


def windows_of(row_E: np.ndarray, n_rows: int, n_context: int) -> np.ndarray:
  """The rows of the windows around examples' rows, (E, W), -1 outside of an example's context and for row -1."""
  row_EW = row_E[:, None] + np.arange(-SIDE, SIDE + 1)[None]
  same_EW = (row_E[:, None] >= 0) & (row_EW >= 0) & (row_EW // n_context == row_E[:, None] // n_context)
  return np.where(same_EW & (row_EW < n_rows), row_EW, -1)


def effect_columns(config: AnalysisConfig, seen: Seen, position_FE: np.ndarray) -> tuple[dict[str, np.ndarray], dict]:
  """The feature columns of effects; `monojax.analysis.columns` says what each is.

  Args:
    config: for how many features, see `AnalysisConfig.effects`.
    seen: the text and its features.
    position_FE: the positions of the examples in the text.

  Returns:
    (the columns, what is to be said of them: {"features_with_effects": their number}); no columns where there are none.
  """
  if config.effects == "none" or seen.subject.model.output != "logits":
    return {}, {}
  n_context, alive = seen.subject.n_context, np.flatnonzero(np.diff(seen.codes.start_F))
  row_FE = seen.text.rows_at(position_FE)
  window_of = lambda i: windows_of(row_FE[i], seen.text.n_rows, n_context)
  asked_of = {i: seen.asked(i, window_of(i)) for i in alive.tolist()}
  chosen = alive if config.effects == "all" else _affordable(config, seen, asked_of)
  if not len(chosen):
    print(f"no effects of removing features: {config.effect_teraflops:g} * 10^12 operations are too few for one in "
          "a hundred of them; give more by --analysis.effect_teraflops, or take all by --analysis.effects=all",
          flush=True)
    return {}, {"features_with_effects": 0}
  print(f"effects of removing features in their examples: {len(chosen):,} of the {len(alive):,} features that fire"
        + ("" if len(chosen) == len(alive) else ", those that carry most of the reconstructions"), flush=True)
  effects = seen.effects(_joined([asked_of[i] for i in chosen.tolist()]))
  n_features, n_examples = position_FE.shape
  columns = {"example_effects_FEW": np.full((n_features, n_examples, 2 * SIDE + 1), np.nan, np.float32)}
  for name in LISTS:
    columns[f"example_{name}_ids_FE5"] = np.full((n_features, n_examples, N_LISTED), -1, np.int32)
    columns[f"example_{name}_values_FE5"] = np.zeros((n_features, n_examples, N_LISTED), np.float32)
  start = 0
  for i in chosen.tolist():
    asked, row_EW = asked_of[i], window_of(i)
    own = effects.at(slice(start, start + len(asked)))
    start += len(asked)
    columns["example_effects_FEW"][i] = loss_in_windows(row_EW, asked, own, n_context)
    there_E = np.isin(row_FE[i], asked.row_P)
    place_E = np.searchsorted(asked.row_P, row_FE[i][there_E])
    for name in LISTS:
      columns[f"example_{name}_ids_FE5"][i, there_E] = getattr(own, f"{name}_ids_P5")[place_E]
      columns[f"example_{name}_values_FE5"][i, there_E] = getattr(own, f"{name}_values_P5")[place_E]
  return columns, {"features_with_effects": len(chosen)}


def loss_rises(columns: dict[str, np.ndarray], n_rows: int) -> np.ndarray:
  """How much the mean loss of the next token over the text would rise without each feature, in nats, (F,) float32.

  It is an estimate from the examples, which are chosen by their activation alone: the mean effect of those near each
  eleventh of the largest activation stands for all tokens with such activations, of which the histogram tells the
  number; in between effects are interpolated, from 0 for an activation of 0. What a feature does for tokens beyond the
  next one, by way of later layers, is not in it. NaN for a feature whose effects were not measured, 0 for one that does
  not fire.

  Args:
    columns: the feature columns, those of effects among them.
    n_rows: tokens of the text.
  """
  counts_FH, largest_F = columns["act_counts_FH"], columns["max_act_F"]
  found_F = np.zeros(len(largest_F), np.float32)
  for i in np.flatnonzero(largest_F > 0).tolist():
    act_E, effect_E = (columns[name][i][_FIRING, at] for name, at in (
        ("example_acts_FEW", SIDE), ("example_effects_FEW", SIDE + 1)))
    known_E = (columns["example_tokens_FEW"][i][_FIRING, SIDE + 1] >= 0) & (act_E > 0)
    found_F[i] = _summed_effect(counts_FH[i], largest_F[i], act_E[known_E], effect_E[known_E]) / n_rows
  return found_F


def _summed_effect(counts_H: np.ndarray, largest: float, act_E: np.ndarray, effect_E: np.ndarray) -> float:
  """The sum over a feature's firings of their effects, from those of examples with the activations `act_E`; NaN where
  there are none, or effects are not known. `counts_H` is the histogram of its activations, from 0 to `largest`."""
  if not len(act_E) or not np.isfinite(effect_E).all():
    return float("nan")
  _, place_E = np.unique(np.round(act_E / largest * _N_INTERVALS), return_inverse=True)
  act_K, effect_K = (np.append(0.0, np.bincount(place_E, values_E) / np.bincount(place_E))
                     for values_E in (act_E, effect_E))
  middle_H = (np.arange(len(counts_H)) + 0.5) / len(counts_H) * largest
  return float(counts_H @ np.interp(middle_H, act_K, effect_K))


def _joined(parts: list[Asked]) -> Asked:
  return Asked(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Asked)))


def _affordable(config: AnalysisConfig, seen: Seen, asked_of: dict[int, Asked]) -> np.ndarray:
  """The features whose effects `config.effect_teraflops` allow, rising; none if these are too few to be of use.

  Features come in the order of what they carry of the reconstructions. A product with a matrix counts two operations
  for each of its weights. A forward pass has products with those parameters that are not per token of the vocabulary;
  it counts where features need passes of their own, but not where all of them share one, as the features' codes do.
  """
  subject, n_context = seen.subject, seen.subject.n_context
  n_vocab, width = subject.model.n_vocab, subject.model.site_widths["final.in"]
  of_pass = 2 * n_context * sum(leaf.size for leaf in jax.tree.leaves(subject.params) if n_vocab not in leaf.shape)
  share_F = variance_share(seen.codes, seen.sae.direction_FO)
  order = sorted(asked_of, key=lambda i: -share_F[i])
  n_asked = np.array([len(asked_of[i]) for i in order])
  n_passes = np.array([len(np.unique(asked_of[i].row_P // n_context)) for i in order])
  n_contexts = np.minimum(np.cumsum(n_passes), seen.text.n_rows // n_context)
  cost = np.cumsum(2 * n_vocab * width * n_asked * (1.0 if seen.direct else 2.0))
  if not seen.direct:
    cost += of_pass * (np.cumsum(n_passes) + n_contexts)
  n_chosen = int(np.searchsorted(cost, config.effect_teraflops * 1e12, side="right"))
  return np.sort(np.array(order[:n_chosen] if n_chosen >= _LEAST_SHARE * len(order) else [], np.int64))
