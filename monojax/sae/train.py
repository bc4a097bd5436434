"""Training a dictionary on a source of activations."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from monojax import checkpoint
from monojax import mesh as meshes
from monojax.metrics import MetricsConfig
from monojax.sae import begin, finish, resample
from monojax.sae.config import SAEConfig
from monojax.sae.downstream import Downstream, require_given
from monojax.sae.model import SHARDING_RULES, Dictionary, Wiring
from monojax.sae.parts import MadeRecipe
from monojax.sae.recipes import Recipe, make_recipe
from monojax.sae.step import judging_what_is_kept, make_step
from monojax.training import Loop, TrainState, compute_dtype, in_32_bits, train

# A sparse code is the faster one on a CPU where the dictionary has so many features for each place of it
# (docs/results/performance.md).
SPARSE_FROM = 16


class Rows(Protocol):
  """What training asks of a source of activations."""

  def batch(self, step: int) -> jax.Array | np.ndarray:
    """The rows x_BW of a step, on the host or on the mesh: a pure function of the step."""

  def sample(self, n_rows: int, seed: int) -> jax.Array | np.ndarray:
    """Rows x_NW that stand for all: a pure function of its arguments."""


@in_32_bits
def train_sae(config: SAEConfig, source: Rows, wiring: Wiring, directory: str | os.PathLike[str],
              identity: Mapping[str, Any], mesh: Mesh, metrics_config: MetricsConfig, name: str = "sae",
              extend: bool = False, recipe: Recipe | None = None,
              downstream: Downstream | None = None) -> tuple[Dictionary, Any]:
  """Trains (or goes on training) a dictionary in `directory`.

  A finished dictionary is loaded, an interrupted one goes on from its last checkpoint, and a folder that was begun with
  other settings is refused before any work.

  With `extend`, a folder that was begun with fewer steps goes on from its last checkpoint to `config.n_steps`, and its
  finished parameters are replaced. Schedules are those of the larger number: the learning rate, if it falls at the end,
  is as high again as it is there in a run of that many steps, and a penalty that rises over a part of the steps is that
  much lower. The optimiser's state, the order of the rows and the weights' running mean go on where they stopped.

  Args:
    config: the settings.
    source: where the rows come from.
    wiring: which of their columns are read and written.
    directory: receives `checkpoints/` and `metrics.jsonl`, and in the end `dictionary/`: the parameters for use
      on raw activations. The settings and the wiring are kept with both.
    identity: JSON-able dict that is kept with them, for instance what the source is. Its entry "identity", if it has
      one, is a fingerprint of all settings, and may differ where training is extended.
    mesh: device mesh.
    metrics_config: where metrics go besides `metrics.jsonl`.
    name: the progress bar's label.
    extend: whether to go on beyond the steps that the folder was begun with.
    recipe: the record of a recipe that is not part of monojax, which `config.recipe` must name.
    downstream: what reconstructions are spliced into, for end-to-end training; the batches are then its, and the same
      as those of `source`. Nothing is spliced where `config.kl_coefficient` is 0.

  Returns:
    (model, parameters for use on raw activations).

  Raises:
    InputError: the settings do not fit each other, the devices or what is in the folder.
    FloatingPointError: training diverged.
  """
  meshes.require_divides(mesh, "data", config.batch_rows, "sae.batch_rows")
  config, directory = config.resolved(recipe), pathlib.Path(directory)
  require_given(config.kl_coefficient, downstream)
  downstream = downstream if config.kl_coefficient else None
  begin.require_pairs(config, wiring, recipe)
  begin.require_memory([config], wiring, mesh)
  made = make_recipe(config, wiring, compute_dtype(config.compute_dtype), recipe)
  saved = begin.settings_of(config, wiring, identity)
  goes_on = begin.require_same(directory, saved, extend)
  init, step = make_step(made, mesh, config.window_steps, use_sparse(config, made, mesh, name), config.accumulate,
                         downstream=downstream)
  step = judging_what_is_kept(made, mesh, step)
  key = jax.random.key(config.seed)

  loop = Loop(directory, saved, config.n_steps, config.scan_steps, config.checkpoint_every_steps,
              config.resample_steps, "rows", config.batch_rows, name, begin.upgrading(made))
  intervene = make_resampling(config, made, source, mesh, jax.random.fold_in(key, 1))
  state = init(key, source.sample(config.start_rows, config.seed))
  if config.start_from and not goes_on:
    state = dataclasses.replace(state, params=begin.start_params(config, made, state, recipe))
  state = train(state, step, make_batches(source, mesh, downstream), loop, metrics_config, intervene)
  params = meshes.to_host(finish.finished_params(made, state))
  checkpoint.save_params(directory / "dictionary", params, saved)
  return made.model.clone(wiring=wiring.in_use()), params


def make_batches(source: Rows, mesh: Mesh, downstream: Downstream | None = None) -> Callable[[int, int], Any]:
  """The function (first step, last step) -> x_SBW on the mesh, of a source whose batches are on the host or on it.

  With `downstream` it gives (x_SBW, what is known of the contexts of each step), both from there.
  """
  def batches(first: int, last: int) -> Any:
    if downstream is not None:
      found = [downstream.batch_in_context(step) for step in range(first, last)]
      return jax.tree.map(lambda *leaves: meshes.on_mesh(jnp.stack(leaves), mesh, P(None, "data")), *found)
    of_first = source.batch(first)
    others = (source.batch(step) for step in range(first + 1, last))
    if isinstance(of_first, jax.Array):  # which need not leave its devices
      return meshes.on_mesh(jnp.stack([of_first, *others]), mesh, P(None, "data", None))
    x_SBW = np.empty((last - first, *of_first.shape), of_first.dtype)
    x_SBW[0] = of_first  # each is copied at once, since a source may fill the same array again
    for i, x_BW in enumerate(others, 1):
      x_SBW[i] = x_BW
    return meshes.on_mesh(x_SBW, mesh, P(None, "data", None))
  return batches


def use_sparse(config: SAEConfig, recipe: MadeRecipe, mesh: Mesh, name: str) -> bool:
  """Whether steps compute only the features that fire, as `config.code` says; prints which, after `name`.

  "auto" does where that was measured to be faster: on one CPU device, in dictionaries with many features for
  each place of the code. End to end it does not: there a step is mostly the subject's, and would be compiled thrice.
  """
  sparse = config.code == "sparse"
  if config.code == "auto":
    sparse = (jax.default_backend() == "cpu" and mesh.size == 1 and not config.kl_coefficient
              and config.n_features >= SPARSE_FROM * recipe.slots)
  computed = (f"only the features that fire, where about {recipe.slots} a row have room" if sparse
              else f"all {config.n_features:,} features of a row")
  print(f"{name}: steps compute {computed} (--sae.code={config.code})", flush=True)
  return sparse


def make_resampling(config: SAEConfig, recipe: MadeRecipe, source: Rows, mesh: Mesh,
                    key: jax.Array) -> Callable[[TrainState, int], tuple[TrainState, dict[str, float]]]:
  """The intervention (state, steps done) -> (state, report) that resamples dead features.

  The inputs are those of the next `resample_rows / batch_rows` steps: the source is shuffled, so they
  are a random subset, and a pure function of the step.
  """
  absorb = resample.make_absorb(lambda params, x_BW: recipe.row_loss(params, x_BW, mesh), config.accumulate)
  n_batches, batches = -(-config.resample_rows // config.batch_rows), make_batches(source, mesh)

  @functools.partial(jax.jit, donate_argnums=0)
  def apply(state: TrainState, candidate_FW: jax.Array) -> tuple[TrainState, jax.Array]:
    new_state, n_resampled = resample.resample(state, candidate_FW, recipe, config.window_steps,
                                               config.resample_encoder_scale)
    placed = jax.lax.with_sharding_constraint(new_state, meshes.shardings(new_state, mesh, SHARDING_RULES))
    return placed, n_resampled

  def intervene(state: TrainState, done: int) -> tuple[TrainState, dict[str, float]]:
    draw = resample.start_draw(config.n_features, sum(recipe.model.wiring.widths))
    for i in range(n_batches):
      x_BW = batches(done + i, done + i + 1)[0]
      draw = absorb(draw, state.params, x_BW, state.counters["scale_W"],
                    jax.random.fold_in(jax.random.fold_in(key, done), i))
    state, n_resampled = apply(state, draw["candidate_FW"])
    return state, {"resampled": float(n_resampled)}
  return intervene
