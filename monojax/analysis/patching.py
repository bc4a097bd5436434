"""What features do: the change of a subject's output when some of them are removed, or given other values.

The reconstruction's error stays as it is: an activation x becomes x + (f' - f) W_dec, with f the features that the
dictionary finds in x and f' those put in their place.

Letters: B rows, P pairs of a row and a feature, M width, F features, S some of them, O outputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def ablation_effects(tail, W_dec_FO, x_BM, f_BF, chunk=16_384):
  """What removing each feature that fires, one at a time, does to the output.

  Args:
    tail: x_BM -> y_BO, the subject from the site on; to be traced.
    W_dec_FO: directions, in the units of the activations.
    x_BM: activations.
    f_BF: their features, on the host.
    chunk: pairs computed at once.

  Returns:
    (row_P, feature_P, effect_PO): each pair that fires, and the output without the feature less the one with it.
  """
  row_P, feature_P = np.nonzero(f_BF)
  value_P = f_BF[row_P, feature_P]
  x_BM, W_dec_FO = jnp.asarray(x_BM), jnp.asarray(W_dec_FO)
  run = _ablating(tail)
  base_BO = np.asarray(run(x_BM, W_dec_FO, np.arange(len(x_BM)), np.zeros(len(x_BM), int), np.zeros(len(x_BM), "f4")))
  found = []
  for first in range(0, len(row_P), chunk):
    part = slice(first, first + chunk)
    n = len(row_P[part])
    padded = [np.pad(column[part], (0, chunk - n)) for column in (row_P, feature_P, value_P)]
    found.append(np.asarray(run(x_BM, W_dec_FO, *padded))[:n] - base_BO[row_P[part]])
  return row_P, feature_P, np.concatenate(found) if found else np.zeros((0, base_BO.shape[1]))


@functools.lru_cache(maxsize=4)
def _ablating(tail):
  return jax.jit(lambda x_BM, W_dec_FO, row_P, feature_P, value_P:
                 tail(x_BM[row_P] - value_P[:, None] * W_dec_FO[feature_P]))


def patched(tail, W_dec_FO, x_BM, f_BF, other_BF, features_S):
  """(y_BO without, y_BO with some features' values taken from other rows); see the module.

  Args:
    tail: x_BM -> y_BO; to be traced.
    W_dec_FO: directions.
    x_BM, f_BF: activations and their features.
    other_BF: features of the rows to take values from.
    features_S: numbers of the features that are taken.
  """
  change_BS = other_BF[:, features_S] - f_BF[:, features_S]
  return _patching(tail)(x_BM, change_BS, jnp.asarray(W_dec_FO)[features_S])


@functools.lru_cache(maxsize=4)
def _patching(tail):
  return jax.jit(lambda x_BM, change_BS, W_dec_SM: (tail(x_BM), tail(x_BM + change_BS @ W_dec_SM)))


def attributions(tail, W_dec_FO, x_BM, f_BF, other_BF, n_points=5):
  """(B, F) what each feature contributes when all of them take the values of other rows.

  Integrated gradients (arXiv 1703.01365) along the straight line between the two, by the midpoint rule: a row's
  contributions add up to the change of the output that patching all features makes, but for the rule's error.

  Args:
    tail: x_BM -> y_BO; to be traced; outputs are added up.
    W_dec_FO, x_BM, f_BF, other_BF: as of `patched`.
    n_points: points on the line.
  """
  return np.asarray(_attributing(tail, n_points)(x_BM, other_BF - f_BF, W_dec_FO))


@functools.lru_cache(maxsize=4)
def _attributing(tail, n_points):
  def run(x_BM, change_BF, W_dec_FO):
    slope_of = jax.grad(lambda x_BM: tail(x_BM).sum())
    move_BM = change_BF @ W_dec_FO
    slope_BM = sum(slope_of(x_BM + (i + 0.5) / n_points * move_BM) for i in range(n_points)) / n_points
    return change_BF * (slope_BM @ W_dec_FO.T)
  return jax.jit(run)
