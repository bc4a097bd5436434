"""Labels: planted features get the planted explanation, halves stay apart, and scores are those of SciPy."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from monojax.analysis import explanations, labels, logit_tests, sampling, scripts
from monojax.analysis.codes import Codes
from monojax.analysis.explanations import Explanation
from monojax.analysis.sampling import CHOOSING, SCORING, Amounts, Examples, Sampler
from monojax.analysis.text import AnalysedText

WORDS = [" the", " of", " and", "ing", " THE", " NASA", "A", " Paris", " river", "1", " 42", ".", ",", "\n", " x1",
         " water", " to", " in", " was", "er", " council", " said"]
STRINGS = ["<|endoftext|>", *WORDS]
VALUES = scripts.bytes_of_tokens(STRINGS, (0,))
DOMAINS = ["news", "novels", "code"]
N, T = 60_000, 40
THE, OF, PARIS, CAPITALS = 1, 2, 8, (5, 6)


@pytest.fixture(scope="module")
def text():
  rng = np.random.default_rng(0)
  token_N = rng.integers(1, len(STRINGS), N).astype(np.int32)
  context_N = (np.arange(N) // T).astype(np.int32)
  return AnalysedText(token_N, context_N, context_N.astype(np.int64), (context_N % 3).astype(np.int32))


def codes_of(features):
  rows = [np.flatnonzero(f_N) for f_N in features]
  return Codes(N, np.concatenate([[0], np.cumsum([len(row_P) for row_P in rows])]),
               np.concatenate(rows).astype(np.int32),
               np.concatenate([f_N[row_P] for f_N, row_P in zip(features, rows, strict=True)]).astype(np.float32))


def planted(text):
  """{what must be in the label: activations}, each with a little noise where it fires."""
  rng = np.random.default_rng(1)
  token_N = text.token_N
  before_N = np.where(np.arange(N) % T == 0, 0, np.roll(token_N, 1))
  noise = lambda: 1 + 0.05 * rng.random(N)
  return {
      ("the token “ Paris”",): (token_N == PARIS) * noise(),
      ("the tokens “ Paris”, “ the”",): ((token_N == PARIS) * 3 + (token_N == THE)) * noise(),
      ("what follows “ of”",): (before_N == OF) * noise(),
      ("“ of the”",): ((token_N == THE) & (before_N == OF)) * noise(),
      ("words in capitals",): np.isin(token_N, CAPITALS) * noise(),
      ("text of code",): (text.domain_N == 2) * noise(),
      ("“ the”", "news"): ((token_N == THE) & (text.domain_N == 0)) * noise(),
      ("of a context",): (np.arange(N) % T < 2) * noise(),
      ("token 2 of a line",): (np.concatenate([[0, 0], token_N[:-2] == 14]) * (np.arange(N) % T > 1)
                              * (before_N != 14)) * noise(),
  }


def test_planted_features_get_the_planted_label_and_random_ones_none(text):
  rng = np.random.default_rng(2)
  found_in = planted(text)
  random = [(rng.random(N) < share) * rng.exponential(size=N) for share in (0.01, 0.05)]
  rare = np.zeros(N)
  rare[rng.choice(N, 25, replace=False)] = 1.0
  dead = np.zeros(N)
  codes = codes_of([*found_in.values(), *random, rare, dead])
  found = labels.label_all(codes, text, STRINGS, VALUES, DOMAINS, range(len(codes.start_F) - 1), seed=0)
  for wanted, one in zip(found_in, found, strict=False):
    assert all(part in one.text for part in wanted), (wanted, one)
    assert one.score > 0.8 and one.pearson > 0.9, one
  n = len(found_in)
  assert all(abs(one.score) < 0.25 for one in found[n:n + 2])
  assert np.isnan(found[n + 2].score) and np.isnan(found[n + 3].score) and found[n + 3].text == ""
  assert [one.single_token for one in found[:5]] == [True, True, False, True, False]
  again = labels.label_all(codes, text, STRINGS, VALUES, DOMAINS, [2], seed=0)
  assert str(again) == str([found[2]])  # whatever else is labelled; a NaN equals nothing


def test_what_happens_in_the_half_that_is_scored_does_not_change_a_label(text):
  """Of a feature that is something else there, only the score changes."""
  half_N = sampling.halves(text, 0)
  features = list(planted(text).values())
  others = [np.where(half_N == CHOOSING, f_N, np.roll(f_N, 3) * 2) for f_N in features]
  found, changed = (labels.label_all(codes_of(of), text, STRINGS, VALUES, DOMAINS, range(len(features)), seed=0)
                    for of in (features, others))
  assert [one.text for one in found] == [one.text for one in changed]
  assert changed[0].score < found[0].score - 0.5


def test_labels_are_those_of_part_of_the_text_where_it_is_long(text):
  codes = codes_of(list(planted(text).values()))
  (found,) = labels.label_all(codes, text, STRINGS, VALUES, DOMAINS, [0], seed=0, n_tokens=N // 4)
  assert found.text == "the token “ Paris”" and found.score > 0.8


class Watched:
  """An explainer and simulator that remember what they have seen, and predict at random."""
  amounts = sampling.SHOWN

  def __init__(self):
    self.shown, self.asked = [], []

  def explain(self, feature, examples):
    self.shown.append(examples)
    return Explanation(f"feature {feature}")

  def simulate(self, explanation, examples):
    assert examples.act_EW is None
    self.asked.append(examples)
    return np.random.default_rng(len(self.asked)).random(examples.row_EW.shape)


def test_what_is_scored_was_never_shown_and_scores_are_scipys(text):
  counts_N = np.arange(N) % T > 0
  text = dataclasses.replace(text, counts_N=counts_N)
  features = [f_N * counts_N for f_N in planted(text).values()]
  codes, watched = codes_of(features), Watched()
  half_N = sampling.halves(text, 0)
  sampler = Sampler(text, half_N, STRINGS)
  found = explanations.label(codes, sampler, watched, watched, range(len(features)), seed=0)
  assert len(watched.shown) == len(watched.asked) == len(features)
  for i, (shown, asked) in enumerate(zip(watched.shown, watched.asked, strict=True)):
    rows = [set(examples.row_EW[examples.row_EW >= 0].tolist()) for examples in (shown, asked)]
    assert not rows[0] & rows[1]
    contexts = [{row // T for row in part} for part in rows]
    assert not contexts[0] & contexts[1]
    f_N = features[i].astype(np.float32)
    np.testing.assert_array_equal(shown.act_EW, np.where(shown.row_EW >= 0, f_N[shown.row_EW], 0))
    assert len({tuple(ids) for ids in asked.token_EW.tolist()}) == len(asked)
    # The score by SciPy, over each row that counts once.
    predicted_EW = np.random.default_rng(i + 1).random(asked.row_EW.shape)
    values = {}
    for row, value in zip(asked.row_EW.reshape(-1).tolist(), predicted_EW.reshape(-1), strict=True):
      if row >= 0 and counts_N[row]:
        values.setdefault(row, value)
    true = [f_N[row] for row in values]
    assert found[i].score == pytest.approx(stats.spearmanr(list(values.values()), true).statistic, abs=1e-9)
    assert found[i].pearson == pytest.approx(np.corrcoef(list(values.values()), true)[0, 1], abs=1e-6)


def test_examples_are_of_every_level_and_of_the_same_tokens_elsewhere(text):
  rng = np.random.default_rng(3)
  f_N = (text.token_N == THE) * (rng.random(N) < 0.5) * rng.random(N)
  codes = codes_of([f_N])
  row_P, value_P = codes.feature(0)
  half_N = sampling.halves(text, 0)
  sampler = Sampler(text, half_N, STRINGS)
  falling = sampler.falling(row_P, value_P)
  here_N = half_N == CHOOSING
  draw = lambda *amounts: sampler.draw(row_P, falling, Amounts(*amounts), CHOOSING, np.random.default_rng(0))[0]
  top = draw(6, 0, 0, 0)
  assert here_N[top].all() and len({row // T for row in top}) == 6
  best = {}
  for row in np.flatnonzero(here_N & (f_N > 0)):
    best[row // T] = max(best.get(row // T, 0), f_N[row])
  np.testing.assert_allclose(f_N[top], sorted(best.values(), reverse=True)[:6], rtol=1e-6)
  elsewhere = set(draw(6, 0, 0, 40).tolist()) - set(top.tolist())
  assert len(elsewhere) > 30 and all(text.token_N[row] == THE for row in elsewhere)
  assert 0.2 < np.mean([f_N[row] > 0 for row in elsewhere]) < 0.8
  levels = np.array(draw(1, 1, 0, 0))
  largest = f_N[here_N].max()
  for i in range(11):
    assert np.abs(f_N[levels] - largest * (10 - i) / 11).min() < 0.02
  assert (f_N[levels] == 0).sum() == 1
  # Weights: 1 at random, otherwise density times the share of firings that are about as strong.
  rows, weights = sampler.draw(row_P, falling, Amounts(1, 1, 3, 0), CHOOSING, np.random.default_rng(0))
  value_P = f_N[here_N & (f_N > 0)]
  for row, weight in zip(rows, weights, strict=True):
    if weight == 1.0:
      continue
    level = min(range(12), key=lambda level: abs(f_N[row] - largest * level / 11))
    near = np.abs(value_P[:, None] - largest * np.arange(12)[None] / 11).argmin(1) == level
    assert weight == pytest.approx(near.sum() / here_N.sum())
  assert (weights == 1).sum() == 4


def test_the_next_best_labels_are_those_of_other_families(text):
  """A feature of one token of one domain: the label has both, the next best are scored on the same held-out text."""
  half_N = sampling.halves(text, 0)
  f_N = (text.token_N == THE) * np.where(text.domain_N == 0, 1.0, 0.2)
  codes, sampler = codes_of([f_N]), Sampler(text, half_N, STRINGS)
  rules = labels.Rules(codes, sampler, VALUES, DOMAINS, 0)
  (found,) = explanations.label(codes, sampler, rules, rules, [0], 0)
  assert 1 <= len(found.others) <= labels.N_OTHERS
  assert all(other and other != found.text for other, _ in found.others)
  assert len({other for other, _ in found.others}) == len(found.others)
  assert all(-1 <= score <= found.score + 0.05 for _, score in found.others)
  row_P, value_P = codes.feature(0)
  falling, rng = sampler.falling(row_P, value_P), np.random.default_rng([0, 0, CHOOSING])
  shown = sampler.examples(*sampler.draw(row_P, falling, rules.amounts, CHOOSING, rng), row_P, value_P)
  told = rules.explain(0, shown)
  used = {one.family for one in (told.rule.first, told.rule.second) if one}
  assert all(other.rule.first.family not in used and other.rule.second is None for other in told.others)
  assert [other.text for other in told.others] == [other for other, _ in found.others]


def test_plausible_tokens_follow_where_the_rule_predicts_much(text):
  """By a loop: the mean prediction before each token, over the half that labels are chosen on."""
  rng = np.random.default_rng(4)
  token_N = text.token_N.copy()
  after = np.flatnonzero(token_N[:-1] == PARIS) + 1
  token_N[after[rng.random(len(after)) < 0.7]] = 13  # a comma
  text = dataclasses.replace(text, token_N=token_N)
  codes, half_N = codes_of([(token_N == PARIS) * 1.0]), sampling.halves(text, 0)
  sampler = Sampler(text, half_N, STRINGS)
  rules = labels.Rules(codes, sampler, VALUES, DOMAINS, 0)
  row_P, value_P = codes.feature(0)
  drawn = sampler.draw(row_P, sampler.falling(row_P, value_P), rules.amounts, CHOOSING, rng)
  explanation = rules.explain(0, sampler.examples(*drawn, row_P, value_P))
  means, everything = {}, []
  for n in range(N - 1):
    if half_N[n] == CHOOSING and n % T != T - 1:
      means.setdefault(int(token_N[n + 1]), []).append(token_N[n] == PARIS)
      everything.append(token_N[n] == PARIS)
  ids = np.arange(1, len(STRINGS))
  found = rules.plausible(explanation, ids, STRINGS[1:])
  assert found.tolist() == [bool(np.mean(means[i]) > np.mean(everything)) for i in ids] and found[12]
  tokens = logit_tests.PutUp(np.array([13, 1, 2, 13]), np.array([True, False, False, False]))
  assert logit_tests.share_right(rules, explanation, tokens, STRINGS) == pytest.approx(0.75)


def test_weighted_ranks_are_those_of_repeated_values():
  rng = np.random.default_rng(0)
  predicted, true = rng.integers(0, 5, 40).astype(float), rng.integers(0, 4, 40).astype(float)
  weights = rng.integers(1, 6, 40)
  expected = stats.spearmanr(np.repeat(predicted, weights), np.repeat(true, weights)).statistic
  assert explanations.weighted_rank_correlation(predicted, true, weights.astype(float)) == pytest.approx(expected)
  assert explanations.weighted_rank_correlation(np.ones(40), true, weights.astype(float)) == 0.0


def test_a_constant_prediction_scores_0_and_intervals_hold_the_median():
  assert explanations.rank_correlations(np.ones((1, 5)), np.arange(5.0)).tolist() == [0.0]
  values = np.random.default_rng(0).normal(0.4, 0.1, 200)
  median, low, high = explanations.median_interval([*values, float("nan")])
  assert median == np.median(values) and low < median < high
  # The interval of a median by its asymptotic standard error, 1.2533 sigma / sqrt(n).
  assert high - low == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / 200**0.5, rel=0.4)
  assert explanations.median_interval([]) is None and explanations.summary([])["score"] is None


def test_tokens_are_quoted_in_one_line():
  assert labels.quoted(" a\n\t") == "“ a\\n\\t”" and labels.quoted("\\") == "“\\”"
  assert len(labels.quoted("x" * 100)) == 42


def test_places_and_lines_by_hand():
  begins_N = np.array([1, 0, 0, 0, 0, 1, 0, 0], bool)
  marks_N = np.array([0, 1, 1, 0, 0, 0, 1, 0], bool)
  assert labels._since(marks_N, begins_N).tolist() == [-1, -1, 0, 0, 1, -1, -1, 0]
  assert labels._bucket(np.array([-1, 0, 1, 2, 3, 4, 7, 8])).tolist() == [-1, 0, 1, 2, 2, 3, 3, 4]
  assert labels._places([0, 2, 3]) == "token 1, tokens 3 to 4, tokens 5 to 8"


def test_windows_end_with_their_context(text):
  sampler = Sampler(text, sampling.halves(text, 0), STRINGS)
  found = sampler.examples(np.array([0, T - 1, T]), np.ones(3), np.zeros(0, np.int32), np.zeros(0, np.float32))
  assert (found.row_EW < 0).sum(1).tolist() == [4, 4, 4] and isinstance(found, Examples)
  assert [len(strings) for strings in found.strings()] == [5, 5, 5] and SCORING == 1
