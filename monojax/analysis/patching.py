"""What features do: the change of a subject's output when some of them are removed, or given other values.

The reconstruction's error stays as it is: an activation x becomes x + (f' - f) W_dec, with f the features that the
dictionary finds in x and f' those put in their place. Sites that the dictionary writes besides are left out.

Letters: B rows, P pairs of a row and a feature, M width, F features, O outputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def ablation_effects(tail, W_dec_FM, x_BM, f_BF, chunk=16_384):
  """What removing each feature that fires, one at a time, does to the output.

  Args:
    tail: x_BM -> y_BO, the subject from the site on; to be traced.
    W_dec_FM: directions, in the units of the activations.
    x_BM: activations.
    f_BF: their features, on the host.
    chunk: pairs computed at once.

  Returns:
    (row_P, feature_P, effect_PO): each pair that fires, and the output without the feature less the one with it.
  """
  row_P, feature_P = np.nonzero(f_BF)
  value_P = f_BF[row_P, feature_P]
  x_BM, W_dec_FM = jnp.asarray(x_BM), jnp.asarray(W_dec_FM)
  run = _ablating(tail)
  base_BO = np.asarray(run(x_BM, W_dec_FM, np.arange(len(x_BM)), np.zeros(len(x_BM), int), np.zeros(len(x_BM), "f4")))
  found = []
  for first in range(0, len(row_P), chunk):
    part = slice(first, first + chunk)
    n = len(row_P[part])
    padded = [np.pad(column[part], (0, chunk - n)) for column in (row_P, feature_P, value_P)]
    found.append(np.asarray(run(x_BM, W_dec_FM, *padded))[:n] - base_BO[row_P[part]])
  return row_P, feature_P, np.concatenate(found) if found else np.zeros((0, base_BO.shape[1]))


@functools.cache
def _ablating(tail):
  return jax.jit(lambda x_BM, W_dec_FM, row_P, feature_P, value_P:
                 tail(x_BM[row_P] - value_P[:, None] * W_dec_FM[feature_P]))


def patched(tail, W_dec_FM, x_BM, f_BF, other_BF, feature_mask_F):
  """(y_BO without, y_BO with some features' values taken from other rows); see the module.

  Args:
    tail: x_BM -> y_BO; to be traced.
    W_dec_FM: directions.
    x_BM, f_BF: activations and their features.
    other_BF: features of the rows to take values from.
    feature_mask_F: which features are taken, or (B, F), which ones of each row.
  """
  change_BF = np.where(feature_mask_F, other_BF - f_BF, 0)
  return _patching(tail)(x_BM, change_BF, W_dec_FM)


@functools.cache
def _patching(tail):
  return jax.jit(lambda x_BM, change_BF, W_dec_FM: (tail(x_BM), tail(x_BM + change_BF @ W_dec_FM)))
