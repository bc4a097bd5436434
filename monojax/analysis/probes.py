"""Probes: how well a label of a text can be told from a few features, beside neurons, random features and all of x.

The protocol is that of the package `sae-probes` 0.4 in its setting "normal" (Kantamneni et al. 2025, arXiv 2502.16681),
with its splits, so that scores compare with published ones. Everything here is a function of arrays. scikit-learn, of
the extra `probes`, does the logistic regression.

Letters: N rows, M width of the activations, F features, K chosen columns, R rows of one part of a split.
"""

import concurrent.futures
import dataclasses
import importlib.util
import os
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from monojax import metrics
from monojax.config import InputError, require

SEED = 42  # of the splits and the fits, as published
MAX_ROWS = 5000  # of a data set; later ones are not read
INVERSE_PENALTIES = np.logspace(5, -5, 10)  # the values of scikit-learn's C, of which validation chooses one
_MAX_TRAIN, _MIN_TEST, _MAX_VALIDATION = 1024, 100, 100
_MIN_TRAIN = 4  # with fewer there is nothing to validate on
MIN_ROWS = _MIN_TRAIN + _MIN_TEST
_MAX_STEPS = 1000  # of the solver
_TINY = 1e-6
_CHUNK_ROWS = 512  # rows that are encoded at a time
_CHUNK_BYTES = 2 ** 27  # of the random features that are held at a time
METHODS = ("dense", "sae", "neurons", "random")

Encode = Callable[[np.ndarray], typing.Any]  # features f_RF, an array of any kind, of rows x_RM


class Split(typing.NamedTuple):
  """The numbers of the rows to train and to test on; half of each are of label 1."""
  train_R: np.ndarray
  test_R: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scores:
  """How well a probe tells the labels of the test rows.

  Attributes:
    test_auc: the area under the ROC curve.
    test_accuracy: the share of rows whose label is told right.
    test_f1: F1 of each label, averaged with the labels' shares as weights.
    val_auc: the area under the curve on validation rows, for the penalty that was chosen by it.
    inverse_penalty: that penalty, as scikit-learn's C.
  """
  test_auc: float
  test_accuracy: float
  test_f1: float
  val_auc: float
  inverse_penalty: float


def require_sklearn() -> None:
  """Raises `InputError` where scikit-learn is not installed."""
  if importlib.util.find_spec("sklearn") is None:
    raise InputError("probes need a package that is not installed, scikit-learn: pip install 'monojax[probes]'")


def sizes(y_N: np.ndarray) -> tuple[int, int]:
  """(rows to train on, rows to test on), of the first `MAX_ROWS` rows.

  Published are min(n - 100, 1024) and the others but one, for data sets of n rows whose two labels are equally
  frequent. Where they are not, the surplus of the more frequent one is left out: n is then twice the rarer label.

  Args:
    y_N: the labels, 0 and 1.

  Raises:
    InputError: there are too few rows of one of the labels.
  """
  y_N = np.asarray(y_N)[:MAX_ROWS]
  n_ones, n_zeros = int((y_N == 1).sum()), int((y_N == 0).sum())
  for n in (len(y_N), 2 * min(n_ones, n_zeros)):
    n_train = min(n - _MIN_TEST, _MAX_TRAIN)
    n_test = n - n_train - 1
    if n_train >= _MIN_TRAIN and -(-n_train // 2) - (-n_test // 2) <= n_ones and n_train // 2 + n_test // 2 <= n_zeros:
      return n_train, n_test
  raise InputError(f"labels: {n_ones} rows of one label and {n_zeros} of the other are too few: a probe needs at least "
                   f"{MIN_ROWS // 2} of each")


def splits(y_N: np.ndarray, seed: int = SEED) -> Split:
  """The rows to train and to test on: a draw without replacement in which both labels are equally frequent.

  Args:
    y_N: the labels, 0 and 1; only the first `MAX_ROWS` count.
    seed: of the draw.

  Raises:
    InputError: there are too few rows of one of the labels.
  """
  n_train, n_test = sizes(y_N)
  y_N, rng = np.asarray(y_N)[:MAX_ROWS], np.random.RandomState(seed)
  left = {label: np.flatnonzero(y_N == label) for label in (1, 0)}
  parts = []
  for n in (n_train, n_test):
    drawn = {label: rng.choice(left[label], size=size, replace=False)
             for label, size in ((1, n - n // 2), (0, n // 2))}
    left = {label: np.setdiff1d(left[label], drawn[label]) for label in left}
    parts.append(np.concatenate([drawn[1], drawn[0]]))
  return Split(*[rng.permutation(part_R) for part_R in parts])


def differences(f_RF: np.ndarray, y_R: np.ndarray) -> np.ndarray:
  """How differently each feature fires on the two labels: |mean where 1 - mean where 0| of the scaled feature, (F,).

  A feature is scaled by the mean of its absolute value where it is not 0.
  """
  f_RF, y_R = np.asarray(f_RF), np.asarray(y_R)
  fires_F = np.count_nonzero(f_RF, axis=0)
  scale_F = np.abs(f_RF).sum(0, dtype=np.float64) / (fires_F + _TINY) + _TINY
  means = [f_RF[y_R == label].mean(0, dtype=np.float64) for label in (1, 0)]
  return np.abs(means[0] - means[1]) / scale_F


def select_features(f_RF: np.ndarray, y_R: np.ndarray, k: int) -> np.ndarray:
  """The numbers of the k features that fire most differently on the two labels, the most different one first."""
  return _largest(differences(f_RF, y_R), k)


@dataclasses.dataclass(frozen=True)
class Task:
  """What a probe is fitted to, rows in random order with labels 0 and 1, and what it is tested on."""
  x_train_RM: np.ndarray
  y_train_R: np.ndarray
  x_test_RM: np.ndarray
  y_test_R: np.ndarray
  regularisation: str

  def __post_init__(self) -> None:
    require(self.regularisation in ("l1", "l2"), "regularisation", self.regularisation, "choose one of l1, l2")
    # scikit-learn computes in the type of its input, and with a large penalty float32 stops far from the best
    # intercept. The published scores are of float64, which it turns tensors of torch into.
    for name in ("x_train_RM", "x_test_RM"):
      object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))


def fit_probe(x_train_RM: np.ndarray, y_train_R: np.ndarray, x_test_RM: np.ndarray, y_test_R: np.ndarray,
              regularisation: str, seed: int = SEED) -> Scores:
  """The scores of one probe; see `fit_probes`."""
  return fit_probes([Task(x_train_RM, y_train_R, x_test_RM, y_test_R, regularisation)], seed)[0]


def fit_probes(tasks: Sequence[Task], seed: int = SEED, description: str = "probes") -> list[Scores]:
  """Logistic regressions, the penalty of each chosen by the area under the curve on validation rows.

  The columns are not standardised. With 128 training rows or more the last fifth of them, at most 100, validate; with
  fewer there are 6 folds; with 12 or fewer every pair of rows validates once. The penalty that is best on average, of
  equals the weakest, is then used on all training rows. Each processor has a fit of its own.

  Args:
    tasks: what to fit.
    seed: of the solver, of the folds and of the order of the rows.
    description: what the progress bar calls this.

  Returns:
    The scores of each task.

  Raises:
    InputError: scikit-learn is not installed.
  """
  require_sklearn()
  import threadpoolctl
  from sklearn.exceptions import ConvergenceWarning
  grid = [(task, value) for task in tasks for value in INVERSE_PENALTIES]
  # The solver's loop runs outside of Python's lock. Threads of matrix products besides would only wait for each other.
  pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
  bar = metrics.progress(len(grid) + len(tasks), "fits", description)

  def counted(function, pair):
    result = function(*pair, seed)
    bar.update(1)
    return result

  try:
    with bar, warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
      warnings.simplefilter("ignore", ConvergenceWarning)
      aucs = np.reshape([*pool.map(lambda pair: counted(_validated, pair), grid)], (len(tasks), -1))
      chosen = [INVERSE_PENALTIES[place] for place in aucs.argmax(1)]
      found = [*pool.map(lambda pair: counted(_tested, pair), zip(tasks, chosen, strict=True))]
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
  return [dataclasses.replace(scores, val_auc=float(auc)) for scores, auc in zip(found, aucs.max(1), strict=True)]


def _validated(task: Task, inverse_penalty: float, seed: int) -> float:
  """The area under the curve on validation rows, a mean where there are several parts of them."""
  from sklearn.metrics import roc_auc_score
  x_RM, y_R, aucs = task.x_train_RM, task.y_train_R, []
  for fit_R, held_R in _validation(y_R, seed):
    if len(np.unique(y_R[fit_R])) < 2:
      aucs.append(0.5)  # there is nothing to learn from one label: chance
      continue
    model = _classifier(task.regularisation, inverse_penalty, seed).fit(x_RM[fit_R], y_R[fit_R])
    aucs.append(roc_auc_score(y_R[held_R], model.predict_proba(x_RM[held_R])[:, 1]))
  return float(np.mean(aucs))


def _tested(task: Task, inverse_penalty: float, seed: int) -> Scores:
  """The scores on the test rows of a fit to all training rows; that of validation is left 0."""
  from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
  order_R = np.random.RandomState(seed).permutation(len(task.x_train_RM))
  model = _classifier(task.regularisation, inverse_penalty, seed).fit(task.x_train_RM[order_R], task.y_train_R[order_R])
  told_R, y_R = model.predict(task.x_test_RM), task.y_test_R
  return Scores(float(roc_auc_score(y_R, model.predict_proba(task.x_test_RM)[:, 1])),
                float(accuracy_score(y_R, told_R)), float(f1_score(y_R, told_R, average="weighted")), 0.0,
                float(inverse_penalty))


def probe_dataset(x_NM: np.ndarray, y_N: np.ndarray, encode: Encode, ks: Sequence[int], regularisation: str = "l1",
                  seed: int = SEED, description: str = "probes") -> list[dict]:
  """Probes on one data set: on k features of a dictionary, on k neurons, on k random features, and on all neurons.

  The neurons are the columns of the activations. The random features have directions drawn from a normal distribution,
  and each fires on as many training rows as the dictionary's feature of the same number. All are chosen alike. The
  probe on all neurons ("dense") has an l2 penalty, as published.

  Args:
    x_NM: activations of which one row belongs to each label.
    y_N: the labels, 0 and 1.
    encode: the dictionary, a function x_RM -> f_RF.
    ks: how many features; where there are fewer, all.
    regularisation: of the probes on k features, "l1" or "l2".
    seed: of the split, the fits and the random features.
    description: what the progress bar calls this.

  Returns:
    A row for each probe: "method", one of `METHODS`; "k", None for the dense one; the fields of `Scores`; "features",
    the numbers of the columns that it reads, the most different first, None for the dense one; "n_train", "n_test".

  Raises:
    InputError: there are too few rows of one of the labels.
  """
  split, y_N = splits(y_N, seed), np.asarray(y_N)
  x_train_RM, x_test_RM = (np.asarray(x_NM)[part_R] for part_R in split)
  y_train_R, y_test_R = (y_N[part_R] for part_R in split)
  largest = max(ks)
  f_train_RF = encoded(encode, x_train_RM)
  index_K = select_features(f_train_RF, y_train_R, largest)
  fires_F, f_train_RK = np.count_nonzero(f_train_RF, axis=0), f_train_RF[:, index_K]
  del f_train_RF
  neurons_K = select_features(x_train_RM, y_train_R, largest)
  chosen = {
      "sae": (index_K, f_train_RK, encoded(encode, x_test_RM, index_K)),
      "neurons": (neurons_K, x_train_RM[:, neurons_K], x_test_RM[:, neurons_K]),
      "random": random_features(x_train_RM, x_test_RM, y_train_R, fires_F, largest, seed)}
  kinds: list[tuple[str, int | None, list[int] | None, Task]] = [("dense", None, None, Task(
      x_train_RM, y_train_R, x_test_RM, y_test_R, "l2"))]
  for method, (column_K, train_RK, test_RK) in chosen.items():
    kinds += [(method, k, column_K[:k].tolist(), Task(train_RK[:, :k], y_train_R, test_RK[:, :k], y_test_R,
                                                      regularisation)) for k in ks]
  scores = fit_probes([task for *_, task in kinds], seed, description)
  return [{"method": method, "k": k, **dataclasses.asdict(found), "features": columns, "n_train": len(y_train_R),
           "n_test": len(y_test_R)} for (method, k, columns, _), found in zip(kinds, scores, strict=True)]


def encoded(encode: Encode, x_NM: np.ndarray, index_K: np.ndarray | None = None) -> np.ndarray:
  """The features of some rows, or those in `index_K` alone; rows are encoded some at a time, always equally many."""
  parts = []
  for first in range(0, len(x_NM), _CHUNK_ROWS):
    part = x_NM[first:first + _CHUNK_ROWS]
    f = np.asarray(encode(np.pad(part, ((0, _CHUNK_ROWS - len(part)), (0, 0)))), np.float32)[:len(part)]
    parts.append(f if index_K is None else f[:, index_K])
  return np.concatenate(parts)


def random_features(x_train_RM: np.ndarray, x_test_RM: np.ndarray, y_train_R: np.ndarray, fires_F: np.ndarray, k: int,
                    seed: int = SEED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The k of F random features that fire most differently on the two labels: their numbers, and what they are.

  A feature is max(0, x . d - t), with a direction d from a normal distribution and the threshold t at which it fires on
  so many training rows as is asked for (on all but one, if on all of them).

  Args:
    x_train_RM, x_test_RM: the rows.
    y_train_R: the labels of the training rows.
    fires_F: on how many training rows each feature fires.
    k: how many to choose.
    seed: of the directions.

  Returns:
    (index_K, f_train_RK, f_test_RK).
  """
  n_rows, width = x_train_RM.shape
  n_chunk = max(1, _CHUNK_BYTES // (8 * (n_rows + width)))
  found = []
  for i, first in enumerate(range(0, len(fires_F), n_chunk)):
    some_F = fires_F[first:first + n_chunk]
    d_MF = np.random.default_rng((seed, i)).standard_normal((width, len(some_F)), np.float32)
    h_RF = x_train_RM @ d_MF
    place_F = np.clip(n_rows - 1 - some_F, 0, n_rows - 1)
    t_F = np.take_along_axis(np.sort(h_RF, axis=0), place_F[None], axis=0)[0]
    f_RF = np.maximum(h_RF - t_F[None], 0)
    difference_F = differences(f_RF, y_train_R)
    best = _largest(difference_F, k)
    test_RJ = np.maximum(x_test_RM @ d_MF[:, best] - t_F[None, best], 0)
    found.append((difference_F[best], first + best, f_RF[:, best], test_RJ))
  difference_J, index_J, train_RJ, test_RJ = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
  best = _largest(difference_J, k)
  return index_J[best], train_RJ[:, best], test_RJ[:, best]


def summary(rows: Sequence[dict]) -> list[dict]:
  """The mean of the test AUC over data sets, with its standard error, for each method and k.

  Args:
    rows: what `probe_dataset` returned for several data sets, one after the other.

  Returns:
    Rows "method", "k", "datasets" (how many), "test_auc" (the mean), "test_auc_error" (the standard deviation over data
    sets divided by the square root of their number; None where there is one), likewise "test_accuracy" and "test_f1".
  """
  made = []
  for method, k in dict.fromkeys((row["method"], row["k"]) for row in rows):
    of = [row for row in rows if (row["method"], row["k"]) == (method, k)]
    facts: dict = {"method": method, "k": k, "datasets": len(of)}
    for name in ("test_auc", "test_accuracy", "test_f1"):
      values = np.array([row[name] for row in of])
      error = float(values.std(ddof=1) / len(of) ** 0.5) if len(of) > 1 else None
      facts |= {name: float(values.mean()), f"{name}_error": error}
    made.append(facts)
  return made


def _largest(value_F: np.ndarray, k: int) -> np.ndarray:
  """The places of the k largest values, the largest first; of equals the first."""
  return np.argsort(-value_F, kind="stable")[:k]


def _classifier(regularisation: str, inverse_penalty: float, seed: int) -> typing.Any:
  """scikit-learn's logistic regression with the solver that the protocol has for the penalty."""
  from sklearn.linear_model import LogisticRegression
  l1 = {"l1_ratio": 1.0, "solver": "saga"} if regularisation == "l1" else {}
  return LogisticRegression(C=inverse_penalty, random_state=seed, max_iter=_MAX_STEPS, **l1)


def _validation(y_R: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(rows to fit on, rows to validate on) of the training rows, once or several times; see `fit_probe`."""
  from sklearn.model_selection import LeavePOut, StratifiedKFold
  n_rows = len(y_R)
  if n_rows >= 128:
    n_fit = n_rows - min(n_rows // 5, _MAX_VALIDATION)
    yield np.arange(n_fit), np.arange(n_fit, n_rows)
    return
  folds = LeavePOut(2) if n_rows <= 12 else StratifiedKFold(6, shuffle=True, random_state=seed)
  for fit_R, held_R in folds.split(y_R[:, None], y_R):
    if len(np.unique(y_R[held_R])) == 2:
      yield fit_R, held_R
