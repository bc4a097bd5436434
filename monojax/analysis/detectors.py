"""Features and neurons as detectors of a class of text: F1 at a threshold chosen on other text."""

import fnmatch

import numpy as np


def classes_of(detectors, domains):
  """{class name: domain indices} for settings such as "Hebrew=he_*"; classes without a domain drop out."""
  found = {}
  for detector in detectors:
    name, globs = detector.split("=", 1)
    indices = [i for i, domain in enumerate(domains)
               if any(fnmatch.fnmatchcase(domain, glob) for glob in globs.split("|"))]
    if indices:
      found[name] = indices
  return found


def best_detectors(codes, is_class_CN):
  """For each class the column and threshold with the largest F1, over all columns and thresholds.

  F1 = 2 TP / (selected + positives), where the rows with an activation >= threshold are selected.

  Args:
    codes: `Codes` of the columns (features or neurons) on the choosing text.
    is_class_CN: bool, whether each row belongs to each of C classes.

  Returns:
    A list of (column, threshold), one a class.
  """
  best = [(0, np.inf)] * len(is_class_CN)
  best_f1_C = np.zeros(len(is_class_CN))
  n_positive_C = is_class_CN.sum(1)
  for column in np.flatnonzero(np.diff(codes.start_F)):
    row_P, value_P = codes.feature(column)
    order_P = np.argsort(-value_P, kind="stable")
    falling_P = value_P[order_P]
    last_P = np.append(falling_P[:-1] != falling_P[1:], True)  # equal activations are selected together
    n_selected_P = np.arange(1, len(row_P) + 1)
    for c, (is_class_N, n_positive) in enumerate(zip(is_class_CN, n_positive_C, strict=True)):
      f1_P = 2 * np.cumsum(is_class_N[row_P[order_P]]) / (n_selected_P + n_positive) * last_P
      at = int(np.argmax(f1_P))
      if f1_P[at] > best_f1_C[c]:
        best_f1_C[c] = f1_P[at]
        best[c] = (int(column), float(falling_P[at]))
  return best


def f1_of(codes, column, threshold, is_class_N):
  """F1 of "activation >= threshold" on other text."""
  row_P, value_P = codes.feature(column)
  selected_P = value_P >= threshold
  true_positives = is_class_N[row_P[selected_P]].sum()
  return float(2 * true_positives / max(selected_P.sum() + is_class_N.sum(), 1))


def compare(feature_codes, neuron_codes, choose_domain_N, test_domain_N, classes):
  """The best feature's and the best neuron's F1 for each class.

  Args:
    feature_codes, neuron_codes: pairs (`Codes` on choosing text, `Codes` on test text).
    choose_domain_N, test_domain_N: domain index of each row of either text.
    classes: from `classes_of`.

  Returns:
    A list of {"class", "feature", "feature_f1", "neuron", "neuron_f1", "test_tokens"}, one for each class
    that occurs in both texts.
  """
  is_class = lambda domain_N: {name: np.isin(domain_N, indices) for name, indices in classes.items()}
  choose, test = is_class(choose_domain_N), is_class(test_domain_N)
  names = [name for name in classes if choose[name].any() and test[name].any()]
  rows = [{"class": name, "test_tokens": int(test[name].sum())} for name in names]
  if not rows:
    return rows
  choose_CN = np.stack([choose[name] for name in names])
  for kind, (choosing, testing) in (("feature", feature_codes), ("neuron", neuron_codes)):
    for row, (column, threshold) in zip(rows, best_detectors(choosing, choose_CN), strict=True):
      row[kind] = column
      row[f"{kind}_f1"] = f1_of(testing, column, threshold, test[row["class"]])
  return rows
