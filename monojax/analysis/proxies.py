"""Proxies: how likely a text is of a script or format, and which feature, and which neuron, follows each of them best.

A proxy is a number at every token. That of a hypothesis h, such as "this is base64", is the log-likelihood ratio of
Towards Monosemanticity: log P(s | h) / P(s), where s is the text that ends with the token, from where in the context
the ratio is largest. Tokens count as independent, so that the ratio of a text is the sum of its tokens' ratios r, and
the largest of all sums that end at token t is found by Kadane's recursion

  score[t] = r[t] + max(0, score[t - 1]),   from 0 at the beginning of each context.

For instance tokens with the ratios -9, 2, -1, 3 have the scores -9, 2, 1, 4. P(token) is the token's share of the
analysed text. For the hypotheses:

* character classes (base64, DNA, hexadecimal, binary): P(token | h) is a product over characters, see
  `scripts.class_likelihoods`. DNA is scored on at least two tokens, score[t] = r[t] + score[t - 1] with no choice of
  the last two, and becomes 1 where that is above 0, and 0 elsewhere.
* scripts: by Bayes, P(token | h) / P(token) = P(h | token) / P(h), where P(h | token) is 1 or `scripts.IMPOSSIBLE`, or
  for tokens that are parts of characters the share of their occurrences (`scripts.script_shares`), and P(h) its mean
  over the text. Scores below 0 become 0.
* domains: 1 in the domain's documents, and 0 elsewhere.

Letters: L proxies, N tokens of the text, R those of a batch, V vocabulary, F features, M neurons, P firings, X bins.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from monojax.analysis import scripts
from monojax.analysis.codes import Codes
from monojax.analysis.text import AnalysedText
from monojax.linear import product

N_BINS = 10
_LEAST_TOKENS = 10     # of a script or domain, for a proxy of it to be asked for
_SAMPLE_TOKENS = 200_000
_ROWS_AT_ONCE = 1 << 15
_EQUAL = 1e-9          # numbers whose variance is below this part of their mean square do not vary


@dataclasses.dataclass(frozen=True)
class Proxies:
  """What is asked for in a text.

  Attributes:
    names: of the L proxies: classes first, then scripts, then domains.
    kinds: "characters", "script" or "domain", for each.
    ratio_VL: the ratio r of every token, for those proxies that are no domains.
    domain_ids: the numbers of the domains of the others.
    left_out: names of scripts and domains of which the text has (nearly) nothing.
  """
  names: tuple[str, ...]
  kinds: tuple[str, ...]
  ratio_VL: np.ndarray
  domain_ids: tuple[int, ...]
  left_out: tuple[str, ...]

  def scores(self, text: AnalysedText, start: int, stop: int) -> np.ndarray:
    """The values of all proxies at the rows `start` to `stop - 1` of a text, (R, L) float64.

    Row `start` must begin a context.
    """
    context_R = text.context_N[start:stop]
    r_RL = self.ratio_VL[text.token_N[start:stop]].astype(np.float64)
    score_RL, paired_RL = largest_sums(r_RL, context_R)
    is_domain_RL = np.reshape(text.domain_N[start:stop], (-1, 1)) == np.array(self.domain_ids, np.int64)[None]
    for i, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)):
      if kind == "script":
        score_RL[:, i] = np.maximum(score_RL[:, i], 0)
      elif name == "DNA":
        score_RL[:, i] = paired_RL[:, i] > 0
    return np.concatenate([score_RL, is_domain_RL], axis=1)


def largest_sums(r_RL: np.ndarray, context_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(score_RL, the same over texts of at least two tokens), see the module; the latter is -inf where there is one.

  With the sums S[t] = r[0] + ... + r[t], score[t] is S[t] minus the least of S[k - 1] over the beginnings k <= t of the
  context. Contexts are kept apart by lowering each by more than all sums differ.
  """
  upto_RL = np.cumsum(r_RL, axis=0)
  before_RL = upto_RL - r_RL
  begins_R = np.diff(context_R, prepend=context_R[0] - 1) != 0
  apart_R1 = np.cumsum(begins_R)[:, None] * (np.ptp(before_RL) + 1.0)
  least_RL = np.minimum.accumulate(before_RL - apart_R1, axis=0) + apart_R1
  paired_RL = np.full_like(upto_RL, -np.inf)
  paired_RL[1:] = upto_RL[1:] - least_RL[:-1]
  paired_RL[begins_R] = -np.inf
  return upto_RL - least_RL, paired_RL


def make(text: AnalysedText, values: Sequence[bytes], domains: Sequence[str]) -> Proxies:
  """The proxies that a text can be asked for.

  Args:
    text: the text, or a sample of it: shares of tokens and scripts are taken from there.
    values: the bytes of each token (`scripts.bytes_of_tokens`).
    domains: names of the domains.
  """
  values = [*values, b""]  # the last one stands for tokens that are not known, whose number is -1
  counted_N = text.counted_N[text.token_N[text.counted_N] >= 0]
  n_V = np.bincount(text.token_N[counted_N], minlength=len(values))
  p_V = np.maximum(n_V, 1) / max(n_V.sum(), 1)
  sample = slice(0, _SAMPLE_TOKENS)
  share_VL = scripts.script_shares(values, text.token_N[sample], text.context_N[sample])
  n_L = n_V @ share_VL
  with_scripts = np.flatnonzero(n_L >= _LEAST_TOKENS)
  script_VL = np.log(np.maximum(share_VL[:, with_scripts], scripts.IMPOSSIBLE)) - np.log(
      n_L[with_scripts] / max(n_V.sum(), 1))
  class_VL = scripts.class_likelihoods(values) - np.log(p_V)[:, None]
  n_D = np.bincount(text.domain_N[counted_N][text.domain_N[counted_N] >= 0], minlength=len(domains))
  with_domains = [i for i in range(len(domains)) if n_D[i] >= _LEAST_TOKENS]
  script_names = list(scripts.SCRIPTS)
  names = (*scripts.CLASSES, *(script_names[i] for i in with_scripts), *(domains[i] for i in with_domains))
  kinds = ("characters",) * len(scripts.CLASSES) + ("script",) * len(with_scripts) + ("domain",) * len(with_domains)
  left_out = (*(name for i, name in enumerate(script_names) if i not in with_scripts),
              *(name for i, name in enumerate(domains) if i not in with_domains))
  return Proxies(names, kinds, np.concatenate([class_VL, script_VL], axis=1).astype(np.float32), tuple(with_domains),
                 left_out)


def whole_contexts(text: AnalysedText, n_rows: int = _ROWS_AT_ONCE) -> list[tuple[int, int]]:
  """(start, stop) of parts of a text that hold whole contexts, about `n_rows` rows each."""
  begins = np.flatnonzero(np.diff(text.context_N, prepend=-1))
  edges = [0]
  while edges[-1] < text.n_rows:
    after = np.searchsorted(begins, edges[-1] + n_rows)
    edges.append(int(begins[after]) if after < len(begins) else text.n_rows)
  return list(zip(edges[:-1], edges[1:], strict=True))


class ProxySums:
  """Sums over a text that give the correlation of every feature and every neuron with every proxy, batch by batch.

  Memory: 24 bytes for each feature and proxy, 8 for each neuron and proxy.
  """

  def __init__(self, n_features: int, n_neurons: int, n_proxies: int):
    self.n_rows = 0
    shape = (n_features, n_proxies)
    self.sum_F, self.square_F, self.fires_F = (np.zeros(n_features) for _ in range(3))
    self.product_FL, self.above_FL, self.fires_FL = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    self.sum_L, self.square_L, self.above_L = (np.zeros(n_proxies) for _ in range(3))
    self.sum_M, self.square_M = np.zeros(n_neurons), np.zeros(n_neurons)
    self.product_ML = np.zeros((n_neurons, n_proxies))
    self._near: tuple[np.ndarray, np.ndarray] | None = None

  def add(self, score_RL: np.ndarray, row_P: np.ndarray, feature_P: np.ndarray, value_P: np.ndarray,
          x_RM: jax.Array | np.ndarray) -> None:
    """Adds a batch.

    Args:
      score_RL: the proxies.
      row_P, feature_P, value_P: the rows, numbers and activations of the features that fire.
      x_RM: the neurons. Rows of nothing but zeros do not count: `make_encode` writes them where a position does not.
    """
    if self._near is None:  # what is subtracted, so that float32 holds the digits of neurons that vary little
      x_RM = np.asarray(x_RM, np.float32)
      self._near = x_RM.mean(0), score_RL.mean(0)
    of_neurons = _neuron_sums(x_RM, score_RL.astype(np.float32), self._near[0], self._near[1].astype(np.float32))
    counts_R1, *sums = (np.asarray(part) for part in jax.device_get(of_neurons))
    n_counted = int(counts_R1.sum())
    self.sum_M += sums[0]
    self.square_M += sums[1]
    self.product_ML += sums[2].T
    score_RL = np.where(counts_R1, score_RL, 0)
    above_RL = (score_RL > 0).astype(np.float64)
    n_features, n_proxies = self.product_FL.shape
    fires_FR = sparse.csr_matrix((np.ones(len(value_P)), (feature_P, row_P)), shape=(n_features, len(x_RM)))
    active_FR = sparse.csr_matrix((value_P.astype(np.float64), (feature_P, row_P)), shape=fires_FR.shape)
    both_FJ = active_FR @ np.concatenate([score_RL, above_RL], axis=1)
    self.product_FL += both_FJ[:, :n_proxies]
    self.above_FL += both_FJ[:, n_proxies:]
    self.fires_FL += fires_FR @ above_RL
    self.sum_F += np.bincount(feature_P, value_P, n_features)
    self.square_F += np.bincount(feature_P, np.square(value_P, dtype=np.float64), n_features)
    self.fires_F += np.bincount(feature_P, minlength=n_features)
    self.n_rows += n_counted
    self.sum_L += score_RL.sum(0)
    self.square_L += np.square(score_RL).sum(0)
    self.above_L += above_RL.sum(0)

  def of_features(self, above: bool = False) -> np.ndarray:
    """Pearson's correlation of each feature with each proxy, (F, L), NaN where one of the two does not vary.

    Args:
      above: whether the proxies are only asked whether they are above 0.
    """
    product_FL = self.above_FL if above else self.product_FL
    sums = (self.above_L, self.above_L) if above else (self.sum_L, self.square_L)
    return _correlation(product_FL, (self.sum_F, self.square_F), sums, self.n_rows)

  def of_neurons(self) -> np.ndarray:
    """Pearson's correlation of each neuron with each proxy, (M, L), NaN where one of the two does not vary."""
    near_L = np.zeros(len(self.sum_L)) if self._near is None else self._near[1]
    apart_L = self.sum_L - self.n_rows * near_L
    square_L = self.square_L - 2 * near_L * self.sum_L + self.n_rows * near_L**2
    return _correlation(self.product_ML, (self.sum_M, self.square_M), (apart_L, square_L), self.n_rows)


@jax.jit
def _neuron_sums(x_RM, score_RL, near_M, near_L):
  """(which rows count; sums and sums of squares of neurons minus `near_M`; their products with scores minus `near_L`).

  XLA's CPU products read a transposed operand slowly, so that it is the smaller one.
  """
  counts_R1 = (x_RM != 0).any(1, keepdims=True)
  apart_RM = jnp.where(counts_R1, x_RM - near_M[None], 0)
  apart_RL = jnp.where(counts_R1, score_RL - near_L[None], 0)
  return counts_R1, apart_RM.sum(0), jnp.square(apart_RM).sum(0), product(apart_RL.T, apart_RM, jnp.float32)


def _correlation(product_JL, sums_J, sums_L, n_rows):
  """Pearson's correlations from sums of products, and from sums and sums of squares."""
  n_rows = max(n_rows, 1)
  moments = []
  for total, square in (sums_J, sums_L):
    mean, mean_square = total / n_rows, square / n_rows
    variance = mean_square - mean**2
    moments.append((mean, np.sqrt(np.where(variance > _EQUAL * mean_square, variance, np.nan))))
  (mean_J, deviation_J), (mean_L, deviation_L) = moments
  return (product_JL / n_rows - mean_J[:, None] * mean_L[None]) / deviation_J[:, None] / deviation_L[None]


class Meter:
  """Measures proxies while the activations of a text are collected: `add` is a `codes.Watch`.

  Attributes:
    proxies: what is asked for.
    sums: over the batches so far.
  """

  def __init__(self, text: AnalysedText, values: Sequence[bytes], domains: Sequence[str], n_features: int,
               n_neurons: int, rank_N: np.ndarray | None = None, proxies: Proxies | None = None):
    """Prepares the proxies.

    Args:
      text: the text whose activations come.
      values: the bytes of each token (`scripts.bytes_of_tokens`).
      domains: names of the domains.
      n_features, n_neurons: how many there are.
      rank_N: the row of the text that each row is of as they come; by default they come in order, in whole contexts.
      proxies: those that are asked for; by default all that the text has something of.
    """
    self.proxies = proxies or make(text, values, domains)
    self.sums = ProxySums(n_features, n_neurons, len(self.proxies.names))
    self._text, self._start, self._score_NL = text, 0, None
    if rank_N is not None:
      parts = [self.proxies.scores(text, *part).astype(np.float32) for part in whole_contexts(text)]
      self._score_NL = np.concatenate(parts)[rank_N]

  def add(self, row_P: np.ndarray, feature_P: np.ndarray, value_P: np.ndarray, x_RM: typing.Any) -> None:
    """Adds the next batch; see `ProxySums.add`."""
    start, stop = self._start, self._start + len(x_RM)
    self._start = stop
    score_RL = (self.proxies.scores(self._text, start, stop) if self._score_NL is None else
                self._score_NL[start:stop].astype(np.float64))
    self.sums.add(score_RL, row_P, feature_P, value_P, x_RM)

  def rows(self, codes: Codes) -> list[dict]:
    """The rows of `rows_of`, with specificity by the activations of all features on the whole text."""
    return rows_of(self.proxies, self.sums, lambda features: (columns_of(codes, features), self._text))


def rows_of(proxies: Proxies, sums: ProxySums, firings: typing.Callable[[list[int]], tuple[Codes, AnalysedText]],
            ) -> list[dict]:
  """A row for each proxy with the best feature and the best neuron, by Pearson's correlation.

  Args:
    proxies: what was asked for.
    sums: over the text.
    firings: (features) -> (activations of these, a text that they are of), from which specificity is taken.

  Returns:
    A list of {"proxy"; "kind"; "tokens", where it is above 0, and their "share"; "feature", the one that correlates
    best, and "pearson"; "pearson_above_0", with whether the proxy is above 0; "neuron", of the largest correlation by
    size, and "neuron_pearson"; "specificity", the share of the tokens where the feature fires on which the proxy is
    above 0, and "weighted_specificity", the same weighted by activation; "recall", the share of the tokens where the
    proxy is above 0 on which the feature fires; "bins", see `by_activation`}. Proxies that are above 0 nowhere, or that
    no feature varies with, are left out.
  """
  r_FL, above_FL, r_ML = sums.of_features(), sums.of_features(above=True), sums.of_neurons()
  asked = [i for i in range(len(proxies.names)) if sums.above_L[i] > 0 and np.isfinite(r_FL[:, i]).any()]
  best = [int(np.nanargmax(r_FL[:, i])) for i in asked]
  rows = []
  for i, f in zip(asked, best, strict=True):
    neuron = int(np.nanargmax(np.abs(r_ML[:, i]))) if np.isfinite(r_ML[:, i]).any() else None
    rows.append({
        "proxy": proxies.names[i], "kind": proxies.kinds[i], "tokens": int(sums.above_L[i]),
        "share": float(sums.above_L[i] / sums.n_rows), "feature": f, "pearson": float(r_FL[f, i]),
        "pearson_above_0": float(above_FL[f, i]) if np.isfinite(above_FL[f, i]) else None,
        "neuron": neuron, "neuron_pearson": None if neuron is None else float(r_ML[neuron, i]),
        "specificity": float(sums.fires_FL[f, i] / sums.fires_F[f]),
        "weighted_specificity": float(sums.above_FL[f, i] / sums.sum_F[f]),
        "recall": float(sums.fires_FL[f, i] / sums.above_L[i])})
  if rows:
    codes, text = firings(best)
    for row, bins in zip(rows, by_activation(proxies, asked, codes, text), strict=True):
      row["bins"] = bins
  return rows


def by_activation(proxies: Proxies, asked: Sequence[int], codes: Codes, text: AnalysedText) -> list[list[dict]]:
  """Specificity by activation value: for each pair of a proxy and a feature a list of bins of the feature's activation.

  The `N_BINS` bins are equally wide, from 0 to the feature's largest activation: {"to", where the bin ends; "tokens";
  "share" of these on which the proxy is above 0, None where there are none; "mass", the bin's part of the sum of all
  activations}. Mass is what the paper's expected-value plots show.

  Args:
    proxies: all of them.
    asked: the numbers of those that are asked for.
    codes: the activations of as many features, one for each.
    text: what the activations are of.
  """
  above: list[list[np.ndarray]] = [[] for _ in asked]
  for start, stop in whole_contexts(text):
    score_RL = proxies.scores(text, start, stop)
    for j, i in enumerate(asked):
      row_P, _ = codes.feature(j)
      here = row_P[np.searchsorted(row_P, start):np.searchsorted(row_P, stop)]
      above[j].append(score_RL[here - start, i] > 0)
  found = []
  for j in range(len(asked)):
    value_P, above_P = codes.feature(j)[1].astype(np.float64), np.concatenate(above[j])
    largest = value_P.max(initial=0.0)
    bin_P = np.minimum((value_P / max(largest, 1e-30) * N_BINS).astype(int), N_BINS - 1)
    n_X, in_X, mass_X = (np.bincount(bin_P, weight_P, N_BINS) for weight_P in (None, above_P, value_P))
    found.append([{"to": float(largest * (x + 1) / N_BINS), "tokens": int(n_X[x]),
                   "share": float(in_X[x] / n_X[x]) if n_X[x] else None,
                   "mass": float(mass_X[x] / max(value_P.sum(), 1e-30))} for x in range(N_BINS)])
  return found


def columns_of(codes: Codes, features: Sequence[int]) -> Codes:
  """The activations of some features, numbered in the order that is given; one may be named twice."""
  parts = [codes.feature(i) for i in features]
  start_J = np.concatenate([[0], np.cumsum([len(rows) for rows, _ in parts])]).astype(np.int64)
  return Codes(codes.n_rows, start_J, np.concatenate([rows for rows, _ in parts]),
               np.concatenate([values for _, values in parts]))


def lines(rows: Sequence[Mapping], left_out: Sequence[str] = ()) -> list[str]:
  """The rows as a table to be printed, and what was left out."""
  if not rows:
    return ["no proxies: the text has no token of a script, a format or a domain that is known"]
  width = max(len("domain: ") + len(row["proxy"]) for row in rows)
  found = [f"{'proxy':<{width}} {'share':>8} {'feature':>8} {'Pearson':>8} {'specific':>9} {'top bin':>8} "
           f"{'recall':>7} {'neuron':>7} {'Pearson':>8}"]
  for row in rows:
    name = f"domain: {row['proxy']}" if row["kind"] == "domain" else row["proxy"]
    top = next((bin["share"] for bin in reversed(row["bins"]) if bin["share"] is not None), None)
    neuron = "-" if row["neuron"] is None else row["neuron"]
    found.append(f"{name:<{width}} {row['share']:>8.3%} {row['feature']:>8} {row['pearson']:>8.3f} "
                 f"{row['specificity']:>9.1%} {_percent(top):>8} {row['recall']:>7.1%} {neuron:>7} "
                 f"{'-' if row['neuron_pearson'] is None else format(row['neuron_pearson'], '.3f'):>8}")
  if left_out:
    found.append(f"left out, since the text has fewer than {_LEAST_TOKENS} tokens of them: {', '.join(left_out)}")
  return found


def _percent(share: float | None) -> str:
  return "-" if share is None else f"{share:.1%}"
