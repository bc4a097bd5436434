"""Explanations of features, and their scores: the protocol of automated interpretability.

An *explainer* sees examples of a feature and says in words what the feature fires on. A *simulator* sees only these
words and other text, and predicts the feature's activation on each token there. The score of the explanation is
Spearman's rank correlation between predicted and true activations. Both are small interfaces: `labels.Rules` needs no
language model, `chat` asks one.

Examples are drawn from all levels of activation, and at random. The contexts of the text are dealt at random into two
halves: an explainer sees examples, and anything else of the text, of the first half alone, and scores are taken on the
second half alone. So no explanation is scored on a token that had a part in its choice, nor on one of the same context.

Letters: N rows of the text, F features, P firings, E examples, W tokens of an example's window, J rows that are scored,
K explanations that are tried.
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
from monojax.analysis.text import AnalysedText

CHOOSING, SCORING = 0, 1  # the halves of the text
SIDE = 4                  # tokens of a window on each side of the one in the middle
LEAST_FIRINGS = 20        # in either half; a feature that fires on fewer tokens gets no score, as in the paper
N_TOP = 20                # examples whose tokens tell whether a feature is a single-token one
N_INTERVALS = 11


class Amounts(typing.NamedTuple):
  """How many examples are drawn of each kind.

  Attributes:
    top: the largest activations, one of a context.
    each: of each of 12 groups: activations nearest to 10/11, 9/11, ... 0 of the largest, and tokens where the feature
      does not fire.
    random: random tokens, whether the feature fires there or not.
    elsewhere: random tokens that are the same as one of the top examples.
  """
  top: int
  each: int
  random: int
  elsewhere: int


# The paper's: 49 examples are shown, 60 are simulated.
SHOWN, SIMULATED = Amounts(10, 2, 5, 10), Amounts(6, 2, 10, 20)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Windows of a text, in no particular order.

  Attributes:
    row_EW: int64, the rows of the text (`AnalysedText`); -1 outside the context.
    token_EW: int32 token ids, -1 likewise.
    act_EW: float32, the feature's activations; None where they are to be predicted.
    token_strings: a string for each token id.
  """
  row_EW: np.ndarray
  token_EW: np.ndarray
  act_EW: np.ndarray | None
  token_strings: Sequence[str]

  def __len__(self) -> int:
    return len(self.row_EW)

  def strings(self) -> list[list[str]]:
    """The tokens of each window as strings, without what is outside the context."""
    return [[self.token_strings[i] for i in token_W if i >= 0] for token_W in self.token_EW.tolist()]

  def hidden(self) -> "Examples":
    """The same without activations."""
    return dataclasses.replace(self, act_EW=None)


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What a feature is said to fire on.

  Attributes:
    text: in words.
    rule: what the explainer's own simulator predicts by, if not by the words alone.
  """
  text: str
  rule: typing.Any = None


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
    single_token: whether all of its top examples have one and the same token in the middle.
    unreadable: whether an answer could not be used.
  """
  feature: int
  text: str
  score: float
  pearson: float
  single_token: bool
  unreadable: bool = False


def halves(text: AnalysedText, seed: int) -> np.ndarray:
  """For each row of a text the half that its context is in, int8, or -1 where the row does not count."""
  n_contexts = int(text.context_N.max(initial=-1)) + 1
  half_C = (np.random.default_rng([seed, 1]).permutation(n_contexts) % 2).astype(np.int8)
  half_N = half_C[text.context_N]
  if text.counts_N is not None:
    half_N[~text.counts_N] = -1
  return half_N


class Sampler:
  """Draws examples of features from either half of a text."""

  def __init__(self, text: AnalysedText, half_N: np.ndarray, token_strings: Sequence[str]):
    self.text, self.half_N, self.token_strings = text, half_N, token_strings
    self._rows = [np.flatnonzero(half_N == half) for half in (CHOOSING, SCORING)]
    # The rows of each half by their tokens: those of token v are number start[v] to start[v + 1] - 1.
    self._by_token = [rows[np.argsort(text.token_N[rows], kind="stable")] for rows in self._rows]
    n_tokens = len(token_strings)
    self._starts = [np.searchsorted(text.token_N[rows], np.arange(n_tokens + 1)) for rows in self._by_token]

  def falling(self, row_P: np.ndarray, value_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A feature's firings (rows, values), the strongest first."""
    order_P = np.argsort(-value_P, kind="stable")
    return row_P[order_P], value_P[order_P]

  def top(self, falling_P: np.ndarray, n: int) -> np.ndarray:
    """The first `n` rows of those that fall, one of a context."""
    for some_P in (falling_P[:16 * n], falling_P):  # few are usually enough, and sorting all contexts takes long
      _, first = np.unique(self.text.context_N[some_P], return_index=True)
      if len(first) >= n:
        break
    return falling_P[np.sort(first)[:n]]

  def draw(self, row_P: np.ndarray, falling: tuple[np.ndarray, np.ndarray], amounts: Amounts, half: int,
           rng: np.random.Generator) -> np.ndarray:
    """The rows of a feature's examples in one half, each once.

    Args:
      row_P: where it fires, rising.
      falling: from `falling`.
      amounts: how many of each kind.
      half: which.
      rng: what is random is drawn by it.
    """
    here_P = self.half_N[falling[0]] == half
    falling_P, value_P = falling[0][here_P], falling[1][here_P]
    rows = self._rows[half]
    if not len(rows):
      return rows
    anywhere = lambda n: rows[rng.integers(0, len(rows), n)]
    chosen = [top := self.top(falling_P, amounts.top), anywhere(amounts.random)]
    if len(falling_P):
      for i in range(N_INTERVALS):  # 2 n around where an activation of this size would be, of which the n nearest
        anchor = value_P[0] * (N_INTERVALS - 1 - i) / N_INTERVALS
        middle = np.searchsorted(-value_P, -anchor)
        near = slice(max(0, middle - amounts.each), middle + amounts.each)
        nearest = np.argsort(np.abs(value_P[near] - anchor), kind="stable")[:amounts.each]
        chosen.append(falling_P[near][nearest])
      tokens = self.text.token_N[top]
      chosen.append(self._elsewhere(tokens[tokens >= 0], amounts.elsewhere, half, rng))
    tried = anywhere(4 * amounts.each)
    place = np.minimum(np.searchsorted(row_P, tried), max(len(row_P) - 1, 0))
    silent = tried[row_P[place] != tried] if len(row_P) else tried
    chosen.append(silent[:amounts.each])
    return np.array(list(dict.fromkeys(np.concatenate(chosen).tolist())), np.int64)

  def _elsewhere(self, tokens, n, half, rng):
    """`n` random rows of a half with one of some tokens."""
    if not len(tokens):
      return tokens
    token = tokens[rng.integers(0, len(tokens), n)]
    start, stop = self._starts[half][token], self._starts[half][token + 1]
    return self._by_token[half][start + (rng.random(n) * (stop - start)).astype(np.int64)]

  def examples(self, row_E: np.ndarray, row_P: np.ndarray, value_P: np.ndarray) -> Examples:
    """The windows around some rows, with a feature's activations; windows of the same tokens are there once."""
    text = self.text
    row_EW = row_E[:, None] + np.arange(-SIDE, SIDE + 1)[None]
    inside_EW = (row_EW >= 0) & (row_EW < text.n_rows)
    row_EW = np.where(inside_EW, row_EW, 0)
    inside_EW &= text.context_N[row_EW] == text.context_N[row_E][:, None]
    token_EW = np.where(inside_EW, text.token_N[row_EW], -1).astype(np.int32)
    once = sorted({token_W.tobytes(): e for e, token_W in reversed(list(enumerate(token_EW)))}.values())
    row_EW, inside_EW, token_EW = row_EW[once], inside_EW[once], token_EW[once]
    act_EW = np.zeros(row_EW.shape, np.float32)
    if len(row_P):
      place_EW = np.minimum(np.searchsorted(row_P, row_EW), len(row_P) - 1)
      act_EW = np.where(inside_EW & (row_P[place_EW] == row_EW), value_P[place_EW], 0).astype(np.float32)
    return Examples(np.where(inside_EW, row_EW, -1), token_EW, act_EW, self.token_strings)

  def counted(self, examples: Examples) -> np.ndarray:
    """Places in the flattened windows of the rows that count, each row once, (J,)."""
    row_J, place_J = np.unique(examples.row_EW, return_index=True)
    return place_J[(row_J >= 0) & (self.half_N[row_J] >= 0)]


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


def label(codes: Codes, sampler: Sampler, explainer: Explainer, simulator: Simulator, features: Iterable[int],
          seed: int, n_threads: int = 1, description: str = "labels") -> list[Label]:
  """Labels features, and scores the labels.

  Args:
    codes: the activations on the sampler's text.
    sampler: the text and its halves.
    explainer, simulator: what explains and what predicts.
    features: the numbers of the features.
    seed: of the examples; a feature's do not depend on the others that are asked for.
    n_threads: how many features are worked on at a time, where answers are waited for.
    description: label of the progress bar.
  """
  features = list(features)
  work = lambda i: _labelled(i, *codes.feature(i), sampler, explainer, simulator, seed)
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


def _labelled(feature, row_P, value_P, sampler, explainer, simulator, seed) -> Label:
  """The label of one feature, which fires at `row_P` with the activations `value_P`."""
  rngs = [np.random.default_rng([seed, feature, half]) for half in (CHOOSING, SCORING)]
  falling = sampler.falling(row_P, value_P)
  firings = np.bincount(sampler.half_N[row_P] + 1, minlength=3)[1:]
  top = sampler.text.token_N[sampler.top(falling[0], N_TOP)]
  single = len(top) > 1 and bool((top == top[0]).all())
  nothing = Label(feature, "", float("nan"), float("nan"), single)
  if not firings[CHOOSING]:
    return nothing
  row_E = sampler.draw(row_P, falling, explainer.amounts, CHOOSING, rngs[CHOOSING])
  try:
    explanation = explainer.explain(feature, sampler.examples(row_E, row_P, value_P))
  except Unreadable:
    return dataclasses.replace(nothing, unreadable=True)
  told = dataclasses.replace(nothing, text=explanation.text)
  if firings.min() < LEAST_FIRINGS:
    return told
  scored = sampler.examples(sampler.draw(row_P, falling, SIMULATED, SCORING, rngs[SCORING]), row_P, value_P)
  place_J = sampler.counted(scored)
  try:
    predicted_J = np.asarray(simulator.simulate(explanation, scored.hidden())).reshape(-1)[place_J]
  except Unreadable:
    return dataclasses.replace(told, unreadable=True)
  assert scored.act_EW is not None
  true_J = scored.act_EW.reshape(-1)[place_J]
  return dataclasses.replace(told, score=float(rank_correlations(predicted_J[None], true_J)[0]),
                             pearson=float(correlations(predicted_J[None], true_J)[0]))


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
    {"features", "scored", "unreadable", "score", "pearson", "single_token_share", "score_single_token",
    "score_others"}: scores are medians with their intervals, see `median_interval`; the share is of those that are
    scored.
  """
  scored = [one for one in labels if np.isfinite(one.score)]
  medians = lambda values: median_interval(values, seed)
  return {"features": len(labels), "scored": len(scored), "unreadable": sum(one.unreadable for one in labels),
          "score": medians([one.score for one in scored]), "pearson": medians([one.pearson for one in scored]),
          "single_token_share": sum(one.single_token for one in scored) / len(scored) if scored else None,
          "score_single_token": medians([one.score for one in scored if one.single_token]),
          "score_others": medians([one.score for one in scored if not one.single_token])}
