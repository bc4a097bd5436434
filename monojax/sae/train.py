"""Training a dictionary on a source of activations."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import checkpoint
from monojax import mesh as meshes
from monojax.sae import finish, recipes, resample
from monojax.sae.model import SHARDING_RULES
from monojax.sae.step import make_step
from monojax.training import Run, compute_dtype, train

# Features for each place of a sparse code from which on it is the faster one on a CPU (docs/performance.md).
SPARSE_FROM = 16


def train_sae(config, source, wiring, directory, identity, mesh, metrics_config, name="sae"):
  """Trains (or goes on training) a dictionary in `directory`.

  Args:
    config: `SAEConfig`.
    source: has `batch(step) -> x_BW`, a pure function of the step, on the host or on the mesh, and
      `sample(n_rows, seed) -> x_NW`.
    wiring: `Wiring`, or the width of the one site that an autoencoder reads.
    directory: receives `checkpoints/` and `metrics.jsonl`, and in the end `dictionary/`: the parameters for use
      on raw activations.
    identity: JSON-able dict kept with the checkpoints.
    mesh: device mesh.
    metrics_config: `MetricsConfig`.
    name: the progress bar's label.

  Returns:
    (model, parameters for use on raw activations).
  """
  meshes.require_divides(mesh, "data", config.batch_rows)
  recipe = recipes.make_recipe(config, wiring, compute_dtype(config.compute_dtype), mesh)
  init, step = make_step(recipe, mesh, config.window_steps, use_sparse(config, recipe, mesh, name), config.accumulate)
  key = jax.random.key(config.seed)

  run = Run(directory, identity, config.n_steps, config.scan_steps, config.checkpoint_every_steps,
            config.resample_steps, "rows", config.batch_rows, name)
  intervene = make_resampling(config, recipe, source, mesh, jax.random.fold_in(key, 1))
  state = init(key, source.sample(config.start_rows, config.seed))
  state = train(state, step, make_batches(source, mesh), run, metrics_config, intervene)
  params = meshes.to_host(finish.finished_params(recipe, state))
  checkpoint.save_params(pathlib.Path(directory) / "dictionary", params, identity)
  return recipe.model, params


def make_batches(source, mesh):
  """The function (first step, last step) -> x_SBW on the mesh, of a source whose batches are on the host or on it."""
  def batches(first, last):
    rows = [source.batch(step) for step in range(first, last)]
    stack = jnp.stack if isinstance(rows[0], jax.Array) else np.stack
    return meshes.on_mesh(stack(rows), mesh, P(None, "data", None))
  return batches


def placed_like(params, existing):
  """Parameters on the devices where the existing ones are."""
  return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, existing)


def use_sparse(config, recipe, mesh, name):
  """Whether steps compute only the features that fire, as `config.code` says; prints which, after `name`.

  "auto" does where that was measured to be faster: on one CPU device, in dictionaries with many features for
  each place of the code.
  """
  sparse = config.code == "sparse"
  if config.code == "auto":
    sparse = (jax.default_backend() == "cpu" and mesh.size == 1
              and config.n_features >= SPARSE_FROM * recipe.slots)
  computed = (f"only the features that fire, where about {recipe.slots} a row have room" if sparse
              else f"all {config.n_features:,} features of a row")
  print(f"{name}: steps compute {computed} (--sae.code={config.code})", flush=True)
  return sparse


def make_resampling(config, recipe, source, mesh, key):
  """The intervention (state, steps done) -> (state, report) that resamples dead features.

  The inputs are those of the next `resample_rows / batch_rows` steps: the source is shuffled, so they
  are a random subset, and a pure function of the step.
  """
  absorb = resample.make_absorb(recipe.row_loss, config.accumulate)
  n_batches = -(-config.resample_rows // config.batch_rows)

  @functools.partial(jax.jit, donate_argnums=0)
  def apply(state, candidate_FW):
    new_state, n_resampled = resample.resample(state, candidate_FW, recipe, config.window_steps,
                                               config.resample_encoder_scale)
    placed = jax.lax.with_sharding_constraint(new_state, meshes.shardings(new_state, mesh, SHARDING_RULES))
    return placed, n_resampled

  def intervene(state, done):
    draw = resample.start_draw(config.n_features, sum(recipe.model.wiring.widths))
    for i in range(n_batches):
      x_BW = meshes.on_mesh(source.batch(done + i), mesh, P("data", None))
      draw = absorb(draw, state.params, x_BW, state.counters["scale_W"],
                    jax.random.fold_in(jax.random.fold_in(key, done), i))
    state, n_resampled = apply(state, draw["candidate_FW"])
    return state, {"resampled": float(n_resampled)}
  return intervene
