"""Scores by which dictionaries of one site are compared, and their comparison at equal sparsity.

Letters: F features, N rows, C contexts, O width written, R rows of a batch.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from monojax.activations.kept import Kept
from monojax.analysis import detectors, explanations, matching, sampling, scripts
from monojax.analysis.chosen_codes import Reader
from monojax.analysis.codes import Codes
from monojax.analysis.labels import Rules
from monojax.analysis.over_seeds import mean_over_seeds
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

# What is compared: {column of a dictionary's row: what it is}. For all but the last, more is better.
SCORES = {
    "ce_recovered_zero": "cross-entropy recovered",
    "explained_variance": "explained variance",
    "label_score_others": "score of labels, not of one token",
    "detector_f1": "F1 of the best features as detectors",
    "shared": "features shared with other seeds",
    "single_token_share": "features of one token",
}
_LEAST_FIRES = 10  # tokens that a feature must fire on to count in "shared"


@dataclasses.dataclass(frozen=True)
class Text:
  """The text that dictionaries are scored on, with all of it that does not depend on the dictionary.

  Attributes:
    subject, tokens, kept: the subject, the text, and which of its positions count.
    context_C: the contexts that are read.
    sampler: draws examples, and knows the two halves of the text: labels and detectors are chosen on one half and
      scored on the other.
    values: the bytes of each token.
    classes: {class of text: its domains}, which detectors are for.
    seed: of the halves, the examples, and the features that are labelled.
  """
  subject: LoadedSubject
  tokens: Tokens
  kept: Kept
  context_C: np.ndarray
  sampler: sampling.Sampler
  values: list[bytes]
  classes: dict[str, list[int]]
  seed: int

  @staticmethod
  def of(reader: Reader, token_strings: list[str], n_tokens: int, classes: Sequence[str], seed: int = 0) -> "Text":
    """About `n_tokens` tokens of what `reader` reads, in random contexts; `classes` are written NAME=GLOB."""
    tokens = reader.tokens
    context_C = tokens.choose(reader.subject.n_context, n_tokens, seed)
    text = reader.text(context_C)
    return Text(reader.subject, tokens, reader.kept, context_C,
                sampling.Sampler(text, sampling.halves(text, seed), token_strings),
                scripts.bytes_of(token_strings, tokens), detectors.classes_of(classes, tokens.domains), seed)

  def domains_of(self, half: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool, which rows are of a half; the domain of each of them)."""
    in_half_N = self.sampler.half_N == half
    return in_half_N, self.sampler.text.domain_N[in_half_N]


def score_seeds(text: Text, saes: Sequence[SAE], n_labelled: int, shared: float,
                batch_contexts: int = 16) -> list[dict[str, typing.Any]]:
  """Scores of dictionaries that differ in their seed alone.

  Args:
    text: what they are scored on.
    saes: the dictionaries.
    n_labelled: how many features of each are labelled, at random among those that fire often enough to be scored.
    shared: cosine of two features' directions from which on they count as the same.
    batch_contexts: contexts in one forward pass.

  Returns:
    For each dictionary
    * "label_score" and "label_score_others": the median score of labels on the half of the text that they were not
      chosen on, of all features that were labelled and of those that are not of a single token, whose share is
      "single_token_share";
    * "detector_f1": F1 on that half of the feature that tells a class best on the other, mean over the classes;
    * "shared": the share of its features that fire on at least 10 tokens of which a dictionary of another seed has one
      too, mean over the others; None where there is no other.
  """
  found, directions, often = [], [], []
  for sae in saes:
    reader = Reader(text.subject, sae, text.tokens, text.kept, batch_contexts)
    codes = reader.codes(text.context_C, lambda f_RF, _: f_RF, f"seed {sae.config.seed}")
    often.append(np.diff(codes.start_F) >= _LEAST_FIRES)
    directions.append(sae.direction_FO)
    found.append({**_label_scores(text, codes, n_labelled), "detector_f1": detector_f1(text, codes)})
  for i, scores in enumerate(found):
    shares = [_shared(directions[i], directions[j], often[i], often[j], shared)
              for j in range(len(saes)) if j != i]
    scores["shared"] = float(np.mean(shares)) if shares else None
  return found


def _label_scores(text: Text, codes: Codes, n_labelled: int) -> dict[str, float | None]:
  """The scores of labels of some features, and the share of them that are of a single token."""
  sampler = text.sampler
  rules = Rules(codes, sampler, text.values, list(text.tokens.domains), text.seed)
  column_P = np.repeat(np.arange(len(codes.start_F) - 1), np.diff(codes.start_F))
  half_P = sampler.half_N[codes.row_P]
  fires = [np.bincount(column_P[half_P == half], minlength=len(codes.start_F) - 1)
           for half in (sampling.CHOOSING, sampling.SCORING)]
  enough = np.flatnonzero(np.minimum(*fires) >= explanations.LEAST_FIRINGS)
  chosen = np.sort(np.random.default_rng([text.seed, 5]).permutation(enough)[:n_labelled]).tolist()
  of = explanations.summary(explanations.label(codes, sampler, rules, rules, chosen, text.seed), text.seed)
  median = lambda name: of[name][0] if of[name] else None
  return {"label_score": median("score"), "label_score_others": median("score_others"),
          "single_token_share": of["single_token_share"]}


def detector_f1(text: Text, codes: Codes) -> float | None:
  """F1 of the best column as a detector of each class of text, mean over the classes; None where there are none."""
  choose_N, choose_domain = text.domains_of(sampling.CHOOSING)
  test_N, test_domain = text.domains_of(sampling.SCORING)
  is_class = [(np.isin(choose_domain, indices), np.isin(test_domain, indices)) for indices in text.classes.values()]
  is_class = [both for both in is_class if both[0].any() and both[1].any()]
  if not is_class:
    return None
  testing = codes.on_rows(test_N)
  best = detectors.best_detectors(codes.on_rows(choose_N), np.stack([choose for choose, _ in is_class]))
  return float(np.mean([detectors.f1_of(testing, column, threshold, test)
                        for (column, threshold), (_, test) in zip(best, is_class, strict=True)]))


def _shared(a_FO: np.ndarray, b_FO: np.ndarray, use_a_F: np.ndarray, use_b_F: np.ndarray, cosine: float) -> float:
  """The share of A's features in use whose direction has at least that cosine with one of B's."""
  if not (use_a_F.any() and use_b_F.any()):
    return 0.0
  matches = matching.matched(matching.cosine_blocks(a_FO, b_FO), use_a_F, use_b_F)
  return float((matches.value_a_F[use_a_F] >= cosine).mean())


def at_l0(rows: Sequence[Mapping[str, typing.Any]], l0: float, score: str) -> tuple[float, float | None] | None:
  """A score of one recipe and size at a given number of features a token.

  Of each seed, it is interpolated linearly in the logarithm of L0 between its dictionaries.

  Args:
    rows: the dictionaries, dicts with "seed", "l0" and the score.
    l0: the number of features a token.
    score: the score's column.

  Returns:
    (mean over seeds, half the width of its interval of 95 %, None for one seed); None where a seed has no dictionaries
    on both sides of `l0`. See `mean_over_seeds`.
  """
  values = []
  for seed in sorted({row["seed"] for row in rows}):
    points = sorted((row["l0"], row[score]) for row in rows
                    if row["seed"] == seed and row[score] is not None and row["l0"] > 0)
    if not points or not points[0][0] <= l0 <= points[-1][0]:
      return None
    values.append(float(np.interp(math.log(l0), *np.transpose([(math.log(x), y) for x, y in points]))))
  return mean_over_seeds(values)
