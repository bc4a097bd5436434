"""Maps of features: dictionaries' directions laid out in the plane, in clusters, and in one line, by UMAP.

The recipe is that of Towards Monosemanticity ("Feature Clustering", and the interface's list of features): UMAP of the
directions in two dimensions by cosine for the picture; HDBSCAN on a UMAP of ten dimensions for clusters; and a UMAP of
one dimension of what is in no cluster and of one feature of each cluster for the order of a list.

The extra `maps` has what it needs.

Letters: P features, of one dictionary or of several; O width of what they write; K dimensions; I items of the list, C
clusters, D domains.
"""

import dataclasses
import typing
import warnings

import numpy as np

from monojax.analysis.config import MapConfig
from monojax.config import InputError, require

ALONE = -1  # the cluster of a feature that is in none
_WIDE, _WIDE_DISTANCE = 10, 0.1  # dimensions in which clusters are looked for, and UMAP's min_dist there


@dataclasses.dataclass(frozen=True)
class FeatureMap:
  """Where features lie.

  Attributes:
    dictionary_P: which of the dictionaries a feature is of, a number that counts them from 0.
    feature_P: its number in that dictionary.
    place_P2: float32, where it lies in the plane.
    cluster_P: the number of its cluster, counted from 0; -1 where it is in none. Number 0 is the first in the list.
    order_P: the places 0 to P - 1 in one list in which like features stand together and clusters are whole.
  """
  dictionary_P: np.ndarray
  feature_P: np.ndarray
  place_P2: np.ndarray
  cluster_P: np.ndarray
  order_P: np.ndarray

  @property
  def n_clusters(self) -> int:
    """The number of clusters."""
    return int(self.cluster_P.max(initial=ALONE)) + 1


def make_map(config: MapConfig, directions: typing.Sequence[np.ndarray],
             features: typing.Sequence[np.ndarray]) -> FeatureMap:
  """Lays out the features of dictionaries that write the same sites.

  Args:
    config: UMAP's settings, and the smallest cluster.
    directions: for each dictionary the directions of all its features, of shape (F, O); their lengths are no matter.
    features: for each dictionary the numbers of the features that are laid out.

  Raises:
    InputError: umap-learn is not installed, there are too few features, or dictionaries differ in width.
  """
  widths = {direction_FO.shape[1] for direction_FO in directions}
  require(len(widths) == 1, "dictionaries", sorted(widths), "must all write as many numbers")
  points_PO = np.concatenate([direction_FO[of_J] for direction_FO, of_J in zip(directions, features, strict=True)])
  require(len(points_PO) > config.n_neighbors, "n_neighbors", config.n_neighbors,
          f"must be below the number of features that are laid out, {len(points_PO)}")
  points_PO = unit(points_PO)
  order_P, cluster_P = in_one_line(points_PO, clusters(config, points_PO),
                                   lambda items_IO: _umap(items_IO, config, 1, config.min_dist))
  return FeatureMap(np.repeat(np.arange(len(features)), [len(of_J) for of_J in features]), np.concatenate(features),
                    _umap(points_PO, config, 2, config.min_dist), cluster_P, order_P)


def unit(points_PO: np.ndarray) -> np.ndarray:
  """Directions scaled to length 1."""
  return points_PO / np.linalg.norm(points_PO, axis=1, keepdims=True)


def clusters(config: MapConfig, points_PO: np.ndarray) -> np.ndarray:
  """The cluster of each direction of length 1, -1 for none: HDBSCAN on a UMAP of ten dimensions.

  Raises:
    InputError: umap-learn is not installed.
  """
  n_dimensions = min(_WIDE, points_PO.shape[1], len(points_PO) - 2)
  wide_PK = _umap(points_PO, config, n_dimensions, _WIDE_DISTANCE)
  from sklearn.cluster import HDBSCAN
  return HDBSCAN(min_cluster_size=config.min_cluster_size, copy=True).fit_predict(wide_PK)


def commonest_share(domain_P: np.ndarray, cluster_P: np.ndarray) -> float:
  """The share of features, all of them in a cluster, whose domain is the commonest one of their cluster."""
  counts_CD = np.zeros((cluster_P.max() + 1, domain_P.max() + 1), np.int64)
  np.add.at(counts_CD, (cluster_P, domain_P), 1)
  return float(counts_CD.max(1).sum() / len(domain_P))


def in_one_line(points_PO: np.ndarray, cluster_P: np.ndarray,
                lay_out: typing.Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Features in one list, in which a cluster takes the place of its medoid.

  The medoid of a cluster is its feature with the largest sum of cosines with the others. In the list a cluster's
  features stand in falling order of their cosine with it.

  Args:
    points_PO: the features' directions, of length 1.
    cluster_P: their clusters, -1 for none.
    lay_out: from the directions of the items, which are the features in no cluster and the medoids, to a place of
      each on a line, of shape (I, 1).

  Returns:
    (the place of each feature in the list, the clusters numbered by their places in it).
  """
  clusters = [np.flatnonzero(cluster_P == number) for number in range(cluster_P.max(initial=ALONE) + 1)]
  items = [np.asarray([i]) for i in np.flatnonzero(cluster_P == ALONE)]
  for members_J in clusters:
    cosine_J = points_PO[members_J] @ points_PO[members_J].sum(0)
    medoid = members_J[cosine_J.argmax()]
    items.append(members_J[np.argsort(-(points_PO[members_J] @ points_PO[medoid]), kind="stable")])
  line_I = lay_out(points_PO[[members_J[0] for members_J in items]])[:, 0]
  listed = [items[i] for i in np.argsort(line_I, kind="stable")]
  order_P = np.empty(len(points_PO), np.int64)
  order_P[np.concatenate(listed)] = np.arange(len(points_PO))
  numbered_P = np.full(len(points_PO), ALONE)
  for number, members_J in enumerate(members_J for members_J in listed if cluster_P[members_J[0]] != ALONE):
    numbered_P[members_J] = number
  return order_P, numbered_P


def _umap(points_PO: np.ndarray, config: MapConfig, n_dimensions: int, min_dist: float) -> np.ndarray:
  """UMAP of points by cosine, float32 of shape (P, K)."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # a library of umap-learn's says that a better one exists
      import umap
  except ImportError as error:
    raise InputError("a map of features needs umap-learn: pip install 'monojax[maps]'") from error
  n_neighbors = min(config.n_neighbors, len(points_PO) - 1)
  if len(points_PO) <= n_dimensions + 1 or n_neighbors < 2:  # too few for UMAP
    return np.zeros((len(points_PO), n_dimensions), np.float32)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a seed makes UMAP use one thread, which it warns of
    # Its usual start, by eigenvectors, fails on graphs of few points.
    return umap.UMAP(n_neighbors=n_neighbors, n_components=n_dimensions, metric="cosine", min_dist=min_dist,
                     random_state=config.seed, init="pca" if len(points_PO) < 4 * n_dimensions + 16 else "spectral",
                     ).fit_transform(points_PO)
