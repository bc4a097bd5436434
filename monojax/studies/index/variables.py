"""How well features tell the values of known variables: AUROC, sparse readouts and mutual information.

A label is a statement about a variable that is true or false on a row, such as "v1 = 3" or "v1 >= 5".

Letters: B rows, F features or neurons, L labels, K features of a readout, P rows on which a feature fires. In this
module V is variables, and N is values of a variable.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

_RIDGE = 1e-4  # added to each feature's variance, which is 1, in the least squares of a readout


def aurocs(f_BF: Any, label_BL: np.ndarray) -> np.ndarray:
  """The AUROC of each feature as a detector of each label, (F, L).

  It is the probability that a feature's activation is larger on a row with the label than on a row without it, where a
  tie counts half. It is computed from rank sums (Mann-Whitney), and is NaN for a label that all rows or no rows have.

  Args:
    f_BF: activations, which are not negative and mostly 0.
    label_BL: whether each row has each label, bool.
  """
  n_rows, n_positive_L = len(f_BF), label_BL.sum(0)
  pairs_L = n_positive_L * (n_rows - n_positive_L)
  found_FL = np.empty((f_BF.shape[1], label_BL.shape[1]))
  for i, f_B in enumerate(np.ascontiguousarray(np.asarray(f_BF).T)):
    row_P = np.flatnonzero(f_B)
    n_zero = n_rows - len(row_P)
    _, inverse_P, count_U = np.unique(f_B[row_P], return_inverse=True, return_counts=True)
    rank_P = (n_zero + np.cumsum(count_U) - (count_U - 1) / 2)[inverse_P]
    zero_rank = (n_zero + 1) / 2
    rank_sum_L = zero_rank * n_positive_L + (rank_P - zero_rank) @ label_BL[row_P]
    with np.errstate(invalid="ignore", divide="ignore"):
      found_FL[i] = (rank_sum_L - n_positive_L * (n_positive_L + 1) / 2) / pairs_L
  return found_FL


def readouts(f_BF: np.ndarray, label_BL: np.ndarray, n_features: int, n_fitted: int) -> tuple[np.ndarray, np.ndarray]:
  """A readout of each label: a weighted sum of a few features that tells, as well as can be, which rows have the label.

  Readouts are sparse linear probes, fitted by orthogonal matching pursuit: the next feature is always the one that
  explains most of what the features so far leave unexplained of the label, and all weights are then fitted anew by
  least squares. They are fitted to the first rows and judged on the rest.

  Args:
    f_BF: activations.
    label_BL: whether each row has each label, bool.
    n_features: K, how many features a readout has.
    n_fitted: the number of rows that readouts are fitted to.

  Returns:
    (chosen_LK, auroc_L): the features of each readout in the order in which they were chosen, and the AUROC of each
    readout on the rows that it was not fitted to.
  """
  from scipy import sparse
  fitted = sparse.csr_array(f_BF[:n_fitted].astype(np.float64))
  mean_F = np.asarray(fitted.mean(0)).ravel()
  variance_F = np.asarray(fitted.multiply(fitted).mean(0)).ravel() - mean_F**2
  scale_F = np.where(variance_F > 1e-12, np.maximum(variance_F, 1e-12) ** -0.5, 0)
  gram_FF = ((fitted.T @ fitted).toarray() / n_fitted - np.outer(mean_F, mean_F)) * np.outer(scale_F, scale_F)
  label_mean_L = label_BL[:n_fitted].mean(0)
  with_label_FL = (fitted.T @ label_BL[:n_fitted].astype(np.float64)) / n_fitted - np.outer(mean_F, label_mean_L)
  with_label_FL *= scale_F[:, None]
  chosen_LK = np.zeros((label_BL.shape[1], n_features), int)
  auroc_L = np.zeros(label_BL.shape[1])
  for label, chosen_K in enumerate(chosen_LK):
    weight_K, left_F = np.zeros(0), with_label_FL[:, label]
    for k in range(n_features):
      left_F = np.abs(left_F)
      left_F[chosen_K[:k]] = -1
      chosen_K[k] = left_F.argmax()
      now = chosen_K[:k + 1]
      weight_K = np.linalg.solve(gram_FF[np.ix_(now, now)] + _RIDGE * np.eye(k + 1), with_label_FL[now, label])
      left_F = with_label_FL[:, label] - gram_FF[:, now] @ weight_K
    score_B = f_BF[n_fitted:, chosen_K] @ (weight_K * scale_F[chosen_K])
    auroc_L[label] = aurocs((score_B - score_B.min())[:, None], label_BL[n_fitted:, label:label + 1])[0, 0]
  return chosen_LK, auroc_L


def mutual_information(f_BF: Any, value_BV: np.ndarray, n_levels: int = 4) -> np.ndarray:
  """The mutual information in bits between each variable and each feature, (V, F).

  For this a feature is either silent or at one of a few levels of activation.

  Args:
    f_BF: activations, which are not negative and mostly 0.
    value_BV: the values of the variables, integers from 0 on.
    n_levels: the number of levels, which are equally frequent among the rows on which the feature fires.
  """
  n_rows, n_variables = value_BV.shape
  totals = [np.bincount(value_B) for value_B in value_BV.T]
  found_VF = np.empty((n_variables, f_BF.shape[1]))
  for i, f_B in enumerate(np.ascontiguousarray(np.asarray(f_BF).T)):
    row_P = np.flatnonzero(f_B)
    borders = np.quantile(f_B[row_P], np.arange(1, n_levels) / n_levels) if len(row_P) else []
    level_P = np.searchsorted(borders, f_B[row_P], side="right")
    for variable, total_N in enumerate(totals):
      n_values = len(total_N)
      cell_P = (level_P + 1) * n_values + value_BV[row_P, variable]
      count_KN = np.bincount(cell_P, minlength=(n_levels + 1) * n_values).reshape(-1, n_values)
      count_KN[0] = total_N - count_KN.sum(0)
      found_VF[variable, i] = (_entropy(total_N / n_rows) + _entropy(count_KN.sum(1) / n_rows)
                               - _entropy(count_KN.ravel() / n_rows))
  return found_VF


def entropy(value_B: np.ndarray) -> float:
  """The entropy of a variable in bits, given its value on each row."""
  return _entropy(np.bincount(value_B) / len(value_B))


def _entropy(p: np.ndarray) -> float:
  """The entropy of a distribution in bits."""
  p = p[p > 0]
  return float(-(p * np.log2(p)).sum())


def labels_of(values: Mapping[str, np.ndarray],
              ordered: Collection[str]) -> tuple[list[tuple[str, str, int]], np.ndarray]:
  """The labels of variables: "variable = value" for each value, and "variable >= value" if values have an order.

  Args:
    values: {variable: its value on each row, (B,) integers}.
    ordered: the names of the variables whose values have an order.

  Returns:
    ([(variable, "=" or ">=", value)], label_BL): the labels, and whether each row has each of them.
  """
  names: list[tuple[str, str, int]] = []
  labels: list[np.ndarray] = []
  for name, value_B in values.items():
    found = np.unique(value_B)
    tests = [("=", v, value_B == v) for v in found]
    tests += [(">=", v, value_B >= v) for v in found[2:-1]] if name in ordered else []
    for relation, v, label_B in tests:
      names.append((name, relation, int(v)))
      labels.append(label_B)
  return names, np.stack(labels, 1)
