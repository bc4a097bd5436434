"""What features do: the change of a subject's output when some features are removed, or take other values.

An activation x becomes x + (f' - f) W_dec, where f are the features that the dictionary finds in x and f' are those put
in their place. What the dictionary does not reconstruct of x stays as it is.

Letters: B rows, F features, M width of the activations, O outputs, P pairs of a row and a feature that fires there. In
this module S is selected features.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tail = Callable[[jax.Array], jax.Array]


def ablation_effects(tail: Tail, W_dec_FO: Any, x_BM: Any, f_BF: np.ndarray,
                     chunk: int = 16_384) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """How the output changes when a feature that fires is removed, for each of them by itself.

  Args:
    tail: x_BM -> y_BO, the part of the subject that comes after the site; it is compiled.
    W_dec_FO: the features' directions, in the units of the activations; here O is M.
    x_BM: the activations.
    f_BF: the features of the activations, on the host.
    chunk: how many pairs of a row and a feature are computed at a time.

  Returns:
    (row_P, feature_P, effect_PO): each pair of a row and a feature that fires on it, and the output without the feature
    minus the output with it.
  """
  row_P, feature_P = np.nonzero(f_BF)
  value_P = f_BF[row_P, feature_P]
  x_BM, W_dec_FO = jnp.asarray(x_BM), jnp.asarray(W_dec_FO)
  ablate = _ablating(tail)
  nothing_B = np.zeros(len(x_BM), "f4")
  base_BO = np.asarray(ablate(x_BM, W_dec_FO, np.arange(len(x_BM)), np.zeros(len(x_BM), int), nothing_B))
  found = []
  for first in range(0, len(row_P), chunk):
    part = slice(first, first + chunk)
    n = len(row_P[part])
    padded = [np.pad(column[part], (0, chunk - n)) for column in (row_P, feature_P, value_P)]
    found.append(np.asarray(ablate(x_BM, W_dec_FO, *padded))[:n] - base_BO[row_P[part]])
  return row_P, feature_P, np.concatenate(found) if found else np.zeros((0, base_BO.shape[1]))


@functools.lru_cache(maxsize=4)
def _ablating(tail: Tail) -> Callable[..., jax.Array]:
  """The compiled output of the subject for each pair, with the pair's feature removed from its row."""
  return jax.jit(lambda x_BM, W_dec_FO, row_P, feature_P, value_P:
                 tail(x_BM[row_P] - value_P[:, None] * W_dec_FO[feature_P]))


def patched(tail: Tail, W_dec_FO: Any, x_BM: Any, f_BF: np.ndarray, other_BF: np.ndarray,
            features_S: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """The output as it is, and the output when some features take the values that they have on other rows.

  Args:
    tail, W_dec_FO, x_BM, f_BF: as for `ablation_effects`.
    other_BF: the features of the other rows, one for each row.
    features_S: the numbers of the features that take other values.

  Returns:
    (y_BO before, y_BO after).
  """
  change_BS = other_BF[:, features_S] - f_BF[:, features_S]
  return _patching(tail)(x_BM, change_BS, jnp.asarray(W_dec_FO)[features_S])


@functools.lru_cache(maxsize=4)
def _patching(tail: Tail) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The compiled outputs of the subject before and after changes of some features are added to the activations."""
  return jax.jit(lambda x_BM, change_BS, W_dec_SM: (tail(x_BM), tail(x_BM + change_BS @ W_dec_SM)))


def attributions(tail: Tail, W_dec_FO: Any, x_BM: Any, f_BF: Any, other_BF: Any, n_points: int = 5) -> np.ndarray:
  """How much each feature contributes to the change of the output when all features take the values of other rows.

  These are integrated gradients (arXiv 1703.01365) along the straight line from a row's features to the other row's, by
  the midpoint rule. Up to the error of that rule, the contributions of a row's features add up to the change of the
  output that patching all of them makes.

  Args:
    tail, W_dec_FO, x_BM, f_BF, other_BF: as for `patched`. If there are several outputs, their sum counts.
    n_points: the number of points on the line at which the gradient is taken.

  Returns:
    The contributions, (B, F).
  """
  return np.asarray(_attributing(tail, n_points)(x_BM, other_BF - f_BF, W_dec_FO))


@functools.lru_cache(maxsize=4)
def _attributing(tail: Tail, n_points: int) -> Callable[..., jax.Array]:
  """The compiled contributions of features to the change of the output."""
  def contributions(x_BM: jax.Array, change_BF: jax.Array, W_dec_FO: jax.Array) -> jax.Array:
    slope_of = jax.grad(lambda x_BM: tail(x_BM).sum())
    move_BM = change_BF @ W_dec_FO
    slope_BM = sum(slope_of(x_BM + (i + 0.5) / n_points * move_BM) for i in range(n_points)) / n_points
    return change_BF * (slope_BM @ W_dec_FO.T)
  return jax.jit(contributions)
