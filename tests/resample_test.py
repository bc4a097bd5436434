"""Resampling of dead features against the published procedure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from monojax import mesh as meshes
from monojax.sae import finish, resample
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.sae.step import make_step

M, F, B = 6, 20, 32
CONFIG = SAEConfig(n_features=F, batch_rows=B, n_steps=50, learning_rate=1e-2, sparsity_coefficient=0.05)
DEAD = np.array([2, 5, 19])


def trained_state(dead, **settings):
  recipe = make_recipe(dataclasses.replace(CONFIG, **settings), Wiring((M,)), jnp.float32)
  init, step = make_step(recipe, meshes.make_mesh(meshes.MeshConfig(1, 1)), CONFIG.window_steps)
  x = np.random.default_rng(0).exponential(size=(10, B, M)).astype(np.float32)
  state, _ = step(init(jax.random.key(0), x[0]), x)
  last_F = np.full(F, 10, np.int32)
  last_F[dead] = 4
  return recipe, state.replace(counters={**state.counters, "last_fired_F": jnp.asarray(last_F)})


def candidates():
  return np.random.default_rng(1).exponential(size=(F, M)).astype(np.float32)


def test_dead_features_are_remade_as_published_and_alive_ones_untouched():
  recipe, state = trained_state(DEAD)
  new, n = resample.resample(state, candidates(), recipe, 6, 0.2)
  assert int(n) == 3
  alive = np.setdiff1d(np.arange(F), DEAD)
  for tree_old, tree_new in ((state.params, new.params), (state.opt_state[1].mu, new.opt_state[1].mu),
                             (state.opt_state[1].nu, new.opt_state[1].nu)):
    np.testing.assert_array_equal(tree_new["W_dec_FO"][alive], tree_old["W_dec_FO"][alive])
    np.testing.assert_array_equal(tree_new["W_enc_MF"][:, alive], tree_old["W_enc_MF"][:, alive])
    np.testing.assert_array_equal(tree_new["b_enc_F"][alive], tree_old["b_enc_F"][alive])
    np.testing.assert_array_equal(tree_new["b_dec_O"], tree_old["b_dec_O"])
  for moments in (new.opt_state[1].mu, new.opt_state[1].nu):
    assert np.all(moments["W_dec_FO"][DEAD] == 0) and np.all(moments["W_enc_MF"][:, DEAD] == 0)
    assert np.all(moments["b_enc_F"][DEAD] == 0)
  directions = candidates()[DEAD] / np.linalg.norm(candidates()[DEAD], axis=1, keepdims=True)
  np.testing.assert_allclose(new.params["W_dec_FO"][DEAD], directions, rtol=1e-6)
  mean_alive = np.linalg.norm(state.params["W_enc_MF"], axis=0)[alive].mean()
  np.testing.assert_allclose(new.params["W_enc_MF"][:, DEAD].T, 0.2 * mean_alive * directions, rtol=1e-5)
  assert np.all(np.asarray(new.params["b_enc_F"])[DEAD] == 0)
  assert np.all(np.asarray(new.counters["last_fired_F"])[DEAD] == 10)


@pytest.mark.parametrize("recipe, own", [("gated", ("r_F", "b_mag_F")), ("jumprelu", ("log_threshold_F",))])
def test_what_a_nonlinearity_has_of_its_own_is_forgotten(recipe, own):
  recipe, state = trained_state(DEAD, recipe=recipe, bandwidth=1.0, threshold=0.5)
  new, _ = resample.resample(state, candidates(), recipe, 6, 0.2)
  alive = np.setdiff1d(np.arange(F), DEAD)
  for name in own:
    start_F = np.asarray(recipe.model.nonlinearity.per_feature(F)[name])
    assert np.any(np.asarray(state.params[name]) != start_F)
    np.testing.assert_array_equal(new.params[name][DEAD], start_F[DEAD])
    np.testing.assert_array_equal(new.params[name][alive], state.params[name][alive])


def test_the_mean_of_the_weights_forgets_dead_features():
  recipe, state = trained_state(DEAD, ema_decay=0.9)
  new, _ = resample.resample(state, candidates(), recipe, 6, 0.2)
  averaged, before = finish.kept_params(recipe, new), finish.kept_params(recipe, state)
  alive = np.setdiff1d(np.arange(F), DEAD)
  np.testing.assert_allclose(averaged["W_dec_FO"][DEAD], new.params["W_dec_FO"][DEAD], rtol=1e-5)
  np.testing.assert_allclose(averaged["W_enc_MF"][:, DEAD], new.params["W_enc_MF"][:, DEAD], rtol=1e-5)
  np.testing.assert_array_equal(averaged["W_dec_FO"][alive], before["W_dec_FO"][alive])


def test_a_candidate_that_is_zero_gives_no_direction():
  recipe, state = trained_state(DEAD)
  candidate_FW = candidates() * (np.arange(F) != DEAD[1])[:, None]
  new, n = resample.resample(state, candidate_FW, recipe, 6, 0.2)
  assert int(n) == 2 and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new))
  np.testing.assert_array_equal(new.params["W_dec_FO"][DEAD[1]], state.params["W_dec_FO"][DEAD[1]])


def test_nothing_dead_changes_nothing():
  recipe, state = trained_state([])
  new, n = resample.resample(state, candidates(), recipe, 6, 0.2)
  assert int(n) == 0
  jax.tree.map(np.testing.assert_array_equal, state, new)


def test_everything_dead_stays_finite():
  recipe, state = trained_state(np.arange(F))
  new, n = resample.resample(state, candidates(), recipe, 6, 0.2)
  assert int(n) == F
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new))
  np.testing.assert_allclose(np.linalg.norm(new.params["W_dec_FO"], axis=1), 1.0, rtol=1e-5)


def test_inputs_are_drawn_in_proportion_to_the_square_of_their_loss():
  """Many slots and a loss that is known: frequencies over several batches against the weights."""
  n_slots, n_batches = 20_000, 5
  x_NM = np.arange(40, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
  absorb = resample.make_absorb(lambda params, x_BM: x_BM[:, 0] + 1.0)
  draw = resample.start_draw(n_slots, 2)
  for i, x_BM in enumerate(np.split(x_NM, n_batches)):
    draw = absorb(draw, {}, x_BM, np.ones(2, np.float32), jax.random.key(i))
  drawn = np.bincount(np.asarray(draw["candidate_FW"])[:, 0].astype(int), minlength=40) / n_slots
  weight = (np.arange(40) + 1.0) ** 2
  np.testing.assert_allclose(drawn, weight / weight.sum(), atol=0.006)  # four standard errors
  np.testing.assert_allclose(draw["weight"], weight.sum(), rtol=1e-5)


def test_resampling_steps_of_the_paper():
  config = SAEConfig(n_steps=1_000_000, resample_every_steps=25_000)
  assert tuple(config.resample_steps) == (25_000, 50_000, 75_000, 100_000)
  assert config.window_steps == 12_500
