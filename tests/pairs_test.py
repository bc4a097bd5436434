"""Pairs of activations, of a row's own token and of an earlier one: how they are made, and the recipe of pairs."""

import dataclasses
import shutil

import numpy as np
import pytest
from kept_test import SITE, T, counting, pair, tokens_with  # noqa: F401
from tiny_run import TINY, run, tiny

import monojax
from monojax import mesh as meshes
from monojax.activations import harvest
from monojax.activations.config import HarvestConfig
from monojax.activations.kept import Kept
from monojax.activations.origin import Order
from monojax.activations.store import ActivationStore
from monojax.activations.stream import Stream
from monojax.config import InputError
from monojax.pipeline.folder import RunFolder
from monojax.pipeline.newest import newest_features
from monojax.sae.model import Wiring
from monojax.sae.recipes import RECIPES

EARLIER = f"{SITE}.earlier"


def kept_pairs(tmp_path, subject, tokens, config):
  """((N, 2, M) pairs of a store, [(context, position in it)] of its rows, (C, T, M) activations of all contexts)."""
  harvest.harvest(config, subject, tokens, tmp_path / "store", {}, meshes.make_mesh(meshes.MeshConfig(data=1)))
  store = ActivationStore.open(tmp_path / "store", {}, (SITE, EARLIER))
  _, document_N, offset_N, _ = np.asarray(store.places(0, store.n_rows)).T
  every_C = np.arange(tokens.contexts(T))
  where = {int(position): at for at, position in np.ndenumerate(tokens.positions(every_C, T)) if position >= 0}
  at = [where[position] for position in (tokens.start_D[document_N] + offset_N).tolist()]
  acts_CTM = np.asarray(subject.model.apply({"params": subject.params}, tokens.context(every_C, T))[1][SITE])
  return store.rows(0, store.n_rows).reshape(store.n_rows, 2, -1), at, acts_CTM


@pytest.mark.parametrize("settings", [{}, {"first_position": 2, "tokens_per_context": 4},
                                      {"skip_special": True, "tokens_per_context": 5}])
@pytest.mark.parametrize("earlier", ["previous", "random"])
def test_beside_each_row_is_that_of_an_earlier_token_of_its_context(pair, tmp_path, earlier, settings):  # noqa: F811
  subject, tokens = pair[0], tokens_with()
  config = HarvestConfig(dtype="float32", batch_contexts=8, shard_rows=256, chunk_rows=64, more_sites=(EARLIER,),
                         earlier=earlier, **settings)
  x_N2M, at, acts_CTM = kept_pairs(tmp_path, subject, tokens, config)
  kept = Kept.of(config, tokens.prefix, tokens.special_ids)
  counts_CT = counting(kept, tokens.context(np.arange(len(acts_CTM)), T))
  share = []
  for (own_M, before_M), (c, t) in zip(x_N2M, at, strict=True):
    np.testing.assert_allclose(own_M, acts_CTM[c, t], atol=1e-5)
    assert counts_CT[c, t]
    if earlier == "previous":
      assert counts_CT[c, t - 1] and t > 0
      np.testing.assert_allclose(before_M, acts_CTM[c, t - 1], atol=1e-5)
    else:
      possible = np.flatnonzero(counts_CT[c, :t])
      far = np.abs(acts_CTM[c, possible] - before_M).max(1)
      assert far.min() < 1e-5
      share.append((far.argmin() + 0.5) / len(possible))
  assert len(x_N2M) == len(set(at)) > 300
  if earlier == "random":
    assert abs(np.mean(share) - 0.5) < 0.03 and np.std(share) > 0.2  # of all that there are, none more than others

  stream = Stream(dataclasses.replace(config, source="stream"), subject, tokens, Order(24, 200, 0),
                  meshes.make_mesh(meshes.MeshConfig(data=1)))
  there = {position: row for position, row in zip(at, x_N2M.reshape(len(at), -1), strict=True)}
  where = {int(n): place for place, n in np.ndenumerate(tokens.positions(np.arange(len(acts_CTM)), T)) if n >= 0}
  for step in (0, 3):
    wanted = [there[where[position]] for position in stream.positions(step).tolist()]
    np.testing.assert_allclose(np.asarray(stream.batch(step)), wanted, atol=1e-5)


def test_earlier_activations_are_no_longer_than_the_others_may_be(pair, tmp_path):  # noqa: F811
  subject, tokens = pair[0], tokens_with()
  config = HarvestConfig(dtype="float32", batch_contexts=8, shard_rows=256, chunk_rows=64, more_sites=(EARLIER,),
                         norm_limit=1.1)
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  limits, told = harvest.norm_limits(config, subject, tokens, mesh)
  assert set(limits) == {SITE} and "left out" in told
  harvest.harvest(config, subject, tokens, tmp_path / "store", {}, mesh, limits)
  store = ActivationStore.open(tmp_path / "store", {}, (SITE, EARLIER))
  norm_N2 = np.linalg.norm(store.rows(0, store.n_rows).reshape(store.n_rows, 2, -1), axis=-1)
  assert (norm_N2 <= limits[SITE] * 1.001).mean() > 0.9


def test_an_earlier_site_is_kept_beside_its_own():
  with pytest.raises(InputError, match=f"needs {SITE} beside it"):
    HarvestConfig(site="layer.0.resid", more_sites=(EARLIER,))
  assert HarvestConfig(more_sites=(EARLIER, "layer.0.resid")).computed == (SITE, "layer.0.resid")


@pytest.fixture(scope="module")
def paired(finished, tmp_path_factory):
  """A run whose activations are pairs."""
  workdir = tmp_path_factory.mktemp("pairs") / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  result = run("harvest", workdir, *tiny("activations"), f"--activations.more_sites={EARLIER}")
  assert result.returncode == 0, result.stderr[-2000:]
  return workdir


SETTINGS = ["--sae.recipe=tsae", "--sae.k=6", "--sae.n_features=60", "--sae.batch_rows=256", "--sae.n_steps=40",
            "--sae.buffer_rows=4096", "--sae.val_tokens=8192"]


def test_a_run_trains_a_dictionary_on_pairs(paired, finished, tmp_path):
  result = run("train_sae", paired, "--name=t", *SETTINGS)
  assert result.returncode == 0, result.stderr[-3000:]
  loaded = monojax.load(paired, "t")
  assert loaded.sae.sites == (SITE,) and loaded.sae.model.wiring.widths == (48,)
  _, f_TF = loaded.encode("def main(): return 0")
  assert f_TF.shape[1] == 60
  without = run("train_sae", finished[0], "--name=t", *SETTINGS)
  assert without.returncode != 0 and "--activations.more_sites=layer.0.mlp.hidden.earlier" in without.stderr
  assert without.stderr.count("\n") < 5
  refused = {"must be 0 with tsae": ["--sae.kl_coefficient=1"], "is of an earlier token": [f"--sae.reads={EARLIER}"]}
  for message, flags in refused.items():
    wrong = run("train_sae", paired, "--name=wrong", *SETTINGS, *flags)
    assert wrong.returncode != 0 and message in wrong.stderr and wrong.stderr.count("\n") < 5, wrong.stderr
  again = run("adopt_sae", finished[0], "--name=theirs", f"--source={paired / 'dictionaries' / 't' / 'dictionary'}",
              "--sae.val_tokens=8192")
  assert again.returncode == 0, again.stderr[-2000:]
  fidelity = run("fidelity", finished[0], "--dictionary=theirs", "--n_tokens=4096")
  assert fidelity.returncode == 0, fidelity.stderr[-2000:]


def test_other_recipes_train_on_pairs_too(paired):
  end_to_end = run("train_sae", paired, "--name=kl", "--sae.recipe=topk", "--sae.k=6", "--sae.n_features=60",
                   "--sae.kl_coefficient=1", "--sae.batch_rows=320", "--sae.n_steps=4", "--sae.val_tokens=4096")
  assert end_to_end.returncode == 0, end_to_end.stderr[-3000:]
  newest = newest_features(RunFolder(paired), "dictionaries/t")
  assert newest["step"] == 40 and newest["examples"]


def test_a_run_is_refused_before_its_activations_are_made(tmp_path):
  result = run("monosemanticity", tmp_path / "run", *TINY, "--sae.recipe=tsae", "--sae.k=6")
  assert result.returncode != 0 and f"--activations.more_sites={EARLIER}" in result.stderr
  assert not (tmp_path / "run" / "subject").exists()


def test_pairs_of_ones_own(paired, tmp_path):
  train = lambda x: monojax.train(x, "tsae", k=4, n_steps=16, batch_rows=256)
  sae = train(next(path.parent for path in paired.rglob("meta.json")))
  assert sae.model.wiring.widths == (48,) and sae.encode(np.ones((3, 48), np.float32)).shape == (3, 8 * 48)
  with pytest.raises(InputError, match="a store that has the sites x and x.earlier, or a Source with 2 widths"):
    train(np.ones((4000, 48), np.float32))


class Topics:
  """Rows of three features: one of 32 topics, the same in both tokens of a pair, and two of 16 drawn for each token."""

  widths = (48, 48)

  def __init__(self):
    rng = np.random.default_rng(0)
    self.direction_NM = rng.normal(size=(48, 48)).astype(np.float32)
    self.direction_NM /= np.linalg.norm(self.direction_NM, axis=1, keepdims=True)

  def rows(self, n, key):
    """(n, 96) pairs."""
    rng = np.random.default_rng(key)
    topic_N = rng.integers(0, 32, n)
    parts = []
    for _ in range(2):
      strength_NF = np.zeros((n, 48), np.float32)
      strength_NF[np.arange(n), topic_N] = rng.uniform(0.5, 1.5, n)
      other_N2 = 32 + np.argsort(rng.random((n, 16)))[:, :2]
      strength_NF[np.arange(n)[:, None], other_N2] = rng.uniform(0.5, 1.5, (n, 2))
      parts.append(strength_NF @ self.direction_NM)
    return np.concatenate(parts, axis=1)

  def batch(self, step):
    return self.rows(64, (1, step))

  def sample(self, n_rows, seed):
    return self.rows(n_rows, (2, seed))


@pytest.mark.slow
def test_leading_features_are_those_that_neighbouring_tokens_share():
  source, leading, found = Topics(), {}, {}
  for coefficient in (0.0, 1.0):
    sae = monojax.train(source, "tsae", n_features=64, k=3, n_steps=700, learning_rate=3e-3, group_sizes=(32,),
                        contrast_coefficient=coefficient)
    cosine_FN = np.asarray(sae.params["W_dec_FO"]) @ source.direction_NM.T
    leading[coefficient] = (cosine_FN[:32].argmax(1) < 32).mean()  # whose direction is that of a topic
    found[coefficient] = cosine_FN.max(0).mean()
  assert leading[0.0] < 0.7 and leading[1.0] > 0.85, leading
  assert min(found.values()) > 0.94, found  # of topics and of others, among all features


def test_the_record_says_that_it_needs_pairs():
  assert [name for name, recipe in RECIPES.items() if recipe.pairs] == ["tsae"]


@pytest.mark.parametrize("wrong", [{"earlier": (0,)}, {"earlier": (1, 1)}, {"writes": (1,), "earlier": (1,)},
                                   {"widths": (8, 4), "earlier": (1,)}, {"widths": (8, 8, 8), "earlier": (1,)}])
def test_wirings_that_make_no_sense_are_refused(wrong):
  with pytest.raises(InputError, match="wiring.earlier"):
    Wiring(**{"widths": (8, 8), **wrong})
