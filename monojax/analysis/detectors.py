"""Features and neurons as detectors of a class of text: F1 at a threshold that was chosen on other text.

A detector says that a token is of the class if its activation reaches a threshold above 0. Features and the neurons of
a ReLU layer are 0 where they are silent. The numbers of other sites, such as a residual stream, are of both signs and
never silent; there each number is two detectors, one of its positive and one of its negative values (`both_signs`).

Letters: N rows, C classes, P non-zero activations of one column, M width of a site.
"""

import fnmatch
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.analysis.codes import Codes


def classes_of(detectors: typing.Sequence[str], domains: typing.Sequence[str]) -> dict[str, list[int]]:
  """{class name: domain indices} for settings such as "Hebrew=he_*"; classes without a domain drop out."""
  found = {}
  for detector in detectors:
    name, globs = detector.split("=", 1)
    indices = [i for i, domain in enumerate(domains)
               if any(fnmatch.fnmatchcase(domain, glob) for glob in globs.split("|"))]
    if indices:
      found[name] = indices
  return found


def both_signs(x_NM: jax.Array) -> jax.Array:
  """(N, 2 M): the positive parts of some numbers, then the sizes of their negative parts.

  For instance the row (3, -2) becomes (3, 0, 0, 2): column M + i is large where number i is far below 0.
  """
  return jnp.concatenate([jax.nn.relu(x_NM), jax.nn.relu(-x_NM)], axis=1)


def best_detectors(codes: Codes, is_class_CN: np.ndarray) -> list[tuple[int, float]]:
  """For each class the column and threshold with the largest F1, over all columns and thresholds.

  F1 = 2 TP / (selected + positives), where the rows with an activation >= threshold are selected.

  Args:
    codes: the columns' (features' or neurons') activations on the text that detectors are chosen on.
    is_class_CN: bool, whether each row belongs to each of the classes.

  Returns:
    A list of (column, threshold), one a class.
  """
  best: list[tuple[int, float]] = [(0, np.inf)] * len(is_class_CN)
  best_f1_C = np.zeros(len(is_class_CN))
  n_positive_C = is_class_CN.sum(1)
  for column in np.flatnonzero(np.diff(codes.start_F)).tolist():
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


def f1_of(codes: Codes, column: int, threshold: float, is_class_N: np.ndarray) -> float:
  """F1 of "activation >= threshold" on other text."""
  row_P, value_P = codes.feature(column)
  selected_P = value_P >= threshold
  true_positives = is_class_N[row_P[selected_P]].sum()
  return float(2 * true_positives / max(selected_P.sum() + is_class_N.sum(), 1))


def compare(feature_codes: typing.Sequence[Codes], neuron_codes: typing.Sequence[Codes], choose_domain_N: np.ndarray,
            test_domain_N: np.ndarray, classes: dict[str, list[int]], n_neurons: int | None = None) -> list[dict]:
  """The best feature's and the best neuron's F1 for each class.

  Args:
    feature_codes, neuron_codes: each a pair: activations on the text that detectors are chosen on, and on test text.
    choose_domain_N, test_domain_N: domain index of each row of either text.
    classes: from `classes_of`.
    n_neurons: how many neurons there are, where `neuron_codes` are of `both_signs`.

  Returns:
    A list of {"class", "feature", "feature_f1", "neuron", "neuron_f1", "test_tokens"}, one for each class that occurs
    in both texts; with `n_neurons` also "neuron_sign", 1 or -1.
  """
  is_class = lambda domain_N: {name: np.isin(domain_N, indices) for name, indices in classes.items()}
  choose, test = is_class(choose_domain_N), is_class(test_domain_N)
  names = [name for name in classes if choose[name].any() and test[name].any()]
  rows: list[dict] = [{"class": name, "test_tokens": int(test[name].sum())} for name in names]
  if not rows:
    return rows
  choose_CN = np.stack([choose[name] for name in names])
  for kind, (choosing, testing) in (("feature", feature_codes), ("neuron", neuron_codes)):
    for row, (column, threshold) in zip(rows, best_detectors(choosing, choose_CN), strict=True):
      row[kind] = column
      row[f"{kind}_f1"] = f1_of(testing, column, threshold, test[row["class"]])
      if kind == "neuron" and n_neurons:
        row["neuron"], row["neuron_sign"] = column % n_neurons, 1 if column < n_neurons else -1
  return rows
