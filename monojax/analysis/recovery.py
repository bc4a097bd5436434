"""How well a dictionary recovers planted features: scores against the truth.

Letters: B batch, N planted features, F learned ones, M width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_TINY_NORM = 1e-6  # rows shorter than this have no shrinkage


def cosines(a_FM, b_NM):
  """(F, N) cosines between the rows of two arrays; 0 for rows of zeros."""
  unit = lambda v: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
  return unit(np.asarray(a_FM, np.float32)) @ unit(np.asarray(b_NM, np.float32)).T


def direction_scores(W_dec_FO, direction_NM):
  """How well directions agree.

  Returns:
    "mcc": the mean |cosine| of pairs of one learned and one planted feature, in the pairing that makes it largest
    (Hungarian matching, arXiv 2505.20254; as many pairs as there are of the fewer). "mmcs_truth": over planted features
    the mean of the largest cosine with a learned one, a recall; "mmcs_learned": over learned ones, a precision
    (arXiv 2309.08600). "uniqueness": different planted features that are some learned one's best match, by |cosine|,
    over the number of learned ones.
  """
  from scipy.optimize import linear_sum_assignment
  cosine_FN = cosines(W_dec_FO, direction_NM)
  size_FN = np.abs(cosine_FN)
  pairs = linear_sum_assignment(size_FN, maximize=True)
  return {"mcc": float(size_FN[pairs].mean()), "mmcs_truth": float(cosine_FN.max(0).mean()),
          "mmcs_learned": float(cosine_FN.max(1).mean()),
          "uniqueness": len(np.unique(size_FN.argmax(1))) / len(cosine_FN)}


def recovery(model, params, source, n_batches, first_step=0):
  """Scores of a dictionary on batches of a `Synthetic` source.

  Args:
    model, params: the dictionary, for use on raw activations.
    source: `monojax.studies.synthetic.source.Synthetic`.
    n_batches: how many of its batches.
    first_step: the first one's number; those the dictionary was trained on flatter it.

  Returns:
    `direction_scores`, and: "l0", "true_l0" a row; "explained_variance", 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2);
    "shrinkage", the mean of |x_hat| / |x|; "dead_fraction", features that never fire here; "precision", "recall" and
    "f1" of each feature as a detector of its best match by |cosine| firing at all, averaged over features (0 where
    undefined); the definitions of SynthSAEBench (arXiv 2602.14687). "best_N", the largest cosine of each planted
    feature with a learned one.
  """
  direction_NM = np.asarray(source.planted.direction_NM)
  cosine_FN = cosines(params["W_dec_FO"], direction_NM)
  best_F = jnp.asarray(np.abs(cosine_FN).argmax(1))
  total = None
  for step in range(first_step, first_step + n_batches):
    counts = _counts(model, params, best_F, *source.truth(step))
    counts = jax.tree.map(lambda count: np.asarray(count, np.float64), counts)
    total = counts if total is None else jax.tree.map(np.add, total, counts)
  n_rows = total["rows"]
  ratio = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)
  precision_F = ratio(total["both_F"], total["fired_F"])
  recall_F = ratio(total["both_F"], total["true_F"])
  f1_F = ratio(2 * precision_F * recall_F, precision_F + recall_F)
  variance = total["square"] / n_rows - np.square(total["x_M"] / n_rows).sum()
  return {**direction_scores(params["W_dec_FO"], direction_NM),
          "l0": float(total["fired_F"].sum() / n_rows), "true_l0": float(total["active"] / n_rows),
          "explained_variance": float(1 - total["error"] / n_rows / max(variance, 1e-30)),
          "shrinkage": float(total["shrinkage"] / max(total["long_rows"], 1)),
          "dead_fraction": float((total["fired_F"] == 0).mean()),
          "precision": float(precision_F.mean()), "recall": float(recall_F.mean()), "f1": float(f1_F.mean()),
          "best_N": cosine_FN.max(0)}


def absorption(model, params, source, n_batches, first_step=0):
  """How often a planted feature's detector stays silent because a detector of its child stands in for it.

  For each child of the source's trees: its parent's detector is the feature of the largest cosine. Absorption is the
  part of the rows on which the child fires where the parent's detector does not, less that part on the rows on which
  the parent fires without this child (0 at least).

  Returns:
    (children,) absorption of each child, and NaN where one of the two kinds of rows does not occur.
  """
  config = source.planted.config
  child_J, parent_J = config.family()
  detector_J = jnp.asarray(cosines(params["W_dec_FO"], source.planted.direction_NM).argmax(0)[parent_J])
  total = sum(np.asarray(_silences(model, params, detector_J, parent_J, child_J, *source.truth(step)), float)
              for step in range(first_step, first_step + n_batches))
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.maximum(total[1] / total[0] - total[3] / total[2], 0)


@functools.partial(jax.jit, static_argnums=0)
def _counts(model, params, best_F, x_BM, truth_BN):
  """Sums over the rows that the scores are made of."""
  y_BM, f_BF = model.apply({"params": params}, x_BM)
  fires_BF, true_BF = f_BF > 0, truth_BN[:, best_F] > 0
  norm_B, length_B = jnp.linalg.norm(x_BM, axis=1), jnp.linalg.norm(y_BM, axis=1)
  long_B = norm_B > _TINY_NORM
  return {"rows": len(x_BM), "active": (truth_BN > 0).sum(), "x_M": x_BM.sum(0), "square": jnp.square(x_BM).sum(),
          "error": jnp.square(x_BM - y_BM).sum(), "both_F": (fires_BF & true_BF).sum(0), "fired_F": fires_BF.sum(0),
          "true_F": true_BF.sum(0), "long_rows": long_B.sum(),
          "shrinkage": jnp.where(long_B, length_B / jnp.maximum(norm_B, _TINY_NORM), 0).sum()}


@functools.partial(jax.jit, static_argnums=0)
def _silences(model, params, detector_J, parent_J, child_J, x_BM, truth_BN):
  """(4, J): rows on which a child fires, of these those without its parent's detector; the same of the parent alone."""
  f_BF = model.apply({"params": params}, x_BM, method="encode")
  silent_BJ, child_BJ = f_BF[:, detector_J] <= 0, truth_BN[:, child_J] > 0
  alone_BJ = (truth_BN[:, parent_J] > 0) & ~child_BJ
  return jnp.stack([child_BJ.sum(0), (child_BJ & silent_BJ).sum(0), alone_BJ.sum(0), (alone_BJ & silent_BJ).sum(0)])
