"""Proxies: how likely a text is of a script or format, and how features and neurons correlate with that.

A proxy is a number at every token. That of a hypothesis h, such as "this is base64", is the log-likelihood ratio of
Towards Monosemanticity: log P(s | h) / P(s), where s is the text that ends with the token, from where in the context
the ratio is largest. For the hypotheses:

* character classes (base64, DNA, hexadecimal, binary): tokens count as independent, so that the ratio of a text is the
  sum of its tokens' ratios r = log P(token | h) / P(token), and the largest of all sums that end at token t is found by
  Kadane's recursion: score[t] = r[t] + max(0, score[t - 1]), from 0 at the beginning of each context. For instance
  tokens with the ratios -9, 2, -1, 3 have the scores -9, 2, 1, 4. P(token | h) is a product over characters, see
  `scripts.class_likelihoods`, and P(token) the token's share of the analysed text. DNA is scored on at least two
  tokens, and becomes 1 where that score is above 0, and 0 elsewhere.
* scripts: by Bayes, P(s | h) / P(s) = P(h | s) / P(h). P(h | s) is 1 if all characters of s are in the script, and
  `scripts.IMPOSSIBLE` otherwise, so that the best s has no more than the characters that the token completes. A token
  that ends within a character has the share of its occurrences that are in the script (`scripts.script_shares`).
  P(h) is the mean of this over the text. Scores below 0 become 0.
* domains: 1 in the domain's documents, and 0 elsewhere.

Letters: L proxies, N tokens of the text, R those of a batch, V vocabulary, F features, M neurons, P firings, J columns.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from monojax.analysis import scripts
from monojax.analysis.neighbours import rows_that_count
from monojax.analysis.text import AnalysedText
from monojax.linear import product

LEAST_TOKENS = 10     # of a script or domain, for a proxy of it to be asked for
_SAMPLE_TOKENS = 200_000  # of which it is counted how many are of each script
_ROWS_AT_ONCE = 1 << 15
_EQUAL = 1e-9          # numbers whose variance is below this part of their mean square do not vary


@dataclasses.dataclass(frozen=True)
class Proxies:
  """What is asked for in a text.

  Attributes:
    names: of the L proxies: classes first, then scripts, then domains.
    kinds: "characters", "script" or "domain", for each.
    ratio_VL: the ratio r of every token, for the classes. Here L is these, and below it is the scripts.
    share_VL: P(script | token) of tokens by themselves.
    p_L: P(script).
    script_ids: the numbers of the scripts in `scripts.SCRIPTS`.
    domain_ids: the numbers of the domains.
    left_out: names of scripts of which a sample of the text has (nearly) nothing, and of domains of which the text has.
    values: the bytes of each token; the last stands for tokens that are not known.
    partial_V: whether each token is not whole characters.
  """
  names: tuple[str, ...]
  kinds: tuple[str, ...]
  ratio_VL: np.ndarray
  share_VL: np.ndarray
  p_L: np.ndarray
  script_ids: tuple[int, ...]
  domain_ids: tuple[int, ...]
  left_out: tuple[str, ...]
  values: tuple[bytes, ...]
  partial_V: np.ndarray

  def scores(self, text: AnalysedText, start: int, stop: int) -> np.ndarray:
    """The values of all proxies at the rows `start` to `stop - 1` of a text, (R, L) float64.

    Row `start` must begin a context.
    """
    token_R, context_R = text.token_N[start:stop], text.context_N[start:stop]
    class_RL, paired_RL = largest_sums(self.ratio_VL[token_R].astype(np.float64), context_R)
    dna = self.names.index("DNA")
    class_RL[:, dna] = paired_RL[:, dna] > 0
    p_RL = in_scripts(self.values, self.partial_V, self.share_VL, self.script_ids, token_R, context_R)
    script_RL = np.maximum(np.log(np.maximum(p_RL, scripts.IMPOSSIBLE) / self.p_L[None]), 0)
    is_domain_RL = np.reshape(text.domain_N[start:stop], (-1, 1)) == np.array(self.domain_ids, np.int64)[None]
    return np.concatenate([class_RL, script_RL, is_domain_RL], axis=1)


def in_scripts(values: Sequence[bytes], partial_V: np.ndarray, share_VL: np.ndarray, script_ids: Sequence[int],
               token_N: np.ndarray, context_N: np.ndarray) -> np.ndarray:
  """P(script | s) at each token of a text, see the module, (N, L) float64 with 0 for what is not in the script.

  Args:
    values, partial_V: the bytes of each token, and whether it is not whole characters.
    share_VL: P(script | token) of tokens by themselves, for some scripts.
    script_ids: the numbers of these scripts.
    token_N, context_N: the text.
  """
  share_NL = share_VL[token_N].astype(np.float64)
  partial_N = partial_V[token_N]
  if partial_N.any():
    script_N, ends_N = scripts.scripts_in(values, token_N, context_N)
    known_N = partial_N & ends_N
    share_NL[known_N] = script_N[known_N, None] == np.array(script_ids, np.int64)[None]
  return share_NL


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
  sample_N = text.sample(_SAMPLE_TOKENS)
  token_N, context_N = text.token_N[sample_N], text.context_N[sample_N]
  share_VL, partial_V = scripts.script_shares(values, token_N, context_N), scripts.partial_of(values)
  everything = range(len(scripts.SCRIPTS))
  in_script_NL = in_scripts(values, partial_V, share_VL, everything, token_N, context_N)
  if text.counts_N is not None:
    in_script_NL = in_script_NL[text.counts_N[sample_N]]
  n_L = in_script_NL.sum(0)
  script_ids = np.flatnonzero(n_L >= LEAST_TOKENS)
  class_VL = scripts.class_likelihoods(values) - np.log(p_V)[:, None]
  n_D = np.bincount(text.domain_N[counted_N][text.domain_N[counted_N] >= 0], minlength=len(domains))
  domain_ids = [i for i in range(len(domains)) if n_D[i] >= LEAST_TOKENS]
  script_names = list(scripts.SCRIPTS)
  names = (*scripts.CLASSES, *(script_names[i] for i in script_ids), *(domains[i] for i in domain_ids))
  kinds = ("characters",) * len(scripts.CLASSES) + ("script",) * len(script_ids) + ("domain",) * len(domain_ids)
  left_out = (*(name for i, name in enumerate(script_names) if i not in script_ids),
              *(name for i, name in enumerate(domains) if i not in domain_ids))
  return Proxies(names, kinds, class_VL.astype(np.float32), share_VL[:, script_ids],
                 n_L[script_ids] / max(len(in_script_NL), 1), tuple(script_ids.tolist()), tuple(domain_ids), left_out,
                 tuple(values), partial_V)


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
  STATE = ("n_rows", "sum_F", "square_F", "fires_F", "product_FL", "above_FL", "fires_FL", "sum_L", "square_L",
           "above_L", "sum_M", "square_M", "product_ML", "_near_M", "_near_L")

  def __init__(self, n_features: int, n_neurons: int, n_proxies: int, every: bool = False):
    """Has seen no rows yet; `every` says that all rows count, see `rows_that_count`."""
    self.n_rows, self._every = 0, every
    shape = (n_features, n_proxies)
    self.sum_F, self.square_F, self.fires_F = (np.zeros(n_features) for _ in range(3))
    self.product_FL, self.above_FL, self.fires_FL = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    self.sum_L, self.square_L, self.above_L = (np.zeros(n_proxies) for _ in range(3))
    self.sum_M, self.square_M = np.zeros(n_neurons), np.zeros(n_neurons)
    self.product_ML = np.zeros((n_neurons, n_proxies))
    self._near_M: np.ndarray | None = None
    self._near_L: np.ndarray | None = None

  def add(self, score_RL: np.ndarray, row_P: np.ndarray, feature_P: np.ndarray, value_P: np.ndarray,
          x_RM: jax.Array | np.ndarray) -> None:
    """Adds a batch.

    Args:
      score_RL: the proxies.
      row_P, feature_P, value_P: the rows, numbers and activations of the features that fire.
      x_RM: the neurons.
    """
    counts_R1 = rows_that_count(row_P, x_RM, self._every)[:, None]
    if self._near_M is None or self._near_L is None:  # so that float32 holds the digits of neurons that vary little
      x_RM = np.asarray(x_RM, np.float32)
      self._near_M, self._near_L = x_RM.mean(0), score_RL.mean(0)
    of_neurons = _neuron_sums(x_RM, score_RL.astype(np.float32), self._near_M, self._near_L.astype(np.float32),
                              counts_R1)
    sums = [np.asarray(part) for part in jax.device_get(of_neurons)]
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
    self.n_rows += int(counts_R1.sum())
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
    return _table_of_correlations(product_FL, (self.sum_F, self.square_F), sums, self.n_rows)

  def of_neurons(self) -> np.ndarray:
    """Pearson's correlation of each neuron with each proxy, (M, L), NaN where one of the two does not vary."""
    near_L = np.zeros(len(self.sum_L)) if self._near_L is None else self._near_L
    apart_L = self.sum_L - self.n_rows * near_L
    square_L = self.square_L - 2 * near_L * self.sum_L + self.n_rows * near_L**2
    return _table_of_correlations(self.product_ML, (self.sum_M, self.square_M), (apart_L, square_L), self.n_rows)


@jax.jit
def _neuron_sums(x_RM, score_RL, near_M, near_L, counts_R1):
  """(Sums, sums of squares of neurons minus `near_M`; their products with scores minus `near_L`), of rows that count.

  XLA's CPU products read a transposed operand slowly, so that it is the smaller one.
  """
  apart_RM = jnp.where(counts_R1, x_RM - near_M[None], 0)
  apart_RL = jnp.where(counts_R1, score_RL - near_L[None], 0)
  return apart_RM.sum(0), jnp.square(apart_RM).sum(0), product(apart_RL.T, apart_RM, jnp.float32)


def _table_of_correlations(product_JL, sums_J, sums_L, n_rows):
  """`correlation` of each of J with each of L."""
  return correlation(product_JL, [part_J[:, None] for part_J in sums_J], sums_L, n_rows)


def correlation(product, sums, other_sums, n_rows):
  """Pearson's correlations from sums of products, and from sums and sums of squares; NaN where one does not vary.

  Args:
    product: sums of the products of the one with the other.
    sums, other_sums: (sums, sums of squares) of either.
    n_rows: the rows that they are over.
  """
  n_rows = max(n_rows, 1)
  moments = []
  for total, square in (sums, other_sums):
    mean, mean_square = total / n_rows, square / n_rows
    variance = mean_square - mean**2
    moments.append((mean, np.sqrt(np.where(variance > _EQUAL * mean_square, variance, np.nan))))
  (mean, deviation), (other_mean, other_deviation) = moments
  return (product / n_rows - mean * other_mean) / deviation / other_deviation
