"""Which features tell the values of known variables.

Letters: B rows, F features (or neurons), L labels, K features of a readout, V variables,
N values of a variable.
"""

import numpy as np

_RIDGE = 1e-4  # added to each feature's variance, which is 1, in a readout's least squares


def aurocs(f_BF, label_BL):
  """(F, L) probability that a row with a label has a larger activation than one without; ties count half.

  The area under the ROC curve, from rank sums (Mann-Whitney). NaN for a label that all rows have, or none.

  Args:
    f_BF: activations, not negative and mostly 0.
    label_BL: bool.
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


def readouts(f_BF, label_BL, n_features, n_fitted):
  """The few features that tell each label best together: sparse linear probes.

  Features are taken one after the other, each time the one that explains most of what is left of the label, and fitted
  anew by least squares (orthogonal matching pursuit), on the first rows; the rest judge.

  Args:
    f_BF: activations.
    label_BL: bool.
    n_features: K.
    n_fitted: rows that readouts are fitted to.

  Returns:
    (chosen_LK, the features of each readout in the order of their choice; auroc_L, of the readout on the other rows).
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


def mutual_information(f_BF, value_BV, n_levels=4):
  """(V, F) mutual information in bits between each variable and each feature.

  A feature counts as silent, or as one of `n_levels` equally likely levels of its activations.

  Args:
    f_BF: activations, not negative and mostly 0.
    value_BV: integers from 0.
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


def entropy(value_B):
  """Entropy of a variable in bits."""
  return _entropy(np.bincount(value_B) / len(value_B))


def _entropy(p):
  p = p[p > 0]
  return float(-(p * np.log2(p)).sum())


def labels_of(values, ordered):
  """What features may detect of variables: each value, and of ordered ones each threshold.

  Args:
    values: {variable: (B,) integers}.
    ordered: names of the variables whose values are numbers.

  Returns:
    ([(variable, "=" or ">=", value)], label_BL).
  """
  names, labels = [], []
  for name, value_B in values.items():
    found = np.unique(value_B)
    tests = [("=", v, value_B == v) for v in found]
    tests += [(">=", v, value_B >= v) for v in found[2:-1]] if name in ordered else []
    for relation, v, label_B in tests:
      names.append((name, relation, int(v)))
      labels.append(label_B)
  return names, np.stack(labels, 1)
