"""The control with random weights: a trained subject whose weights have lost their order.

What a dictionary finds in such a subject it owes to the text and to the sizes of the weights, not to what was learnt.
"""

import dataclasses

import numpy as np

from monojax import mesh as meshes
from monojax.subjects.subject import LoadedSubject

_TOGETHER = {"W_qkv_DE": 3}  # matrices that stand side by side in one array


def shuffled(subject: LoadedSubject, seed: int) -> LoadedSubject:
  """A subject that was trained here with the entries of each weight matrix in random order, embeddings included.

  Gains and biases stay. The recipe is that of Towards Monosemanticity.

  Args:
    subject: the trained subject.
    seed: of the order.

  Returns:
    The control, its parameters on the host.
  """
  rng = np.random.default_rng(seed)

  def mixed(params: dict) -> dict:
    return {name: mixed(value) if isinstance(value, dict) else _mixed(rng, value, _TOGETHER.get(name, 1))
            for name, value in sorted(params.items())}

  return dataclasses.replace(subject, params=mixed(meshes.to_host(subject.params)))


def _mixed(rng: np.random.Generator, weights: np.ndarray, n_matrices: int) -> np.ndarray:
  """The entries of each matrix of an array in random order; an array of one axis stays as it is."""
  if weights.ndim < 2:
    return weights
  return np.concatenate([rng.permutation(part.ravel()).reshape(part.shape)
                         for part in np.split(weights, n_matrices, axis=1)], axis=1)
