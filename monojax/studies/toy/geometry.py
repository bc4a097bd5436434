"""The geometry of superposition: how the features of a toy model share its dimensions (Elhage et al., 2022).

The arrays `W_NM` hold the direction of each feature in a row. Leading axes, for instance one for several models, pass
through the functions that take them.

Letters: M hidden dimensions, J the features that are represented. In this module N is features.
"""

import numpy as np

# The polytopes that the paper names, as (corners, dimensions); and the part of a dimension that each corner has.
POLYTOPES = {"dedicated": (1, 1), "tetrahedron": (4, 3), "triangle": (3, 2), "digon": (2, 1), "pentagon": (5, 2),
             "square antiprism": (8, 3)}
PREDICTED = {name: dimensions / corners for name, (corners, dimensions) in POLYTOPES.items()}
REPRESENTED = 0.1  # a feature with at least this dimensionality counts as represented


def norms(W_NM: np.ndarray) -> np.ndarray:
  """How far each feature is represented: |W_i|, from 0 for not at all to 1."""
  return np.linalg.norm(W_NM, axis=-1)


def interference(W_NM: np.ndarray) -> np.ndarray:
  """How much of other features there is in each feature's direction: sum over j != i of (W_i/|W_i| . W_j)^2."""
  return _overlap(W_NM) - np.square(norms(W_NM))


def dimensionality(W_NM: np.ndarray) -> np.ndarray:
  """The part of a dimension that each feature has: D_i = |W_i|^2 / sum over j of (W_i/|W_i| . W_j)^2."""
  return np.square(norms(W_NM)) / np.maximum(_overlap(W_NM), 1e-12)


def _overlap(W_NM: np.ndarray) -> np.ndarray:
  """For each feature the sum over j of (W_i/|W_i| . W_j)^2."""
  unit_NM = W_NM / np.maximum(norms(W_NM), 1e-6)[..., None]
  return np.square(unit_NM @ np.swapaxes(W_NM, -1, -2)).sum(-1)


def dimensions_per_feature(W_NM: np.ndarray) -> np.ndarray:
  """How many hidden dimensions there are for each feature that is represented: D* = M / |W|_F^2."""
  return W_NM.shape[-1] / np.square(W_NM).sum((-2, -1))


def fraction_predicted(dimensionality_N: np.ndarray, tolerance: float = 0.02) -> float:
  """The fraction of the represented features whose dimensionality is one of `PREDICTED`, up to a tolerance."""
  represented_J = dimensionality_N[dimensionality_N >= REPRESENTED]
  nearest_J = np.abs(represented_J[:, None] - np.array(list(PREDICTED.values()))[None]).min(1)
  return float((nearest_J <= tolerance).mean()) if len(represented_J) else 0.0


def polytopes(W_NM: np.ndarray, related: float = 0.2) -> list[tuple[int, int, np.ndarray]]:
  """The groups of features that share dimensions with each other and with no others.

  Two features are related if the |cosine| between their directions is at least `related`. A group is all features that
  relations connect, directly or through others.

  Returns:
    For each group the number of its features, the number of its dimensions, which is the rank of its directions, and
    the numbers of its features.
  """
  from scipy.sparse.csgraph import connected_components
  index_J = np.flatnonzero(dimensionality(W_NM) >= REPRESENTED)
  if not len(index_J):
    return []
  W_JM = W_NM[index_J]
  unit_JM = W_JM / norms(W_JM)[:, None]
  _, label_J = connected_components(np.abs(unit_JM @ unit_JM.T) >= related, directed=False)
  groups = []
  for label in range(label_J.max() + 1):
    inside = label_J == label
    values = np.linalg.svd(unit_JM[inside], compute_uv=False)
    groups.append((int(inside.sum()), int((values > 0.2 * values[0]).sum()), index_J[inside]))
  return groups


def name_of(n_features: int, n_dimensions: int) -> str:
  """The name of a group of features: that of its polytope, or, for instance, "7 in 3"."""
  names = {shape: name for name, shape in POLYTOPES.items()}
  return names.get((n_features, n_dimensions), f"{n_features} in {n_dimensions}")
