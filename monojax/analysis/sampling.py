"""Examples of a feature for explaining it: windows of a text, drawn from every level of activation and at random.

Letters: N rows of the text, P firings of a feature, E examples, W tokens of an example's window, J rows of windows, X
levels of activation.
"""

import dataclasses
import typing
from collections.abc import Sequence

import numpy as np

from monojax.analysis.text import AnalysedText

CHOOSING, SCORING = 0, 1  # the halves of the text
SIDE = 4                  # tokens of a window on each side of the one in the middle
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
    weight_E: how much of the text each window stands for, see `Sampler.draw`.
    token_strings: a string for each token id.
  """
  row_EW: np.ndarray
  token_EW: np.ndarray
  act_EW: np.ndarray | None
  weight_E: np.ndarray
  token_strings: Sequence[str]

  def __len__(self) -> int:
    return len(self.row_EW)

  def strings(self) -> list[list[str]]:
    """The tokens of each window as strings, without what is outside the context."""
    return [[self.token_strings[i] for i in token_W if i >= 0] for token_W in self.token_EW.tolist()]

  def hidden(self) -> "Examples":
    """The same without activations."""
    return dataclasses.replace(self, act_EW=None)


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
           rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows, weights) of a feature's examples in one half, each row once.

    The weights are the paper's: 1 for random tokens, and the feature's density times the share of its firings that are
    about as strong for those of a level of activation; the strongest tokens in other places have the weight of the
    strongest.

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
    anywhere = lambda n: rows[rng.integers(0, len(rows), n)] if len(rows) else rows
    top = self.top(falling_P, amounts.top)
    parts = [(anywhere(amounts.random), 1.0)]
    if len(falling_P):
      level_P = np.round(value_P / value_P[0] * N_INTERVALS).astype(int)  # N_INTERVALS for the strongest, 0 the weakest
      weight_X = np.bincount(level_P, minlength=N_INTERVALS + 1) / len(rows)
      parts.insert(0, (top, weight_X[-1]))
      for i in range(N_INTERVALS):  # 2 n around where an activation of this size would be, of which the n nearest
        level = N_INTERVALS - 1 - i
        middle = np.searchsorted(-value_P, -value_P[0] * level / N_INTERVALS)
        near = slice(max(0, middle - amounts.each), middle + amounts.each)
        apart_P = np.abs(value_P[near] - value_P[0] * level / N_INTERVALS)
        parts.append((falling_P[near][np.argsort(apart_P, kind="stable")[:amounts.each]], weight_X[level]))
      tokens = self.text.token_N[top]
      parts.append((self._elsewhere(tokens[tokens >= 0], amounts.elsewhere, half, rng), weight_X[-1]))
    tried = anywhere(4 * amounts.each)
    place = np.minimum(np.searchsorted(row_P, tried), max(len(row_P) - 1, 0))
    parts.append(((tried[row_P[place] != tried] if len(row_P) else tried)[:amounts.each], 1.0))
    weights: dict[int, float] = {}
    for part, weight in parts:
      for row in part.tolist():
        weights.setdefault(row, weight)
    return np.array(list(weights), np.int64), np.array(list(weights.values()), np.float64)

  def _elsewhere(self, tokens, n, half, rng):
    """`n` random rows of a half with one of some tokens."""
    if not len(tokens):
      return tokens
    token = tokens[rng.integers(0, len(tokens), n)]
    start, stop = self._starts[half][token], self._starts[half][token + 1]
    return self._by_token[half][start + (rng.random(n) * (stop - start)).astype(np.int64)]

  def examples(self, row_E: np.ndarray, weight_E: np.ndarray, row_P: np.ndarray, value_P: np.ndarray) -> Examples:
    """The windows around rows from `draw`, with a feature's activations; windows of the same tokens are there once."""
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
    return Examples(np.where(inside_EW, row_EW, -1), token_EW, act_EW, weight_E[once], self.token_strings)

  def counted(self, examples: Examples) -> np.ndarray:
    """Places in the flattened windows of the rows that count, each row once, (J,)."""
    row_J, place_J = np.unique(examples.row_EW, return_index=True)
    return place_J[(row_J >= 0) & (self.half_N[row_J] >= 0)]
