"""Labels without a language model: rules over tokens, searched for and scored by the protocol of `explanations`.

A rule sorts tokens into categories, such as "the token is X", "it follows X", "it is a number", "it is in the domain
D", and predicts a number for some of these categories and 0 for all others. Of each *family* of categories the best
rule is found, then the best two are combined, as "and" or as "or".

Everything is taken from the half of the text that explanations are chosen on. In most contexts of it, rules are fitted:
a category's number is the feature's mean activation there. In the other contexts the families are compared, by the
score that the label will get, and a rule is cut to as few categories as predict equally well. (Otherwise the family
with the most categories would always win: of a sequence of three tokens that occurs once, the mean is the activation
itself.) The chosen rule is then fitted on the whole half.

Letters: N rows, V vocabulary, P firings, J rows that are predicted, K categories of a rule, S rules, E examples, W
tokens of an example's window.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from monojax.analysis import scripts
from monojax.analysis.codes import Codes
from monojax.analysis.explanations import Explanation, Label, label, rank_correlations
from monojax.analysis.sampling import CHOOSING, Amounts, Examples, Sampler, halves
from monojax.analysis.text import AnalysedText

N_LISTED = 10         # categories of a rule at most
N_OTHERS = 2          # rules of other families that are told beside a label
_SHORTER = (1, 2, 3, 4, 6)  # numbers of categories that are tried in its place
_LEAST_LOSS = 0.01    # of the score, for a shorter rule to be worse
_FITTED = 0.6         # share of the contexts of the half on which rules are fitted before they are compared
_LEAST_SHARE = 0.01   # of what a rule's categories explain, a category must explain so much
_LEAST_LIFT = 2.0     # times the feature's mean over all tokens, a category's mean must be
_LEAST_GAIN = 0.01    # of the score, for two families to be better than one
_LEAST_FIRING = 5     # rows of the examples on which families are compared must have so many firings
_LONGEST = 40         # characters of a token that a label shows
_SAMPLE_TOKENS = 200_000  # from which it is learned of what scripts parts of characters are


@dataclasses.dataclass(frozen=True)
class Family:
  """A way of sorting tokens into categories.

  Attributes:
    id_N: int32, the category of each row of the text; -1 for none.
    words: (categories) -> words for them.
    noun, after: what stands in front of the words where they are by themselves, as in "the tokens X, Y", and where they
      follow a noun, as in "that are X, Y".
    one: what stands there in place of `noun` where there is one category; by default the same.
  """
  id_N: np.ndarray
  words: Callable[[Sequence[int]], str]
  noun: str
  after: str
  one: str = ""

  def named(self, categories: Sequence[int]) -> str:
    """Words for some categories as a noun."""
    return (self.one if self.one and len(categories) == 1 else self.noun) + self.words(categories)

  def qualified(self, categories: Sequence[int]) -> str:
    """Words for them that follow a noun."""
    return self.after + self.words(categories)


class Fitted(typing.NamedTuple):
  """A rule of one family: its categories, rising; what it predicts in each, 0 in all others; how much each explains."""
  family: int
  category_K: np.ndarray
  level_K: np.ndarray
  explained_K: np.ndarray

  def cut(self, n: int) -> "Fitted":
    """The same with the `n` categories alone that explain most."""
    kept = np.sort(np.argsort(-self.explained_K, kind="stable")[:n])
    return Fitted(self.family, self.category_K[kept], self.level_K[kept], self.explained_K[kept])


class Rule(typing.NamedTuple):
  """What a label predicts by: one fitted rule, or two and how they are combined, "and" or "or"."""
  first: Fitted
  how: str = ""
  second: Fitted | None = None

  def cut(self, n: int) -> "Rule":
    """The same with at most `n` categories of each family."""
    return Rule(self.first.cut(n), self.how, self.second and self.second.cut(n))


class Rules:
  """The explainer, and the simulator of its explanations, that need no language model."""

  amounts = Amounts(20, 6, 30, 30)

  def __init__(self, codes: Codes, sampler: Sampler, values: Sequence[bytes], domains: Sequence[str], seed: int):
    """Sorts all rows of the text.

    Args:
      codes: the activations of the features.
      sampler: the text and its halves.
      values: the bytes of each token (`scripts.bytes_of_tokens`).
      domains: names of the domains.
      seed: of which contexts rules are fitted in.
    """
    self._codes, self._sampler = codes, sampler
    text = sampler.text
    n_contexts = int(text.context_N.max(initial=-1)) + 1
    fitted_C = np.random.default_rng([seed, 2]).random(n_contexts) < _FITTED
    in_half_N = sampler.half_N == CHOOSING
    self._fits_N = in_half_N & fitted_C[text.context_N]
    self._in_half_N = in_half_N
    self.families = families_of(text, sampler.token_strings, values, domains)
    count = lambda family, rows_N: np.bincount(family.id_N[rows_N & (family.id_N >= 0)],
                                               minlength=int(family.id_N.max(initial=-1)) + 1)
    # {whether rules are fitted for the comparison: (rows in all, for each family the rows of each category)}
    self._counts = {which: (int(rows_N.sum()), [count(family, rows_N) for family in self.families])
                    for which, rows_N in ((True, self._fits_N), (False, in_half_N))}

  def explain(self, feature: int, examples: Examples) -> Explanation:
    """The best rule for a feature."""
    row_P, value_P = self._codes.feature(feature)
    here_P = self._in_half_N[row_P]
    row_P, value_P = row_P[here_P], value_P[here_P].astype(np.float64)
    fits_P = self._fits_N[row_P]
    assert examples.act_EW is not None
    place_J = self._sampler.counted(examples)
    row_J, true_J = examples.row_EW.reshape(-1)[place_J], examples.act_EW.reshape(-1)[place_J]
    apart_J = ~self._fits_N[row_J]
    if (true_J[apart_J] > 0).sum() >= _LEAST_FIRING and fits_P.sum() >= _LEAST_FIRING:
      chosen = self._chosen(row_P[fits_P], value_P[fits_P], True, row_J[apart_J], true_J[apart_J])
    else:  # too rare a feature for two parts
      chosen = self._chosen(row_P, value_P, False, row_J, true_J)

    def fitted_again(rule: Rule, n: int) -> Explanation:
      first = self._fit(rule.first.family, row_P, value_P, False).cut(n)
      second = self._fit(rule.second.family, row_P, value_P, False).cut(n) if rule.second else None
      rule = Rule(first, rule.how, second) if second and len(second.category_K) else Rule(first)
      return Explanation(self._words(rule), rule)
    best, *others = (fitted_again(rule, n) for rule, n in chosen)
    return dataclasses.replace(best, others=tuple(other for other in others if other.text))

  def simulate(self, explanation: Explanation, examples: Examples) -> np.ndarray:
    """What the rule of an explanation predicts."""
    return self._combined(explanation.rule, examples.row_EW.reshape(-1)).reshape(examples.row_EW.shape)

  def _combined(self, rule: Rule, row_J: np.ndarray) -> np.ndarray:
    """What a rule predicts on some rows, 0 where the row is -1."""
    predicted_J = self._predicted(rule.first, row_J)
    if rule.second is None:
      return predicted_J
    return _COMBINED[rule.how](predicted_J, self._predicted(rule.second, row_J), rule.second.level_K.max())

  def plausible(self, explanation: Explanation, token_K: np.ndarray, strings: Sequence[str]) -> np.ndarray:
    """Tokens that follow where the rule predicts more than on average; see `logit_tests.Judge`."""
    rows, next_N = self._followed
    predicted_J = self._combined(explanation.rule, rows)
    n_tokens = len(self._sampler.token_strings)
    sum_V, n_V = np.bincount(next_N[rows], predicted_J, n_tokens), np.bincount(next_N[rows], minlength=n_tokens)
    return sum_V[token_K] > predicted_J.mean() * n_V[token_K]

  @functools.cached_property
  def _followed(self) -> tuple[np.ndarray, np.ndarray]:
    """(the rows of the half with a token after them, the token after each row of the text)."""
    text = self._sampler.text
    next_N = np.append(text.token_N[1:], -1)
    same_N = np.append(text.context_N[1:] == text.context_N[:-1], False)
    return np.flatnonzero(self._in_half_N & same_N & (next_N >= 0)), next_N

  def _fit(self, family: int, row_P: np.ndarray, value_P: np.ndarray, for_comparison: bool) -> Fitted:
    """The best rule of a family, of at most `N_LISTED` categories; with sums s over n rows they explain about s^2 / n.

    Means are s / (n + 1), as if each category had one more row on which the feature does not fire.
    """
    n_rows, counts = self._counts[for_comparison]
    id_P = self.families[family].id_N[row_P]
    known_P = id_P >= 0
    category_K, place_P = np.unique(id_P[known_P], return_inverse=True)
    sum_K = np.bincount(place_P, value_P[known_P], len(category_K))
    level_K = sum_K / (counts[family][category_K] + 1)
    explained_K = np.where(level_K > _LEAST_LIFT * value_P.sum() / max(n_rows, 1), sum_K * level_K, 0)
    listed = np.argsort(-explained_K, kind="stable")[:N_LISTED]
    listed = np.sort(listed[explained_K[listed] > _LEAST_SHARE * explained_K.sum()])
    return Fitted(family, category_K[listed], level_K[listed], explained_K[listed])

  def _predicted(self, fitted: Fitted, row_J: np.ndarray) -> np.ndarray:
    """What a fitted rule predicts on some rows, 0 where the row is -1."""
    if not len(fitted.category_K):
      return np.zeros(len(row_J))
    id_J = np.where(row_J >= 0, self.families[fitted.family].id_N[row_J], -1)
    place_J = np.minimum(np.searchsorted(fitted.category_K, id_J), len(fitted.category_K) - 1)
    return np.where(fitted.category_K[place_J] == id_J, fitted.level_K[place_J], 0.0)

  def _chosen(self, row_P, value_P, for_comparison, row_J, true_J) -> list[tuple[Rule, int]]:
    """(the rule that predicts the true activations of some rows best, how many categories of each family it needs), and
    the same for the best rules of other families."""
    found = []
    for rule, best in self._best(row_P, value_P, for_comparison, row_J, true_J):
      score_S = rank_correlations(np.stack([self._combined(rule.cut(n), row_J) for n in _SHORTER]), true_J)
      enough = np.flatnonzero(score_S > best - _LEAST_LOSS)
      found.append((rule, _SHORTER[enough[0]] if len(enough) else N_LISTED))
    return found

  def _best(self, row_P, value_P, for_comparison, row_J, true_J) -> list[tuple[Rule, float]]:
    """(the rule that predicts some rows best, the simplest of equally good ones; its score there), and then the rules
    of families that it does not have, the best first."""
    fitted = [self._fit(family, row_P, value_P, for_comparison) for family in range(len(self.families))]
    predicted_SJ = np.stack([self._predicted(one, row_J) for one in fitted])
    score_S = rank_correlations(predicted_SJ, true_J)
    best = int(score_S.argmax())
    found = Rule(fitted[best]), float(score_S[best])
    pairs = [Rule(fitted[best], how, fitted[other]) for other in range(len(fitted))
             if other != best and predicted_SJ[other].any() for how in _COMBINED]
    if pairs:
      score = rank_correlations(np.stack([self._combined(rule, row_J) for rule in pairs]), true_J)
      at = int(score.argmax())
      if score[at] >= score_S[best] + _LEAST_GAIN:
        found = pairs[at], float(score[at])
    in_it = {one.family for one in (found[0].first, found[0].second) if one}
    others = [i for i in np.argsort(-score_S, kind="stable").tolist() if i not in in_it and score_S[i] > 0]
    return [found, *((Rule(fitted[i]), float(score_S[i])) for i in others[:N_OTHERS])]

  def _words(self, rule: Rule) -> str:
    """A rule in words: its categories, those with the largest activations first."""
    told = lambda fitted, form: form(fitted.category_K[np.argsort(-fitted.level_K, kind="stable")].tolist())
    if not len(rule.first.category_K):
      return ""
    first = told(rule.first, self.families[rule.first.family].named)
    if rule.second is None:
      return first
    second = self.families[rule.second.family]
    return (f"{first}; or {told(rule.second, second.named)}" if rule.how == "or" else
            f"{first}, {told(rule.second, second.qualified)}")


# How two predictions a and b become one, where the largest of the second is known: "and" is 0 where one of them is.
_COMBINED: Mapping[str, Callable[..., np.ndarray]] = {
    "and": lambda a_J, b_J, largest: a_J * b_J / largest,
    "or": lambda a_J, b_J, largest: np.maximum(a_J, b_J)}


def label_all(codes: Codes, text: AnalysedText, token_strings: Sequence[str], values: Sequence[bytes],
              domains: Sequence[str], features: Sequence[int], seed: int, n_tokens: int = 0) -> list[Label]:
  """Labels features by rules.

  Args:
    codes: their activations on the text.
    text: the text.
    token_strings, values: a string and the bytes of each token.
    domains: names of the domains.
    features: the numbers of the features.
    seed: of the halves and the examples.
    n_tokens: about how many tokens are used, in random contexts; 0 = all.
  """
  if n_tokens and n_tokens < text.n_rows:
    n_contexts = int(text.context_N.max()) + 1
    chosen_C = np.random.default_rng([seed, 3]).random(n_contexts) < n_tokens / text.n_rows
    taken_N = chosen_C[text.context_N]
    counts_N = None if text.counts_N is None else text.counts_N[taken_N]
    codes, text = codes.on_rows(taken_N), AnalysedText(text.token_N[taken_N], text.context_N[taken_N],
                                                       text.document_N[taken_N], text.domain_N[taken_N], counts_N)
  sampler = Sampler(text, halves(text, seed), token_strings)
  rules = Rules(codes, sampler, values, domains, seed)
  return label(codes, sampler, rules, rules, features, seed)


def families_of(text: AnalysedText, token_strings: Sequence[str], values: Sequence[bytes],
                domains: Sequence[str]) -> list[Family]:
  """All families, the simplest first."""
  token_N, values = text.token_N, [*values, b""]  # the last value is of tokens that are not known, whose number is -1
  begins_N = np.diff(text.context_N, prepend=-1) != 0
  before_N = _previous(token_N, begins_N)
  sample_N = text.sample(_SAMPLE_TOKENS)
  share_VL = scripts.script_shares(values, token_N[sample_N], text.context_N[sample_N])
  kind_V, kind_names = scripts.kinds_of(values, share_VL)
  kind_N = np.where(token_N >= 0, kind_V[token_N], -1)
  kind_before_N = _previous(kind_N, begins_N)
  breaks_V = np.array([b"\n" in value or b"\r" in value for value in values], bool)
  in_line_N = _since(np.where(token_N >= 0, breaks_V[token_N], False), begins_N)
  in_context_N = np.arange(text.n_rows) - np.maximum.accumulate(np.where(begins_N, np.arange(text.n_rows), 0))
  kinds_N, row_of_kinds_K = _together(kind_before_N, kind_N)
  pair_N, row_of_pair_K = _together(before_N, token_N)
  triple_N, row_of_triple_K = _together(_previous(pair_N, begins_N), token_N)

  def tokens(ids):
    return ", ".join(quoted(token_strings[i]) for i in ids)

  def kinds(ids):
    return ", ".join(kind_names[i] for i in ids)

  def two_kinds(ids):
    return ", ".join(f"{kind_names[kind_N[row]]} after {kind_names[kind_before_N[row]]}" for row in row_of_kinds_K[ids])

  def ends(row_K, n):
    return lambda ids: ", ".join(quoted(_joined(token_N[row - n + 1:row + 1], values, token_strings))
                                 for row in row_K[ids])
  found = [Family(token_N, tokens, "the tokens ", "that are ", "the token "), Family(kind_N, kinds, "", "that are "),
           Family(before_N, tokens, "what follows ", "after "), Family(kind_before_N, kinds, "what follows ", "after "),
           Family(kinds_N, two_kinds, "", "that are "),
           Family(pair_N, ends(row_of_pair_K, 2), "the end of ", "at the end of "),
           Family(triple_N, ends(row_of_triple_K, 3), "the end of ", "at the end of "),
           Family(_bucket(in_line_N), lambda ids: f"{_places(ids)} of a line", "", "at "),
           Family(_bucket(in_context_N), lambda ids: f"{_places(ids)} of a context", "", "at ")]
  if domains:
    found.insert(2, Family(text.domain_N, lambda ids: f"text of {', '.join(domains[i] for i in ids)}", "", "in "))
  return found


def _previous(id_N: np.ndarray, begins_N: np.ndarray) -> np.ndarray:
  """The id of the row before in the same context, -1 where there is none."""
  return np.where(begins_N, -1, np.roll(id_N, 1)).astype(np.int32)


def _together(a_N: np.ndarray, b_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(id_N, a number for each pair of ids, -1 where one is -1; row_K, for each such number a row that has it)."""
  known_N = (a_N >= 0) & (b_N >= 0)
  width = int(b_N.max(initial=0)) + 1
  pairs, row_K, id_N = np.unique(np.where(known_N, a_N.astype(np.int64) * width + b_N, -1), return_index=True,
                                 return_inverse=True)
  n_unknown = int(len(pairs) > 0 and pairs[0] < 0)
  return (id_N.reshape(-1) - n_unknown).astype(np.int32), row_K[n_unknown:]


def _joined(ids: np.ndarray, values: Sequence[bytes], token_strings: Sequence[str]) -> str:
  """The text of some tokens side by side, in which characters that they share are whole."""
  parts = [values[i] or token_strings[i].encode(errors="surrogatepass") for i in ids.tolist()]
  return b"".join(parts).decode(errors="backslashreplace")


def _since(marks_N: np.ndarray, begins_N: np.ndarray) -> np.ndarray:
  """How many rows there are between each row and the last marked one before it in its context; -1 where there is none.

  For instance marks at rows 1 and 2 of a context of 5 give -1, -1, 0, 0, 1.
  """
  row_N = np.arange(len(marks_N))
  last_N = np.maximum.accumulate(np.where(marks_N, row_N, -1))
  last_N = np.concatenate([[-1], last_N[:-1]]) if len(last_N) else last_N
  begin_N = np.maximum.accumulate(np.where(begins_N, row_N, 0))
  return np.where(last_N >= begin_N, row_N - last_N - 1, -1)


def _bucket(place_N: np.ndarray) -> np.ndarray:
  """0 for place 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7, and so on; -1 stays."""
  return np.where(place_N < 0, -1, np.ceil(np.log2(np.maximum(place_N, 0) + 1))).astype(np.int32)


def _places(ids: Sequence[int]) -> str:
  """The places that buckets stand for, counted from 1: "token 1, tokens 5 to 8"."""
  return ", ".join(f"token {i + 1}" if i < 2 else f"tokens {2**(i - 1) + 1} to {2**i}" for i in ids)


def quoted(text: str) -> str:
  r"""A token as a label shows it: in quotation marks, line breaks and the like as \n, at most `_LONGEST` characters."""
  shown = text.replace("\\", "\\\\") if any(not c.isprintable() for c in text) else text
  shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
  return f"“{shown if len(shown) <= _LONGEST else shown[:_LONGEST - 1] + '…'}”"
