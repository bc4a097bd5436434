"""Which feature, and which neuron, follows each proxy best, and how specific the feature is to it.

`monojax.analysis.proxies` has the proxies themselves.

Letters: L proxies, N tokens of the text, R those of a batch, F features, M neurons, P firings, J selected features, X
bins.
"""

import typing
from collections.abc import Mapping, Sequence

import numpy as np

from monojax.analysis.codes import Codes
from monojax.analysis.proxies import LEAST_TOKENS, Proxies, ProxySums, correlation, make, whole_contexts
from monojax.analysis.text import AnalysedText

N_BINS = 10
_SPECIFIC = 0.5  # a feature is specific to a proxy if at least this share of its activation is where that is above 0


class Meter:
  """Measures proxies while the activations of a text are collected: `add` is a `codes.Watch`.

  Attributes:
    proxies: what is asked for.
    sums: over the batches so far.
  """
  STATE = ("_start",)

  def __init__(self, text: AnalysedText, values: Sequence[bytes], domains: Sequence[str], n_features: int,
               n_neurons: int, rank_N: np.ndarray | None = None, proxies: Proxies | None = None,
               every: bool = False):
    """Prepares the proxies.

    Args:
      text: the text whose activations come.
      values: the bytes of each token (`scripts.bytes_of_tokens`).
      domains: names of the domains.
      n_features, n_neurons: how many there are.
      rank_N: the row of the text that each row is of as they come; by default they come in order, in whole contexts.
      proxies: those that are asked for; by default all that the text has something of.
      every: whether all rows count (`rows_that_count`).
    """
    self.proxies = proxies or make(text, values, domains)
    self.sums = ProxySums(n_features, n_neurons, len(self.proxies.names), every)
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
    """The rows of `rows_of`, specificity by the activations of all features on the whole text, and `together`."""
    rows = rows_of(self.proxies, self.sums, lambda features: (columns_of(codes, features), self._text))
    found = together(self.proxies, self.sums, codes, self._text)
    return [row if row["kind"] == "domain" else {**row, **found[row["proxy"]]} for row in rows]


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


def together(proxies: Proxies, sums: ProxySums, codes: Codes, text: AnalysedText) -> dict[str, dict]:
  """How well the features that are specific to a class or a script follow it together: the sum of their activations.

  Where this is much better than the best of them alone, the dictionary has split the class among several features. A
  feature is specific if at least half of its activation is on tokens where the proxy is above 0.

  Args:
    proxies: what was asked for; domains are left out.
    sums: over the text.
    codes: the activations of all features.
    text: what they are of.

  Returns:
    {proxy: {"n_specific", how many features are specific; "pearson_together", Pearson's correlation of the sum of their
    activations with the proxy, None where there are none}}.
  """
  found = {}
  for i, kind in enumerate(proxies.kinds):
    if kind == "domain" or not sums.above_L[i]:
      continue
    chosen = np.flatnonzero((sums.above_FL[:, i] >= _SPECIFIC * sums.sum_F) & (sums.sum_F > 0)).tolist()
    sum_N = np.zeros(text.n_rows, np.float32)
    for feature in chosen:
      row_P, value_P = codes.feature(feature)
      sum_N[row_P] += value_P  # no row comes twice
    found[i] = chosen, sum_N
  if not found:
    return {}
  product_J = np.zeros(len(found))
  for start, stop in whole_contexts(text):  # the sum is 0 on rows that do not count
    score_RL = proxies.scores(text, start, stop)
    product_J += [sum_N[start:stop].astype(np.float64) @ score_RL[:, i] for i, (_, sum_N) in found.items()]
  asked = list(found)
  moments = [(sum_N.sum(dtype=np.float64), np.square(sum_N, dtype=np.float64).sum()) for _, sum_N in found.values()]
  sum_J, square_J = np.array(moments).T
  r_J = correlation(product_J, (sum_J, square_J), (sums.sum_L[asked], sums.square_L[asked]), sums.n_rows)
  return {proxies.names[i]: {"n_specific": len(chosen), "pearson_together": float(r) if np.isfinite(r) else None}
          for (i, (chosen, _)), r in zip(found.items(), r_J, strict=True)}


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
           f"{'recall':>7} {'neuron':>7} {'Pearson':>8} {'together':>9} {'Pearson':>8}"]
  for row in rows:
    name = f"domain: {row['proxy']}" if row["kind"] == "domain" else row["proxy"]
    top = next((bin["share"] for bin in reversed(row["bins"]) if bin["share"] is not None), None)
    neuron = "-" if row["neuron"] is None else row["neuron"]
    found.append(f"{name:<{width}} {row['share']:>8.3%} {row['feature']:>8} {row['pearson']:>8.3f} "
                 f"{row['specificity']:>9.1%} {_percent(top):>8} {row['recall']:>7.1%} {neuron:>7} "
                 f"{_number(row['neuron_pearson']):>8} {row.get('n_specific', ''):>9} "
                 f"{_number(row['pearson_together']) if 'n_specific' in row else '':>8}".rstrip())
  if left_out:
    found.append(f"left out, since a sample of the text has fewer than {LEAST_TOKENS} tokens of them: "
                 f"{', '.join(left_out)}")
  return found


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
  return "-" if share is None else f"{share:.1%}"
