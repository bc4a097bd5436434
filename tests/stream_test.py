"""The stream: the rows that a store of the same settings would hold, each once an epoch, from any step on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.activations.config import HarvestConfig
from monojax.activations.harvest import sampled
from monojax.activations.origin import Order
from monojax.activations.stream import Stream
from monojax.config import InputError
from monojax.subjects.config import TransformerConfig
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

T, M, N_CONTEXTS, B = 10, 24, 130, 40
SITE = "layer.0.mlp.hidden"


@pytest.fixture(scope="module")
def subject():
  """(model, parameters, tokens, its activations of every token (N, M))."""
  model = Transformer(TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=M, vocab_size=31))
  params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  ids_N = np.random.default_rng(0).integers(0, 31, N_CONTEXTS * T + 3).astype(np.uint16)
  tokens = Tokens("train", ids_N, np.arange(0, len(ids_N), 37), np.zeros(36, np.int32), ("a",), 31, 0, len(ids_N))
  sites = model.apply({"params": params}, tokens.context(np.arange(N_CONTEXTS), T))[1]
  return model, params, tokens, np.asarray(sites[SITE]).reshape(-1, M)


def stream_of(subject, n_devices=1, buffer_rows=200, batch_rows=B, seed=0, **settings):
  config = HarvestConfig(source="stream", dtype="float32", **{"batch_contexts": 8, **settings})
  mesh = meshes.make_mesh(meshes.MeshConfig(data=n_devices))
  return Stream(config, LoadedSubject(*subject[:2], T), subject[2], Order(batch_rows, buffer_rows, seed), mesh)


@pytest.mark.parametrize("n_devices, n_lanes, batch_rows, buffer_rows, per_context, batch_contexts", [
    (1, 8, B, 200, 0, 8), (1, 8, B, 199, 3, 8), (1, 1, 41, 10**6, 0, 64), (1, 1, 33, 30, 0, 64), (4, 8, B, 200, 0, 8),
    (8, 8, B, 300, 7, 6), (3, 3, 39, 300, 7, 6)])
def test_an_epoch_is_every_row_once(subject, n_devices, n_lanes, batch_rows, buffer_rows, per_context, batch_contexts):
  stream = stream_of(subject, n_devices, buffer_rows, batch_rows, tokens_per_context=per_context,
                     batch_contexts=batch_contexts)
  kept = per_context or T
  assert stream.n_rows == N_CONTEXTS // n_lanes * n_lanes * kept and stream.width == M
  n_steps = 2 * stream.n_rows // batch_rows + 1
  position_SB = np.stack([stream.positions(step) for step in range(n_steps)])
  x_SBM = np.stack([np.asarray(stream.batch(step)) for step in range(n_steps)])
  np.testing.assert_allclose(x_SBM, subject[3][position_SB], atol=1e-5)
  # A lane's rows of all batches are one sequence, its epochs one after the other.
  of_lane_LN = position_SB.reshape(n_steps, n_lanes, -1).swapaxes(0, 1).reshape(n_lanes, -1)
  n = stream.n_rows // n_lanes
  first, second = of_lane_LN[:, :n], of_lane_LN[:, n:2 * n]
  for epoch in (first, second):
    assert len(np.unique(epoch)) == stream.n_rows
    assert np.all(np.unique(np.bincount(epoch.reshape(-1) // T)) <= kept)
  assert np.mean(first == second) < 0.1
  if n_lanes == 1:
    np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_batches_are_the_same_on_other_numbers_of_devices(subject):
  one = stream_of(subject, 1)
  for n_devices in (2, 4, 8):
    other = stream_of(subject, n_devices)
    for step in (0, 5, 33, 70):
      np.testing.assert_array_equal(other.positions(step), one.positions(step))
      np.testing.assert_allclose(np.asarray(other.batch(step)), np.asarray(one.batch(step)), atol=1e-5)


def test_a_batch_depends_on_nothing_but_its_step(subject):
  stream, other = stream_of(subject), stream_of(subject)
  for step in (7, 0, 70, 3, 4, 7):
    jax.tree.map(np.testing.assert_array_equal, stream.batch(step), other.batch(step))
  other.batch(50)
  np.testing.assert_array_equal(stream.batch(8), other.batch(8))
  assert not np.array_equal(stream.batch(8), stream_of(subject, seed=1).batch(8))


def test_neighbours_come_from_many_contexts(subject):
  position_B = stream_of(subject, buffer_rows=600, batch_rows=200).positions(1)
  assert len(np.unique(position_B // T)) > 52  # of the window's 56
  assert abs(np.corrcoef(position_B[:-1], position_B[1:])[0, 1]) < 0.2


def test_batches_stay_on_the_mesh(subject):
  stream = stream_of(subject, 4)
  stream.batch(0)
  with jax.transfer_guard_device_to_host("disallow"):
    x_BM = stream.batch(1)
    stream.batch(40)
  assert x_BM.sharding.spec[0] == "data" and x_BM.sharding.mesh.shape["data"] == 4


def test_a_sample_is_of_different_rows(subject):
  for n_rows in (50, 10**6):
    x_NM = stream_of(subject, tokens_per_context=6).sample(n_rows, 3)
    assert x_NM.shape == (min(n_rows, N_CONTEXTS * 6), M)
    distance = np.abs(x_NM[:, None] - subject[3][None]).max(-1)
    assert distance.min(1).max() < 1e-5
    # Equal tokens at the start of contexts have equal activations.
    drawn_N, there_N = np.bincount(distance.argmin(1), minlength=N_CONTEXTS * T), np.zeros(N_CONTEXTS * T, int)
    for row in np.flatnonzero(drawn_N):
      there_N[row] = (np.abs(subject[3] - subject[3][row]).max(1) < 1e-5).sum()
    assert np.all(drawn_N <= there_N)


def test_settings_that_cannot_be_followed_are_named(subject):
  with pytest.raises(InputError, match="sae.buffer_rows=79"):
    stream_of(subject, 4, 79)
  with pytest.raises(InputError, match="activations.tokens_per_context=11"):
    stream_of(subject, tokens_per_context=11)
  with pytest.raises(InputError, match="mesh.data=8"):
    stream_of(subject, 8, batch_rows=41)
  with pytest.raises(InputError, match="activations.site"):
    stream_of(subject, site="layer.7.mlp.hidden")


def test_the_subject_runs_no_further_than_the_site():
  """Operations of the compiled program: those up to the site, not the MLP's second matrix or the unembedding."""
  n_vocab, n_contexts, d_model = 5000, 4, 16
  model = Transformer(TransformerConfig(n_layers=2, d_model=d_model, n_heads=2, d_mlp=M, vocab_size=n_vocab))
  tokens_BT = jnp.zeros((n_contexts, T), jnp.int32)
  params = model.init(jax.random.key(0), tokens_BT)["params"]

  def operations(function):
    return jax.jit(function).lower(params, tokens_BT).compile().cost_analysis()["flops"]
  place_BR1 = jnp.zeros((n_contexts, 3, 1), jnp.int32)
  whole = operations(lambda params, tokens_BT: model.apply({"params": params}, tokens_BT)[0])
  first, both = (operations(lambda params, tokens_BT, site=site: sampled(model, params, (site,), tokens_BT, place_BR1))
                 for site in (SITE, "layer.1.mlp.hidden"))
  n_tokens = n_contexts * T
  assert whole > 2 * n_tokens * d_model * n_vocab > 10 * both
  # One layer less: four matrices of the attention and two of the MLP.
  assert both - first > 2 * n_tokens * (4 * d_model**2 + 2 * d_model * M)
