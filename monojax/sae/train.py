"""Training a dictionary on a source of activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.sae import recipes, resample
from monojax.sae.model import SHARDING_RULES
from monojax.sae.step import make_step
from monojax.training import Run, compute_dtype, train


@functools.partial(jax.jit, static_argnames="n_iterations")
def geometric_median(x_NM, n_iterations=100):
  """The point with the smallest summed distance to the rows, by Weiszfeld's iteration from the mean.

  Args:
    x_NM: rows, any float dtype.
    n_iterations: 100 are ample (`dictionary_learning` takes as many).

  Returns:
    float32 array of shape (M,).
  """
  x_NM = x_NM.astype(jnp.float32)

  def improve(_, median_M):
    distance_N = jnp.linalg.norm(x_NM - median_M[None], axis=1)
    weight_N = 1.0 / jnp.maximum(distance_N, 1e-8)
    return weight_N @ x_NM / weight_N.sum()
  return jax.lax.fori_loop(0, n_iterations, improve, x_NM.mean(0))


def train_sae(config, source, n_inputs, directory, identity, mesh, metrics_config, name="sae",
              start=None):
  """Trains (or goes on training) a dictionary in `directory`.

  Args:
    config: `SAEConfig`.
    source: has `batch(step) -> x_BM`, a pure function of the step, and `sample(n_rows, seed) -> x_NM`.
    n_inputs: M.
    directory: receives `checkpoints/` and `metrics.jsonl`.
    identity: JSON-able dict kept with the checkpoints.
    mesh: device mesh.
    metrics_config: `MetricsConfig`.
    name: the progress bar's label.
    start: parameters to start from, instead of the recipe's initialisation.

  Returns:
    (model, parameters).
  """
  meshes.require_divides(mesh, "data", config.batch_rows)
  recipe = recipes.make_recipe(config, n_inputs, compute_dtype(config.compute_dtype))
  init, step = make_step(recipe, mesh)
  b_dec_M = geometric_median(source.sample(config.geometric_median_rows, config.seed))
  key = jax.random.key(config.seed)

  def batches(first, last):
    return meshes.on_mesh(np.stack([source.batch(i) for i in range(first, last)]), mesh,
                          P(None, "data", None))

  run = Run(directory, identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps,
            config.resample_steps, "rows", config.batch_rows, name)
  intervene = make_resampling(config, recipe, source, mesh, jax.random.fold_in(key, 1))
  state = init(key, b_dec_M)
  if start is not None:
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), start, state.params)
    state = state.replace(params=placed)
  state = train(state, step, batches, run, metrics_config, intervene)
  return recipe.model, state.params


def make_resampling(config, recipe, source, mesh, key):
  """The intervention (state, steps done) -> (state, report) that resamples dead features.

  The inputs are those of the next `resample_rows / batch_rows` steps: the source is shuffled, so they
  are a random subset, and a pure function of the step.
  """
  absorb = resample.make_absorb(recipe.row_loss)
  n_batches = -(-config.resample_rows // config.batch_rows)

  @functools.partial(jax.jit, donate_argnums=0)
  def apply(state, candidate_FM):
    new_state, n_resampled = resample.resample(state, candidate_FM, config.window_steps,
                                               config.resample_encoder_scale)
    placed = jax.lax.with_sharding_constraint(new_state, meshes.shardings(new_state, mesh, SHARDING_RULES))
    return placed, n_resampled

  def intervene(state, done):
    draw = resample.start_draw(config.n_features, recipe.model.n_inputs)
    for i in range(n_batches):
      x_BM = meshes.on_mesh(source.batch(done + i), mesh, P("data", None))
      draw = absorb(draw, state.params, x_BM, jax.random.fold_in(jax.random.fold_in(key, done), i))
    state, n_resampled = apply(state, draw["candidate_FM"])
    return state, {"resampled": float(n_resampled)}
  return intervene
