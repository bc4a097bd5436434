"""Rows with equal pre-activations: dense and sparse codes, on one device and on several, keep the same features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.sae.nonlinearity import BatchTopK, TopK

B, F = 32, 256


def tied(kind, seed, n_features=F):
  """Pre-activations, many of which are equal."""
  rng = np.random.default_rng(seed)
  h_BF = rng.normal(size=(B, n_features)).astype(np.float32)
  if kind == "zeros":
    h_BF *= rng.random(h_BF.shape) < 0.02
  elif kind == "all zero":
    h_BF[:] = 0
  elif kind == "duplicated":
    h_BF = h_BF[:, rng.integers(0, n_features // 8, n_features)]
  elif kind == "one value":
    h_BF[:] = 0.5
  elif kind == "few values":
    h_BF = np.round(2 * h_BF) / 2
  elif kind == "bfloat16":
    h_BF = np.asarray(jnp.asarray(h_BF, jnp.bfloat16), np.float32)
  elif kind == "negative":
    h_BF = -np.ceil(np.abs(h_BF))
  return h_BF


KINDS = ["none", "zeros", "all zero", "duplicated", "one value", "few values", "bfloat16", "negative"]


def by_hand(h_BF, k):
  """The k largest of each row, those above 0; of equal ones the first."""
  order_BF = np.argsort(-h_BF, axis=1, kind="stable")[:, :k]
  f_BF = np.zeros_like(h_BF)
  np.put_along_axis(f_BF, order_BF, np.maximum(np.take_along_axis(h_BF, order_BF, 1), 0), 1)
  return f_BF


@functools.partial(jax.jit, static_argnums=(0, 2))
def dense(nonlinearity, h_BF, mesh=None):
  return jnp.where(nonlinearity.keep(h_BF, {}, None, mesh), nonlinearity.value(h_BF, {}), 0.0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def sparse(nonlinearity, h_BF, mesh=None):
  """(features, whether the code holds all, as a step asks before it takes the code)."""
  slots = min(nonlinearity.room(0), h_BF.shape[1])
  h_VK, places, fits = nonlinearity.narrow(h_BF, {}, slots, mesh)
  keep = nonlinearity.keep(h_VK, {}, places, mesh)
  f_VK = nonlinearity.value(h_VK, {}, places)
  f_VK = f_VK if keep is None else jnp.where(keep, f_VK, 0.0)
  return jnp.zeros_like(h_BF).at[places.row_V[:, None], places.index_VK].add(f_VK, mode="drop"), fits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k, n_sparse, n_features", [(1, 0, F), (2, 8, 4 * F), (16, 0, F), (5, 20, 24), (24, 0, 24)])
def test_topk_keeps_the_same_k_features_in_every_form(kind, k, n_sparse, n_features):
  nonlinearity = TopK(k, n_sparse)
  for seed in range(3):
    h_BF = tied(kind, seed, n_features)
    expected = by_hand(h_BF, k)
    np.testing.assert_array_equal(dense(nonlinearity, h_BF), expected)
    np.testing.assert_array_equal(nonlinearity.encode(jnp.asarray(h_BF), {}), expected)
    assert (expected > 0).sum(1).max() <= k
    f_BF, fits = sparse(nonlinearity, h_BF)
    assert fits or kind not in ("none", "all zero", "negative")
    if fits:  # otherwise the step takes the dense code
      np.testing.assert_array_equal(f_BF, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_batchtopk_keeps_all_that_are_equal_at_the_cut_in_every_form(kind):
  nonlinearity = BatchTopK(4)
  for seed in range(3):
    h_BF = tied(kind, seed)
    above_N = np.sort(h_BF[h_BF > 0])[::-1]
    cut = above_N[min(4 * B, len(above_N)) - 1] if len(above_N) else np.inf
    expected = np.where(h_BF >= cut, h_BF, 0)
    np.testing.assert_array_equal(dense(nonlinearity, h_BF), expected)
    f_BF, fits = sparse(nonlinearity, h_BF)
    assert fits or kind in ("one value", "few values")
    if fits:
      np.testing.assert_array_equal(f_BF, expected)


@pytest.mark.parametrize("shape", [(4, 2), (1, 8), (8, 1)])
@pytest.mark.parametrize("kind", ["none", "duplicated", "few values", "one value"])
def test_a_mesh_changes_nothing(shape, kind):
  mesh, h_BF = meshes.make_mesh(meshes.MeshConfig(*shape)), tied(kind, 0)
  placed = meshes.on_mesh(h_BF, mesh, jax.P("data", "model"))
  for nonlinearity in (TopK(4), TopK(16), BatchTopK(4)):
    expected = dense(nonlinearity, h_BF)
    np.testing.assert_array_equal(dense(nonlinearity, placed, mesh), expected)
    f_BF, fits = sparse(nonlinearity, placed, mesh)
    if fits:
      np.testing.assert_array_equal(f_BF, expected)
