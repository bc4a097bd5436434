"""How features share dimensions: the geometry of superposition (Elhage et al., 2022).

Letters: I instances, N features, M dimensions; W_NM holds a feature's direction in each row.
"""

import numpy as np

# Dimensionalities of features in the polytopes of the paper, and the polytope (corners, dimensions).
POLYTOPES = {"dedicated": (1, 1), "tetrahedron": (4, 3), "triangle": (3, 2), "digon": (2, 1), "pentagon": (5, 2),
             "square antiprism": (8, 3)}
PREDICTED = {name: dimensions / corners for name, (corners, dimensions) in POLYTOPES.items()}
REPRESENTED = 0.1  # dimensionality from which on a feature counts as represented


def norms(W_NM):
  """|W_i|, how far each feature is represented: 0 to 1. Leading axes pass through, here and below."""
  return np.linalg.norm(W_NM, axis=-1)


def interference(W_NM):
  """sum over j != i of (W_i/|W_i| . W_j)^2: how much of other features is in each one's direction."""
  return _overlap(W_NM) - np.square(norms(W_NM))


def dimensionality(W_NM):
  """D_i = |W_i|^2 / sum over j of (W_i/|W_i| . W_j)^2: the part of a dimension that each feature has."""
  return np.square(norms(W_NM)) / np.maximum(_overlap(W_NM), 1e-12)


def _overlap(W_NM):
  unit_NM = W_NM / np.maximum(norms(W_NM), 1e-6)[..., None]
  return np.square(unit_NM @ np.swapaxes(W_NM, -1, -2)).sum(-1)


def dimensions_per_feature(W_NM):
  """D* = M / |W|_F^2: hidden dimensions for each feature that is represented."""
  return W_NM.shape[-1] / np.square(W_NM).sum((-2, -1))


def fraction_predicted(dimensionality_N, tolerance=0.02):
  """Of the represented features the part whose dimensionality is one of `PREDICTED`, within a tolerance."""
  represented_J = dimensionality_N[dimensionality_N >= REPRESENTED]
  nearest_J = np.abs(represented_J[:, None] - np.array(list(PREDICTED.values()))[None]).min(1)
  return float((nearest_J <= tolerance).mean()) if len(represented_J) else 0.0


def polytopes(W_NM, related=0.2):
  """The groups of features that share dimensions with each other and with no others.

  Two features are related where their directions have a cosine of at least `related` in size; a group is what such
  relations connect.

  Returns:
    A list of (features, dimensions, indices), the rank of the group's directions being its dimensions.
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


def name_of(n_features, n_dimensions):
  """What a group of features is called: a polytope, or "N in M"."""
  names = {shape: name for name, shape in POLYTOPES.items()}
  return names.get((n_features, n_dimensions), f"{n_features} in {n_dimensions}")
