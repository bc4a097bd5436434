"""Examples of each feature: where it fires most, at every level of activation, and not at all."""

import numpy as np

from monojax.analysis.codes import Codes
from monojax.analysis.tables import EXAMPLE_GROUPS, N_EXAMPLES
from monojax.analysis.text import AnalysedText

SIDE = 4  # tokens shown on each side of the one in the middle
N_LONGER, LONGER_SIDE = 6, 24  # examples that have a longer window, too, and its tokens on each side
N_BINS = 40
_INTERVALS = len(EXAMPLE_GROUPS) - 2


def feature_rows(row_P: np.ndarray, value_P: np.ndarray, text: AnalysedText, rng: np.random.Generator) -> np.ndarray:
  """The rows of one feature's examples, group by group, -1 where a group has too few.

  The group "Top activations" has the largest activations, at most one of each context. "Interval i", of 0 to 10, has
  the examples whose activation is nearest to (10 - i) / 11 of the maximum, by value and not by rank (as on the
  published pages of Towards Monosemanticity); none is further away than half way to the next interval's, and none is
  among the top ones, so that no example comes twice. "Bottom activations" are random tokens on which the feature does
  not fire.

  Args:
    row_P, value_P: the feature's non-zero activations (`Codes.feature`).
    text: what the rows are of.
    rng: generator for the bottom group.

  Returns:
    int64 array of N_EXAMPLES rows.
  """
  chosen: list[np.ndarray] = []
  rising_P, counted_N = np.sort(value_P), text.counted_N
  for name, size in EXAMPLE_GROUPS:
    if name == EXAMPLE_GROUPS[0][0]:
      picked = _largest_of_contexts(row_P, value_P, text.context_N[row_P])[:size]
    elif name == EXAMPLE_GROUPS[-1][0]:
      drawn = counted_N[rng.integers(0, len(counted_N), 4 * size)]
      tried = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
      picked = tried[row_P[np.minimum(np.searchsorted(row_P, tried), len(row_P) - 1)] != tried][:size]
    else:
      anchor = rising_P[-1] * (_INTERVALS - 1 - int(name.split()[1])) / _INTERVALS
      near_P = _nearest(value_P, rising_P, anchor, size + len(chosen[0]))
      half = rising_P[-1] / _INTERVALS / 2  # an activation half way between two intervals is of the stronger one
      near_P = near_P[(value_P[near_P] >= anchor - half) & (value_P[near_P] < anchor + half)]
      picked = row_P[np.sort(near_P[~np.isin(row_P[near_P], chosen[0])][:size])]
    chosen.append(np.pad(picked.astype(np.int64), (0, size - len(picked)), constant_values=-1))
  return np.concatenate(chosen)


def _largest_of_contexts(row_P: np.ndarray, value_P: np.ndarray, context_P: np.ndarray) -> np.ndarray:
  """The row of the largest value of each context, the context with the largest first; of equal ones the first row."""
  begin_C = np.flatnonzero(np.diff(context_P, prepend=-1))
  largest_C = np.maximum.reduceat(value_P, begin_C)
  is_largest = np.flatnonzero(value_P == np.repeat(largest_C, np.diff(begin_C, append=len(context_P))))
  first_C = is_largest[np.searchsorted(is_largest, begin_C)]
  return row_P[first_C[np.argsort(-largest_C, kind="stable")]]


def _nearest(value_P: np.ndarray, rising_P: np.ndarray, anchor: float, size: int) -> np.ndarray:
  """The places of the `size` values that are nearest to a number, the nearest first.

  Of equally near ones the largest are taken, and of equal ones the first.

  Args:
    value_P: the values.
    rising_P: the same in rising order.
    anchor: the number.
    size: how many.
  """
  middle = int(np.searchsorted(rising_P, anchor, side="right"))  # only so many values on either side can be the nearest
  least, most = rising_P[max(middle - size, 0)], rising_P[min(middle + size, len(rising_P)) - 1]
  near = np.flatnonzero((value_P >= least) & (value_P <= most))
  near = near[np.argsort(-value_P[near], kind="stable")]
  return near[np.argsort(np.abs(value_P[near] - anchor), kind="stable")[:size]]


def windows(row_E: np.ndarray, row_P: np.ndarray, value_P: np.ndarray, text: AnalysedText,
            side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and activations around examples of one feature.

  Args:
    row_E: rows, -1 for none.
    row_P, value_P: the feature's non-zero activations, rows ascending.
    text: what the rows are of.
    side: tokens on each side of the one in the middle.

  Returns:
    (int32 tokens_EW, float32 acts_EW), -1 and 0 outside the context.
  """
  row_EW = row_E[:, None] + np.arange(-side, side + 1)[None]
  inside_EW = (row_E[:, None] >= 0) & (row_EW >= 0) & (row_EW < text.n_rows)
  row_EW = np.where(inside_EW, row_EW, 0)
  inside_EW &= text.context_N[row_EW] == text.context_N[np.maximum(row_E, 0)][:, None]
  row_EW = np.where(inside_EW, row_EW, 0)
  place_EW = np.minimum(np.searchsorted(row_P, row_EW), len(row_P) - 1)
  fires_EW = inside_EW & (row_P[place_EW] == row_EW)
  return (np.where(inside_EW, text.token_N[row_EW], -1).astype(np.int32),
          np.where(fires_EW, value_P[place_EW], 0.0).astype(np.float32))


def example_tables(codes: Codes, text: AnalysedText, n_domains: int, seed: int) -> dict[str, np.ndarray]:
  """Statistics and examples of every feature: the feature columns that describe activations.

  Args:
    codes: non-zero activations of the F features.
    text: what the rows are of.
    n_domains: how many domains there are.
    seed: seed of the bottom groups.

  Returns:
    {column: array}; `monojax.analysis.columns` says what each is.
  """
  n_features = len(codes.start_F) - 1
  n_fires_F = np.diff(codes.start_F)
  width = 2 * SIDE + 1
  tables = {
      "n_fires_F": n_fires_F, "density_F": (n_fires_F / codes.n_rows).astype(np.float32),
      "max_act_F": np.zeros(n_features, np.float32), "mean_act_F": np.zeros(n_features, np.float32),
      "act_counts_FH": np.zeros((n_features, N_BINS), np.int32),
      "longer_tokens_FLU": np.full((n_features, N_LONGER, 2 * LONGER_SIDE + 1), -1, np.int32),
      "longer_acts_FLU": np.zeros((n_features, N_LONGER, 2 * LONGER_SIDE + 1), np.float32),
      "example_tokens_FEW": np.full((n_features, N_EXAMPLES, width), -1, np.int32),
      "example_acts_FEW": np.zeros((n_features, N_EXAMPLES, width), np.float32),
      "example_domain_FE": np.full((n_features, N_EXAMPLES), -1, np.int32),
      "example_document_FE": np.full((n_features, N_EXAMPLES), -1, np.int64),
      "example_position_FE": np.full((n_features, N_EXAMPLES), -1, np.int64),
  }
  if n_domains:
    tables["domain_share_FD"] = np.zeros((n_features, n_domains), np.float32)
    tables["act_domain_share_FH"] = np.zeros((n_features, N_BINS), np.float32)
  for i in np.flatnonzero(n_fires_F).tolist():
    row_P, value_P = codes.feature(i)
    tables["max_act_F"][i], tables["mean_act_F"][i] = value_P.max(), value_P.mean()
    tables["act_counts_FH"][i] = np.histogram(value_P, N_BINS, (0.0, value_P.max()))[0]
    if n_domains:
      domain_P = text.domain_N[row_P]
      known_P = domain_P >= 0
      mass_D = np.bincount(domain_P[known_P], value_P[known_P], n_domains)
      tables["domain_share_FD"][i] = mass_D / max(mass_D.sum(), 1e-30)
      of_top_H = np.histogram(value_P[domain_P == mass_D.argmax()], N_BINS, (0.0, value_P.max()))[0]
      tables["act_domain_share_FH"][i] = of_top_H / np.maximum(tables["act_counts_FH"][i], 1)
    row_E = feature_rows(row_P, value_P, text, np.random.default_rng([seed, i]))
    tables["example_tokens_FEW"][i], tables["example_acts_FEW"][i] = windows(
        row_E, row_P, value_P, text)
    tables["longer_tokens_FLU"][i], tables["longer_acts_FLU"][i] = windows(
        row_E[:N_LONGER], row_P, value_P, text, LONGER_SIDE)
    there_E = row_E >= 0
    tables["example_domain_FE"][i, there_E] = text.domain_N[row_E[there_E]]
    tables["example_document_FE"][i, there_E] = text.document_N[row_E[there_E]]
    if text.position_N is not None:
      tables["example_position_FE"][i, there_E] = text.position_N[row_E[there_E]]
  return tables
