"""Explanations of features, and their scores: the protocol of automated interpretability.

An *explainer* sees examples of a feature and says in words what the feature fires on. A *simulator* sees only these
words and other text, and predicts the feature's activation on each token there. The score of the explanation is
Spearman's rank correlation between predicted and true activations. Both are small interfaces: `labels.Rules` needs no
language model, `chat` asks one.

Examples are drawn from all levels of activation, and at random. The contexts of the text are dealt at random into two
halves: an explainer sees examples, and anything else of the text, of the first half alone, and scores are taken on the
second half alone. So no explanation is scored on a token that had a part in its choice, nor on one of the same context.

Letters: P firings of a feature, E examples, W tokens of an example's window, J rows that are scored, K predictions that
are tried, or values that differ.
"""

import collections
import concurrent.futures
import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats

from monojax import metrics
from monojax.analysis.codes import Codes
from monojax.analysis.sampling import CHOOSING, SCORING, SIMULATED, Amounts, Examples, Sampler

LEAST_FIRINGS = 20  # in either half; a feature that fires on fewer tokens gets no score, as in the paper
N_TOP = 20          # examples whose tokens tell whether a feature is a single-token one


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What a feature is said to fire on.

  Attributes:
    text: in words.
    rule: what the explainer's own simulator predicts by, if not by the words alone.
    others: the explanations that were next best, the best of them first, if the explainer tells them.
  """
  text: str
  rule: typing.Any = None
  others: tuple["Explanation", ...] = ()


class Explainer(typing.Protocol):
  """Says what a feature fires on.

  Attributes:
    amounts: the examples that it wants to see.
  """
  @property
  def amounts(self) -> Amounts: ...

  def explain(self, feature: int, examples: Examples) -> Explanation:
    """The explanation of a feature by its number and examples, all of which are of the half `CHOOSING`.

    Raises:
      Unreadable: it gives no answer that can be used.
    """
    ...


class Simulator(typing.Protocol):
  """Predicts what a feature does from its explanation."""

  def simulate(self, explanation: Explanation, examples: Examples) -> np.ndarray:
    """The activations act_EW of the feature on tokens of the half `SCORING`, in any unit.

    Raises:
      Unreadable: it gives no answer that can be used.
    """
    ...


class Unreadable(Exception):
  """The answer of an explainer or a simulator that cannot be used: the feature stays without a label or a score."""


@dataclasses.dataclass(frozen=True)
class Label:
  """A feature's label, and how well it predicts.

  Attributes:
    feature: its number.
    text: what it is said to fire on; "" where there is no explanation.
    score: Spearman's correlation of predicted and true activations, 0 where the prediction is constant; NaN where the
      feature fires too rarely, or there is no prediction.
    pearson: Pearson's likewise.
    weighted: Spearman's, where each window counts as much as it stands for in the text. Nearly all of the weight is on
      random text, on which features hardly fire.
    logits: the share of tokens of which the label tells whether the feature raises them (`logit_tests`); NaN where that
      was not asked.
    single_token: whether all of its top examples have one and the same token in the middle.
    unreadable: whether an answer could not be used.
    others: (text, score) of the explanations that were next best.
  """
  feature: int
  text: str
  score: float
  pearson: float
  weighted: float
  single_token: bool
  logits: float = float("nan")
  unreadable: bool = False
  others: tuple[tuple[str, float], ...] = ()


def correlations(predicted_KJ: np.ndarray, true_J: np.ndarray) -> np.ndarray:
  """Pearson's correlation of each row with the true values, in float64; 0 where one of the two is constant."""
  predicted_KJ = np.asarray(predicted_KJ, np.float64)
  a_KJ = predicted_KJ - predicted_KJ.mean(1, keepdims=True)
  b_J = true_J - np.asarray(true_J, np.float64).mean()
  length_K = np.sqrt(np.square(a_KJ).sum(1) * np.square(b_J).sum())
  tiny_K = 1e-12 * (np.square(predicted_KJ).sum(1) + 1e-300)
  varies_K = (length_K > 0) & (np.square(a_KJ).sum(1) > tiny_K)
  return np.where(varies_K, a_KJ @ b_J / np.where(varies_K, length_K, 1), 0.0)


def rank_correlations(predicted_KJ: np.ndarray, true_J: np.ndarray) -> np.ndarray:
  """Spearman's correlation of each row with the true values: Pearson's of ranks, where equal values share a rank."""
  return correlations(stats.rankdata(predicted_KJ, axis=1), stats.rankdata(true_J))


def weighted_rank_correlation(predicted_J: np.ndarray, true_J: np.ndarray, weight_J: np.ndarray) -> float:
  """Spearman's correlation of weighted values; 0 where one of the two is constant.

  The rank of a value is the weight of all smaller ones and half of the weight of its equals. With weights that are
  whole numbers it is as if each value were there so many times.
  """
  ranks = []
  for values_J in (predicted_J, true_J):
    _, place_J = np.unique(values_J, return_inverse=True)
    weight_K = np.bincount(place_J, weight_J)
    rank_J = (np.cumsum(weight_K) - weight_K / 2)[place_J] / weight_J.sum()
    ranks.append(rank_J - np.average(rank_J, weights=weight_J))
  covariance, *variances = ((weight_J * a_J * b_J).sum() for a_J, b_J in
                            (ranks, (ranks[0], ranks[0]), (ranks[1], ranks[1])))
  return float(covariance / np.sqrt(np.prod(variances))) if min(variances) > 1e-12 * weight_J.sum() else 0.0


def label(codes: Codes, sampler: Sampler, explainer: Explainer, simulator: Simulator, features: Iterable[int],
          seed: int, n_threads: int = 1, description: str = "labels",
          right: Callable[[int, Explanation], float] | None = None) -> list[Label]:
  """Labels features, and scores the labels.

  Args:
    codes: the activations on the sampler's text.
    sampler: the text and its halves.
    explainer, simulator: what explains and what predicts.
    features: the numbers of the features.
    seed: of the examples; a feature's do not depend on the others that are asked for.
    n_threads: how many features are worked on at a time, where answers are waited for.
    description: label of the progress bar.
    right: (feature, explanation) -> `Label.logits`, if it is asked for.
  """
  features = list(features)
  work = lambda i: _labelled(i, *codes.feature(i), sampler, explainer, simulator, seed, right)
  found = []
  with metrics.progress(len(features), "features", description) as bar:
    for one in _mapped(work, features, n_threads):
      found.append(one)
      bar.update(1)
  return found


def _mapped(work: Callable[[int], Label], features: Sequence[int], n_threads: int) -> Iterable[Label]:
  """The results in order; the first error ends it, and what has not begun by then is not done."""
  if n_threads == 1:
    yield from map(work, features)
    return
  pool = concurrent.futures.ThreadPoolExecutor(n_threads)
  waiting: collections.deque = collections.deque()
  try:
    for feature in features:
      waiting.append(pool.submit(work, feature))
      if len(waiting) >= 2 * n_threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _labelled(feature, row_P, value_P, sampler, explainer, simulator, seed, right) -> Label:
  """The label of one feature, which fires at `row_P` with the activations `value_P`."""
  rngs = [np.random.default_rng([seed, feature, half]) for half in (CHOOSING, SCORING)]
  falling = sampler.falling(row_P, value_P)
  firings = np.bincount(sampler.half_N[row_P] + 1, minlength=3)[1:]
  top = sampler.text.token_N[sampler.top(falling[0], N_TOP)]
  single = len(top) > 1 and bool((top == top[0]).all())
  nothing = Label(feature, "", float("nan"), float("nan"), float("nan"), single)

  def drawn(amounts, half):
    return sampler.examples(*sampler.draw(row_P, falling, amounts, half, rngs[half]), row_P, value_P)
  if not firings[CHOOSING]:
    return nothing
  try:
    explanation = explainer.explain(feature, drawn(explainer.amounts, CHOOSING))
  except Unreadable:
    return dataclasses.replace(nothing, unreadable=True)
  told = dataclasses.replace(nothing, text=explanation.text)
  if firings.min() < LEAST_FIRINGS:
    return told
  scored = drawn(SIMULATED, SCORING)
  place_J = sampler.counted(scored)
  predicted = lambda told: np.asarray(simulator.simulate(told, scored.hidden())).reshape(-1)[place_J]
  try:
    predicted_J = predicted(explanation)
    other_KJ = [predicted(other) for other in explanation.others]
    share = right(feature, explanation) if right else float("nan")
  except Unreadable:
    return dataclasses.replace(told, unreadable=True)
  assert scored.act_EW is not None
  true_J = scored.act_EW.reshape(-1)[place_J]
  weight_J = np.repeat(scored.weight_E, scored.act_EW.shape[1])[place_J]
  score, *other_scores = rank_correlations(np.stack([predicted_J, *other_KJ]), true_J).tolist()
  others = tuple((other.text, found) for other, found in zip(explanation.others, other_scores, strict=True))
  return dataclasses.replace(told, score=score, others=others,
                             pearson=float(correlations(predicted_J[None], true_J)[0]),
                             weighted=weighted_rank_correlation(predicted_J, true_J, weight_J), logits=share)


def median_interval(values: Sequence[float], seed: int = 0, n_draws: int = 2000) -> tuple[float, float, float] | None:
  """(median, and the ends of its bootstrap interval of 95 %) of the values that are not NaN; None where there are none.

  The interval is between the 2.5th and 97.5th percentiles of the medians of samples that are drawn with replacement.
  """
  values_J = np.asarray([value for value in values if np.isfinite(value)], np.float64)
  if not len(values_J):
    return None
  drawn = np.random.default_rng(seed).integers(0, len(values_J), (n_draws, len(values_J)))
  low, high = np.percentile(np.median(values_J[drawn], axis=1), [2.5, 97.5])
  return float(np.median(values_J)), float(low), float(high)


def summary(labels: Sequence[Label], seed: int = 0) -> dict[str, typing.Any]:
  """What a sample of labels is worth, single-token features and others apart.

  Returns:
    {"features", "scored", "unreadable", "score", "pearson", "weighted", "logits", "single_token_share",
    "score_single_token", "score_others"}: scores are medians with their intervals, see `median_interval`; the share is
    of those that are scored.
  """
  scored = [one for one in labels if np.isfinite(one.score)]
  medians = lambda values: median_interval(values, seed)
  return {"features": len(labels), "scored": len(scored), "unreadable": sum(one.unreadable for one in labels),
          "score": medians([one.score for one in scored]), "pearson": medians([one.pearson for one in scored]),
          "weighted": medians([one.weighted for one in scored]), "logits": medians([one.logits for one in scored]),
          "single_token_share": sum(one.single_token for one in scored) / len(scored) if scored else None,
          "score_single_token": medians([one.score for one in scored if one.single_token]),
          "score_others": medians([one.score for one in scored if not one.single_token])}
