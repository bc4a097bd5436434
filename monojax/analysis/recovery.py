"""How well a dictionary recovers planted features: scores of what it has learned against the known truth.

Letters: B rows of a batch, F learned features, M width of a row, J children in trees of features. In this module N is
planted features.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from monojax.sae.model import Dictionary
from monojax.sae.nonlinearity import Params
from monojax.variance import joined, share_unexplained, spread

_TINY_NORM = 1e-6  # the ratio of norms that measures shrinkage leaves out rows shorter than this


class PlantedRows(Protocol):
  """A source of rows made of planted features, such as `monojax.studies.synthetic.source.Synthetic`.

  Attributes:
    planted: the planted features, with their directions `direction_NM` and their `config`.
  """

  @property
  def planted(self) -> Any: ...

  def truth(self, step: int) -> tuple[jax.Array, jax.Array]:
    """(x_BM, f_BN): the rows of batch number `step`, and the strength of each planted feature in them."""
    ...


def cosines(a_FM: Any, b_NM: Any) -> np.ndarray:
  """The cosines between the rows of two arrays, (F, N); those with a row of zeros are 0."""
  unit = lambda v: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
  return unit(np.asarray(a_FM, np.float32)) @ unit(np.asarray(b_NM, np.float32)).T


def direction_scores(W_dec_FO: Any, direction_NM: Any) -> dict[str, float]:
  """How well the directions of learned features agree with those of planted features.

  Args:
    W_dec_FO: the directions of the learned features.
    direction_NM: the directions of the planted features.

  Returns:
    * "mcc": the mean |cosine| between the learned and the planted feature of a pair, where features are paired off so
      that this mean is largest (Hungarian matching, arXiv 2505.20254). There are as many pairs as features on the side
      that has fewer.
    * "mmcs_truth": the largest cosine of a planted feature with any learned one, averaged over planted features
      (arXiv 2309.08600). It is low where planted features were not found.
    * "mmcs_learned": the largest cosine of a learned feature with any planted one, averaged over learned features. It
      is low where learned features are not planted ones.
    * "uniqueness": how many planted features are the best match, by |cosine|, of at least one learned feature, over the
      number of learned features. It is below 1 where several learned features have the same best match.
  """
  from scipy.optimize import linear_sum_assignment
  cosine_FN = cosines(W_dec_FO, direction_NM)
  size_FN = np.abs(cosine_FN)
  pairs = linear_sum_assignment(size_FN, maximize=True)
  return {"mcc": float(size_FN[pairs].mean()), "mmcs_truth": float(cosine_FN.max(0).mean()),
          "mmcs_learned": float(cosine_FN.max(1).mean()),
          "uniqueness": len(np.unique(size_FN.argmax(1))) / len(cosine_FN)}


def recovery(model: Dictionary, params: Params, source: PlantedRows, n_batches: int,
             first_step: int = 0) -> dict[str, Any]:
  """Scores of a dictionary on rows made of planted features.

  Args:
    model: the dictionary's model.
    params: its parameters, for use on raw activations.
    source: the rows and the truth about them.
    n_batches: how many batches to score on.
    first_step: the number of the first batch. Batches that the dictionary was trained on would flatter it.

  Returns:
    The scores of `direction_scores`, and, by the definitions of SynthSAEBench (arXiv 2602.14687),

    * "l0" and "true_l0": how many learned, and how many planted, features fire on a row on average;
    * "explained_variance": 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2), computed as `monojax.variance` says; None where all
      rows are equal;
    * "shrinkage": the mean of |x_hat| / |x|;
    * "dead_fraction": the fraction of features that fire on no row;
    * "precision", "recall" and "f1": how well a learned feature detects that the planted feature which is its best
      match by |cosine| fires, averaged over learned features. A score that is undefined counts as 0;
    * "best_N": the largest cosine of each planted feature with any learned one.
  """
  direction_NM = np.asarray(source.planted.direction_NM)
  cosine_FN = cosines(params["W_dec_FO"], direction_NM)
  best_F = jnp.asarray(np.abs(cosine_FN).argmax(1))
  total: Any = None
  rows = None
  for step in range(first_step, first_step + n_batches):
    counts = _counts(model, params, best_F, *source.truth(step))
    rows = joined(rows, counts.pop("spread"))
    counts = jax.tree.map(lambda count: np.asarray(count, np.float64), counts)
    total = counts if total is None else jax.tree.map(np.add, total, counts)
  n_rows = total["rows"]
  ratio = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)
  precision_F = ratio(total["both_F"], total["fired_F"])
  recall_F = ratio(total["both_F"], total["true_F"])
  f1_F = ratio(2 * precision_F * recall_F, precision_F + recall_F)
  assert rows is not None  # there is at least one batch
  unexplained = share_unexplained(total["error"], rows)
  return {**direction_scores(params["W_dec_FO"], direction_NM),
          "l0": float(total["fired_F"].sum() / n_rows), "true_l0": float(total["active"] / n_rows),
          "explained_variance": None if unexplained is None else 1 - unexplained,
          "shrinkage": float(total["shrinkage"] / max(total["long_rows"], 1)),
          "dead_fraction": float((total["fired_F"] == 0).mean()),
          "precision": float(precision_F.mean()), "recall": float(recall_F.mean()), "f1": float(f1_F.mean()),
          "best_N": cosine_FN.max(0)}


def absorption(model: Dictionary, params: Params, source: PlantedRows, n_batches: int,
               first_step: int = 0) -> np.ndarray:
  """How often the feature for a parent is silent because the feature for its child has absorbed it.

  In a tree of planted features a child fires only where its parent does, so that a dictionary can save a firing feature
  by letting the child's feature stand for both. For each child, the parent's feature is the learned one with the
  largest cosine. Absorption is the fraction of the rows with the child on which the parent's feature is silent, less
  the fraction of the rows with the parent but without this child on which it is silent; it is at least 0.

  Args:
    model, params, source, n_batches, first_step: as for `recovery`; the planted features form trees.

  Returns:
    The absorption of each child, (J,); NaN where one of the two kinds of rows does not occur.
  """
  config = source.planted.config
  child_J, parent_J = config.family()
  detector_J = jnp.asarray(cosines(params["W_dec_FO"], source.planted.direction_NM).argmax(0)[parent_J])
  counts = [np.asarray(_silences(model, params, detector_J, parent_J, child_J, *source.truth(step)), float)
            for step in range(first_step, first_step + n_batches)]
  total = np.sum(counts, axis=0)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.maximum(total[1] / total[0] - total[3] / total[2], 0)


@functools.partial(jax.jit, static_argnums=0)
def _counts(model: Dictionary, params: Params, best_F: jax.Array, x_BM: jax.Array,
            truth_BN: jax.Array) -> dict[str, Any]:
  """The sums over the rows of a batch that the scores are computed from."""
  y_BM, f_BF = model.apply({"params": params}, x_BM)
  fires_BF, true_BF = f_BF > 0, truth_BN[:, best_F] > 0
  norm_B, length_B = jnp.linalg.norm(x_BM, axis=1), jnp.linalg.norm(y_BM, axis=1)
  long_B = norm_B > _TINY_NORM
  return {"rows": len(x_BM), "active": (truth_BN > 0).sum(), "spread": spread(x_BM),
          "error": jnp.square(x_BM - y_BM).sum(), "both_F": (fires_BF & true_BF).sum(0), "fired_F": fires_BF.sum(0),
          "true_F": true_BF.sum(0), "long_rows": long_B.sum(),
          "shrinkage": jnp.where(long_B, length_B / jnp.maximum(norm_B, _TINY_NORM), 0).sum()}


@functools.partial(jax.jit, static_argnums=0)
def _silences(model: Dictionary, params: Params, detector_J: jax.Array, parent_J: np.ndarray, child_J: np.ndarray,
              x_BM: jax.Array, truth_BN: jax.Array) -> jax.Array:
  """Counts of rows for each child, (4, J).

  They are the rows on which the child fires, and those of them on which its parent's feature is silent; then the rows
  on which the parent fires without this child, and those of them on which its feature is silent.
  """
  f_BF = model.apply({"params": params}, x_BM, method="encode")
  silent_BJ, child_BJ = f_BF[:, detector_J] <= 0, truth_BN[:, child_J] > 0
  alone_BJ = (truth_BN[:, parent_J] > 0) & ~child_BJ
  return jnp.stack([child_BJ.sum(0), (child_BJ & silent_BJ).sum(0), alone_BJ.sum(0), (alone_BJ & silent_BJ).sum(0)])
