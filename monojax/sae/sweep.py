"""Many dictionaries on one pass over the data.

Dictionaries that differ only in penalty, learning rate or seed are one group: their states are stacked, and one
compiled step takes each of them through a batch in turn. Groups train side by side on the same batches. Each
dictionary gets, bit for bit, what a run of its own on those batches would.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from monojax import checkpoint
from monojax import mesh as meshes
from monojax.config import require, to_dict
from monojax.metrics import MetricsConfig
from monojax.sae import begin, finish
from monojax.sae.config import SAEConfig
from monojax.sae.downstream import Downstream, require_given
from monojax.sae.model import Dictionary, Wiring
from monojax.sae.nonlinearity import Params
from monojax.sae.parts import MadeRecipe
from monojax.sae.recipes import make_recipe
from monojax.sae.step import Step, judging_what_is_kept, make_step
from monojax.sae.train import Rows, make_batches, make_resampling, use_sparse
from monojax.training import Loop, TrainState, are_finite, compute_dtype, in_32_bits, train

# What the members of a group may differ in, and what all dictionaries of a sweep must share.
FREE = ("sparsity_coefficient", "learning_rate", "seed")
SHARED = ("batch_rows", "buffer_rows", "n_steps", "scan_steps", "checkpoint_every_steps", "start_rows",
          "resample_every_steps", "resample_times", "kl_coefficient")

Trained = dict[str, tuple[SAEConfig, Dictionary, Any]]


@dataclasses.dataclass(frozen=True)
class Group:
  """Dictionaries that one compiled step serves.

  Attributes:
    configs: their resolved settings, which differ in `FREE` alone.
    recipe: the recipe made for the first; what differs is in the state.
    init: (sample x_NW, params or None, whether to start where `start_from` says) -> their stacked `TrainState`.
    step: (stacked state, x_SBW) -> (stacked state, metrics, each a list with one for each member).
    intervene: (stacked state, steps done) -> (stacked state, {"resampled": list}).
  """
  configs: tuple[SAEConfig, ...]
  recipe: MadeRecipe
  init: Callable[[Any, Params | None, bool], TrainState]
  step: Step
  intervene: Callable[[TrainState, int], tuple[TrainState, dict[str, list[float]]]]


def name_of(config: SAEConfig) -> str:
  """A dictionary's name in a sweep: recipe, size, what makes it sparse, learning rate, seed."""
  config = config.resolved()
  knob = "k" if config.knob == "k" else "penalty"
  return f"{config.recipe}-{config.n_features}-{knob}{config.sparsity:g}-rate{config.learning_rate:g}-seed{config.seed}"


@in_32_bits
def train_sweep(configs: Sequence[SAEConfig], source: Rows, wiring: Wiring, directory: str | os.PathLike[str],
                identities: Mapping[str, Mapping[str, Any]], mesh: Mesh, metrics_config: MetricsConfig,
                start: Params | None = None, sample_seed: int = 0,
                downstream: Downstream | None = None) -> Trained:
  """Trains (or goes on training) the dictionaries of `configs` on one pass over a source.

  As in `monojax.sae.train.train_sae`, a folder that was begun with other settings is refused before any work.

  Args:
    configs: settings of the dictionaries; equal in `SHARED`.
    source, wiring, mesh, metrics_config: see `train_sae`.
    directory: receives `checkpoints/`, `metrics.jsonl` and `dictionaries/NAME/` for each.
    identities: {name: JSON-able dict} kept with each dictionary, beside its settings and the wiring.
    start: training parameters for all to start from, instead of the recipe's initialisation.
    sample_seed: seed of the rows that scale and bias start from; a run of its own draws them by its own seed.
    downstream: see `train_sae`.

  Returns:
    {name: (config, model, parameters for use on raw activations)}, without the dictionaries that diverged.

  Raises:
    InputError: settings that a sweep must share differ, two dictionaries are the same, or the folder holds others.
    FloatingPointError: all of them diverged.
  """
  configs, directory = [config.resolved() for config in configs], pathlib.Path(directory)
  _require_fit_together(configs)
  first = configs[0]
  meshes.require_divides(mesh, "data", first.batch_rows, "sae.batch_rows")
  require_given(first.kl_coefficient, downstream)
  downstream = downstream if first.kl_coefficient else None
  for config in configs:
    begin.require_pairs(config, wiring)
  begin.require_memory(configs, wiring, mesh)
  saved = {name_of(config): begin.settings_of(config, wiring, identities[name_of(config)]) for config in configs}
  goes_on = begin.require_same_sweep(directory, saved)
  groups = {name_of(members[0]): make_group(members, source, wiring, mesh, downstream)
            for members in groups_of(configs)}

  def step(state: TrainState, x_SBW: Any) -> tuple[TrainState, dict[str, Any]]:
    metrics: dict[str, Any] = {}
    states = unpack(state, groups)
    for name, group in groups.items():
      states[name], values = group.step(states[name], x_SBW)
      metrics |= _by_member(group, values)
    return pack(states), metrics

  def intervene(state: TrainState, done: int) -> tuple[TrainState, dict[str, float]]:
    report: dict[str, float] = {}
    states = unpack(state, groups)
    for name, group in groups.items():
      states[name], values = group.intervene(states[name], done)
      report |= _by_member(group, values)
    return pack(states), report

  def upgrade(state: TrainState, version: int) -> TrainState:
    states = unpack(state, groups)
    return pack({name: begin.upgrading(group.recipe)(states[name], version) for name, group in groups.items()})

  @jax.jit
  def finite(state: TrainState) -> jax.Array:
    return jnp.concatenate([jax.vmap(are_finite)(one) for one in unpack(state, groups).values()])

  loop = Loop(directory, saved, first.n_steps, first.scan_steps, first.checkpoint_every_steps, first.resample_steps,
              "rows", first.batch_rows, f"sweep of {len(configs)}", upgrade, finite)
  sample_NW = source.sample(first.start_rows, sample_seed)
  state = pack({name: group.init(sample_NW, start, not goes_on) for name, group in groups.items()})
  state = train(state, step, make_batches(source, mesh, downstream), loop, metrics_config, intervene)
  return _finished(groups, unpack(state, groups), directory, saved)


def _require_fit_together(configs: Sequence[SAEConfig]) -> None:
  """Raises `InputError` unless resolved settings can be trained on one pass over the data."""
  names = [name_of(config) for config in configs]
  require(len(set(names)) == len(names), "sweep", names, "names a dictionary twice")
  for name in SHARED:
    values = {getattr(config, name) for config in configs}
    require(len(values) == 1, f"sae.{name}", sorted(values), "must be the same for all dictionaries of a sweep")


def _finished(groups: Mapping[str, Group], states: Mapping[str, TrainState], directory: pathlib.Path,
              saved: Mapping[str, Mapping[str, Any]]) -> Trained:
  """Writes each dictionary that did not diverge, and returns them as `train_sweep` does."""
  found = {}
  for name, group in groups.items():
    for i, config in enumerate(group.configs):
      params = finish.finished_params(group.recipe, jax.tree.map(lambda leaf, i=i: leaf[i], states[name]))
      params = meshes.to_host(params)
      if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params)):
        print(f"{name_of(config)} diverged and is left out", flush=True)
        continue
      checkpoint.save_params(directory / "dictionaries" / name_of(config), params, saved[name_of(config)])
      model = group.recipe.model
      found[name_of(config)] = (config, model.clone(wiring=model.wiring.in_use()), params)
  return found


def groups_of(configs: Sequence[SAEConfig]) -> list[list[SAEConfig]]:
  """Lists of the configurations that differ in `FREE` alone, in order of first appearance."""
  groups: dict[str, list[SAEConfig]] = {}
  for config in configs:
    key = {name: value for name, value in to_dict(config).items() if name not in FREE}
    groups.setdefault(json.dumps(key, sort_keys=True), []).append(config)
  return list(groups.values())


def make_group(configs: Sequence[SAEConfig], source: Rows, wiring: Wiring, mesh: Mesh,
               downstream: Downstream | None = None) -> Group:
  """The compiled functions of dictionaries that differ in `FREE` alone."""
  first = configs[0]
  dtype = compute_dtype(first.compute_dtype)
  members = [make_recipe(config, wiring, dtype) for config in configs]
  sparse = use_sparse(first, members[0], mesh, f"{len(configs)} of {first.recipe}, {first.n_features:,} features")
  init, step = make_step(members[0], mesh, first.window_steps, sparse, first.accumulate, len(configs),
                         downstream)
  step = judging_what_is_kept(members[0], mesh, step, len(configs))
  resamplings = [make_resampling(config, recipe, source, mesh, jax.random.fold_in(jax.random.key(config.seed), 1))
                 for config, recipe in zip(configs, members, strict=True)]

  def initial(sample_NW: Any, params: Params | None, from_finished: bool) -> TrainState:
    states = []
    for config, recipe in zip(configs, members, strict=True):
      state = init(jax.random.key(config.seed), sample_NW)
      peaks = {name: jax.device_put(np.float32(value), state.counters[name].sharding)
               for name, value in recipe.peaks.items()}
      state = dataclasses.replace(state, counters={**state.counters, **peaks})
      if params is not None:
        state = dataclasses.replace(state, params=begin.placed_like(params, state.params))
      elif config.start_from and from_finished:
        state = dataclasses.replace(state, params=begin.start_params(config, recipe, state))
      states.append(state)
    return stacked(states)

  def intervene(state: TrainState, done: int) -> tuple[TrainState, dict[str, list[float]]]:
    states, counts = [], []
    for i, resampling in enumerate(resamplings):
      one, report = resampling(jax.tree.map(lambda leaf, i=i: leaf[i], state), done)
      states.append(one)
      counts.append(report["resampled"])
    return stacked(states), {"resampled": counts}
  return Group(tuple(configs), members[0], initial, step, intervene)


def stacked(states: Sequence[TrainState]) -> TrainState:
  """The states of several dictionaries as one, with a leading axis for the member."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def pack(states: Mapping[str, TrainState]) -> TrainState:
  """The groups' states as one `TrainState`."""
  parts: list[Any] = [{name: getattr(state, part) for name, state in states.items()}
                      for part in ("step", "params", "opt_state", "counters")]
  return TrainState(*parts)


def unpack(state: Any, groups: Mapping[str, Group]) -> dict[str, TrainState]:
  """{group: stacked `TrainState`} of what `pack` made."""
  return {name: TrainState(state.step[name], state.params[name], state.opt_state[name], state.counters[name])
          for name in groups}


def _by_member(group: Group, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  """{"dictionary/metric": scalar} of metrics that are lists."""
  return {f"{name_of(config)}/{metric}": value[i]
          for metric, value in values.items() for i, config in enumerate(group.configs)}
