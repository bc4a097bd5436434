"""Rows that are many times longer than the median: none is stored, streamed, measured or changed."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kept_test import T, pair, tokens_with  # noqa: F401  (pair is a fixture)

from monojax import mesh as meshes
from monojax.activations import harvest
from monojax.activations.config import HarvestConfig
from monojax.activations.contexts import Contexts
from monojax.activations.kept import Kept
from monojax.activations.origin import Order
from monojax.activations.store import ActivationStore
from monojax.activations.stream import Stream, open_source
from monojax.analysis import fidelity, interventions
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Dictionary, Wiring

LONG = 7  # the token at which activations are long
SITE, M = "embed", 16


@pytest.fixture(scope="module")
def with_sinks(pair):  # noqa: F811
  """A subject whose residual stream is 300 times as long at one token as elsewhere, and a dictionary of it."""
  subject, _ = pair
  W_embed_VD = np.array(subject.params["W_embed_VD"])
  W_embed_VD[LONG] *= 300
  model = Dictionary(Wiring((M,)), 40)
  sae = SAE(SAEConfig(n_features=40), model, model.init(jax.random.key(1), jnp.zeros((1, M)))["params"], (SITE,))
  return dataclasses.replace(subject, params={**subject.params, "W_embed_VD": jnp.asarray(W_embed_VD)}), sae


def rows_of(subject, tokens_BT):
  return np.asarray(subject.model.apply({"params": subject.params}, tokens_BT)[1][SITE])


def test_long_rows_give_way_to_the_next_of_their_context():
  rng = np.random.default_rng(0)
  acts_BRM = rng.normal(size=(40, 6, 5)).astype(np.float32)
  acts_BRM[rng.random((40, 6)) < 0.4] *= 100
  acts_BRM[0] *= 1e4  # of which no row is short enough
  limits = {"a": 4.0, "b": 6.0}
  found, slot_BR = harvest.within(jnp.asarray(acts_BRM), {"a": 2, "b": 3}, limits)
  fits = (np.linalg.norm(acts_BRM[..., :2], axis=-1) <= 4) & (np.linalg.norm(acts_BRM[..., 2:], axis=-1) <= 6)
  assert not fits[0].any() and 0.2 < fits.mean() < 0.8
  for b in range(40):
    for r in range(6):
      expected = next((j % 6 for j in range(r, r + 6) if fits[b, j % 6]), r)
      assert slot_BR[b, r] == expected
      np.testing.assert_array_equal(found[b, r], acts_BRM[b, expected])
  np.testing.assert_array_equal(harvest.within(jnp.asarray(acts_BRM), {"a": 2, "b": 3}, {})[0], acts_BRM)


@pytest.mark.parametrize("n_devices", [1, 4])
def test_store_and_stream_have_no_long_rows(tmp_path, with_sinks, n_devices):
  subject, _ = with_sinks
  tokens, mesh = tokens_with(prefix=()), meshes.make_mesh(meshes.MeshConfig(data=n_devices))
  config = HarvestConfig(site=SITE, dtype="float32", batch_contexts=8, shard_rows=256, chunk_rows=64, first_position=0,
                         norm_limit=10.0)
  limits, left_out = harvest.norm_limits(config, subject, tokens, mesh)
  assert left_out.endswith("(activations.norm_limit)")
  every_BTM = rows_of(subject, tokens.context(np.arange(tokens.contexts(T)), T))
  norm_BT = np.linalg.norm(every_BTM, axis=-1)
  assert 5 < limits[SITE] / np.median(norm_BT) < 15
  is_long_BT = tokens.context(np.arange(tokens.contexts(T)), T) == LONG
  np.testing.assert_array_equal(norm_BT > limits[SITE], is_long_BT)
  assert is_long_BT.sum() > 5
  placed = subject.placed(mesh)
  harvest.harvest(config, placed, tokens, tmp_path / "store", {}, mesh, limits)
  store = ActivationStore.open(tmp_path / "store", {})
  token_N, document_N, offset_N, _ = np.asarray(store.places(0, store.n_rows)).T
  assert store.n_rows == norm_BT.size and LONG not in token_N
  position_N = tokens.start_D[document_N] + offset_N  # the place of each row is where it is from
  np.testing.assert_allclose(store.rows(0, store.n_rows), every_BTM.reshape(-1, M)[position_N], atol=1e-4)
  stream = Stream(dataclasses.replace(config, source="stream"), subject, tokens, Order(24, 240, 0), mesh)
  assert stream.norm_limits.keys() == {SITE}
  batches = np.concatenate([np.asarray(stream.batch(step)) for step in range(20)])
  assert np.linalg.norm(batches, axis=1).max() <= limits[SITE]


@pytest.mark.parametrize("read", [("layer.0.attn.out",), ("layer.0.attn.out", "layer.0.resid")])
def test_a_stream_of_one_of_several_sites_leaves_out_what_is_too_long_at_another(with_sinks, read):
  """As the store of the run does, and as its dictionaries are measured."""
  subject, _ = with_sinks
  tokens, mesh = tokens_with(prefix=()), meshes.make_mesh(meshes.MeshConfig(data=4))
  sites = ("layer.0.attn.out", SITE, "layer.0.resid")
  config = HarvestConfig(site=sites[0], more_sites=sites[1:], source="stream", dtype="float32", batch_contexts=8,
                         first_position=0, norm_limit=10.0)
  origin = types.SimpleNamespace(config=config, subject=lambda sites, mesh: subject, tokens=lambda: tokens)
  whole, part = (open_source(origin, sites, Order(24, 240, 0), mesh) for sites in (sites, read))
  assert part.norm_limits.keys() == set(sites) and part.width == sum(part.widths)
  columns = np.concatenate([np.arange(first, first + width) for site, first, width in zip(
      sites, np.cumsum((0, *whole.widths)), whole.widths, strict=False) if site in read])
  limit = whole.norm_limits[SITE]
  for step in range(20):
    x_BM = np.asarray(whole.batch(step))
    at = whole.widths[0]
    assert np.linalg.norm(x_BM[:, at:at + whole.widths[1]], axis=1).max() <= limit
    np.testing.assert_allclose(part.batch(step), x_BM[:, columns], atol=1e-6)
  np.testing.assert_allclose(part.sample(50, 0), whole.sample(50, 0)[:, columns], atol=1e-6)


def test_batches_of_whole_contexts_leave_out_what_is_too_long_at_another_site(with_sinks):
  subject, _ = with_sinks
  tokens, mesh = tokens_with(prefix=()), meshes.make_mesh(meshes.MeshConfig(data=1))
  sites = ("layer.0.attn.out", SITE)
  config = HarvestConfig(site=sites[0], more_sites=sites[1:], source="stream", batch_contexts=8, first_position=0,
                         norm_limit=10.0)
  origin = types.SimpleNamespace(config=config, subject=lambda sites, mesh: subject, tokens=lambda: tokens)
  whole, part = (Contexts(origin, read, read[:1], Order(4 * T, 240, 0), 1, mesh) for read in (sites, sites[:1]))
  n, n_long = part.widths[0], 0
  for step in range(6):
    (x_BM, (tokens_CT, at_CR, last_CRD)), (y_BM, (_, at_too_CR, last_too_CRD)) = (
        source.batch_in_context(step) for source in (whole, part))
    np.testing.assert_allclose(y_BM, x_BM[:, :n], atol=1e-6)
    np.testing.assert_array_equal(at_CR, at_too_CR)
    np.testing.assert_allclose(last_CRD, last_too_CRD, atol=1e-6)
    n_long += int((np.asarray(tokens_CT) == LONG).sum())
    assert (np.take_along_axis(np.asarray(tokens_CT), np.asarray(at_too_CR), axis=1) != LONG).all()
  assert n_long


def test_rows_that_are_no_numbers_do_not_give_way():
  """They would never be seen: the harvest refuses them."""
  acts_BRM = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  acts_BRM[0, 1, 2] = np.nan
  found, slot_BR = harvest.within(jnp.asarray(acts_BRM), {"a": 3}, {"a": 100.0})
  np.testing.assert_array_equal(found, acts_BRM)
  assert np.isnan(found[0, 1, 2])
  counts_BT = Kept(norm_limits=(("a", 100.0),)).counts(np.zeros((2, 4), np.int32), {"a": jnp.asarray(acts_BRM)})
  assert np.asarray(counts_BT).all()


@pytest.mark.parametrize("read", [SITE, "layer.0.attn.out"])  # where rows are long, or another site of the run
def test_dictionaries_are_neither_measured_nor_spliced_in_at_long_rows(with_sinks, read):
  subject, sae = with_sinks
  sae = SAE(sae.config, sae.model, sae.params, (read,))
  tokens, mean_M = tokens_with(prefix=()), np.full(M, 0.2)
  tokens_BU = tokens.context(tokens.choose(T + 1, 600), T + 1)
  limit = 10 * float(np.median(np.linalg.norm(rows_of(subject, tokens_BU[:, :-1]), axis=-1)))
  by_norm = fidelity.fidelity(subject, sae, mean_M, tokens, 600, 16, kept=Kept(norm_limits=((SITE, limit),)))
  by_token = fidelity.fidelity(subject, sae, mean_M, tokens, 600, 16, kept=Kept(0, (LONG,)))
  assert by_norm["n_tokens"] == by_token["n_tokens"] < tokens_BU[:, 1:].size
  for name, value in by_token.items():
    if value is None:  # what ablation recovers, where it does not hurt
      assert by_norm[name] is None
      continue
    np.testing.assert_allclose(by_norm[name], value, rtol=1e-5, err_msg=name)
  ids = [3, 5, LONG, 9, 4, 6]
  found, expected = (interventions.losses(subject, sae, mean_M, ids, {0: 9.0}, kept)
                     for kept in (Kept(norm_limits=((SITE, limit),)), Kept(0, (LONG,))))
  for name in found:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
