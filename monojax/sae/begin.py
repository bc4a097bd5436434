"""Where training begins: in a folder that may hold something already, from nothing or from a finished dictionary."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from monojax import checkpoint
from monojax import config as configs
from monojax import mesh as meshes
from monojax.config import InputError, require
from monojax.sae import form
from monojax.sae.config import SAEConfig
from monojax.sae.finish import training_params
from monojax.sae.model import Wiring
from monojax.sae.nonlinearity import Params
from monojax.sae.parts import MadeRecipe
from monojax.sae.recipes import Recipe, recipe_of
from monojax.training import TrainState

_LEAST_THRESHOLD = 0.01  # beside rows whose numbers have a mean square of 1

# Settings that may differ where training is extended: the steps, what follows from them, and the caller's fingerprint
# of everything, in which they are.
_EXTENDED = ("sae.n_steps", "sae.penalty_warmup_steps", "identity")


def settings_of(config: SAEConfig, wiring: Wiring, identity: Mapping[str, Any]) -> dict[str, Any]:
  """What is kept beside a dictionary's parameters: enough to make its model again, and what the caller adds."""
  return {**identity, "sae": configs.to_dict(config), "wiring": configs.to_dict(wiring)}


def require_same(directory: pathlib.Path, wanted: Mapping[str, Any], extend: bool = False) -> bool:
  """Checks that the dictionary in a folder was begun with the same settings.

  Args:
    directory: where it is trained.
    wanted: the settings, from `settings_of`.
    extend: whether more steps may be taken than it was begun with.

  Returns:
    Whether there is a checkpoint to go on from.

  Raises:
    InputError: the folder holds a dictionary made with other settings.
  """
  checkpoints = checkpoint.saved_config(directory / "checkpoints")
  found = checkpoints or checkpoint.saved_config(directory / "dictionary")
  if found is None:
    return False
  settings, version = found
  changes = _changes(settings, version, wanted)
  old_steps, new_steps = settings.get("sae", wanted["sae"])["n_steps"], wanted["sae"]["n_steps"]
  extends = new_steps > old_steps and all(line.partition(":")[0] in _EXTENDED for line in changes)
  if changes and not (extends and extend):
    _refuse(directory, changes, "go on to more steps with extend=True" if extends else "delete it")
  return checkpoints is not None


def require_same_sweep(directory: pathlib.Path, wanted: Mapping[str, Mapping[str, Any]]) -> bool:
  """Checks that the dictionaries of a sweep in a folder were begun with the same settings.

  Args:
    directory: where they are trained.
    wanted: {name: settings, from `settings_of`}.

  Returns:
    Whether there is a checkpoint to go on from.

  Raises:
    InputError: the folder holds a sweep of others, or one of them was made with other settings.
  """
  found = checkpoint.saved_config(directory / "checkpoints")
  if found is not None and set(found[0]) != set(wanted):
    _refuse(directory, [f"dictionaries: {', '.join(sorted(found[0]))} -> {', '.join(sorted(wanted))}"])
  for name, settings in wanted.items():
    one = checkpoint.saved_config(directory / "dictionaries" / name) if found is None else (found[0][name], found[1])
    if one is not None and (changes := _changes(one[0], one[1], settings)):
      _refuse(directory, [f"{name}: {line}" for line in changes])
  return found is not None


def _changes(found: Mapping[str, Any], version: int, wanted: Mapping[str, Any]) -> list[str]:
  """Lines "name: old -> new" for the settings in which what is found differs from what is wanted.

  Settings that did not exist yet when a folder was begun had the value that is their default now. Version 1 kept only
  what its caller gave, so that the rest cannot be compared.
  """
  old, new = dict(found), configs.to_dict(dict(wanted))
  if "sae" in old:
    old["sae"] = {**configs.to_dict(SAEConfig()), **old["sae"]}
  if "wiring" in old:
    old["wiring"] = {"earlier": [], **old["wiring"]}
  return configs.differences(old, {name: value for name, value in new.items() if version > 1 or name in old})


def _refuse(directory: pathlib.Path, changes: list[str], remedy: str = "delete it") -> NoReturn:
  raise InputError(f"{directory} was begun with other settings ({'; '.join(changes)}): use another folder, give the "
                   f"old settings, or {remedy}")


def require_pairs(config: SAEConfig, wiring: Wiring, recipe: Recipe | None = None) -> None:
  """Raises `InputError` if a recipe needs each row's earlier token, and batches do not hold it."""
  require(not recipe_of(config.recipe, recipe).pairs or wiring.earlier, "sae.recipe", config.recipe, "needs, beside "
          "each row, the activation at an earlier token of its context: columns that Wiring(..., earlier=...) names")


def require_memory(members: Sequence[SAEConfig], wiring: Wiring, mesh: Mesh) -> None:
  """Checks that the dictionaries of some resolved settings, trained side by side, can fit into memory.

  It counts what no step can do without: weights, their gradients, Adam's two moments and the running mean of each
  dictionary, the rows of a call, and the pre-activations of one part of a batch.

  Raises:
    InputError: they cannot.
  """
  width, largest = sum(wiring.widths), max(members, key=lambda config: config.n_features)
  n_bytes = 0
  for config in members:
    n_weights = config.n_features * (wiring.n_inputs + wiring.n_outputs + 1) + wiring.n_outputs
    n_bytes += 4 * n_weights * (5 if config.ema_decay else 4)
  n_steps = min(largest.scan_steps, largest.checkpoint_every_steps, largest.n_steps)
  n_bytes += 2 * n_steps * largest.batch_rows * width
  n_part = largest.batch_rows // largest.accumulate
  n_bytes += 4 * n_part * largest.n_features
  if wiring.earlier:  # the features of earlier tokens, and each row's product with that of each
    n_bytes += 4 * n_part * (largest.n_features + n_part)
  meshes.require_memory(
      mesh, n_bytes, "sae.n_features", largest.n_features, f"take fewer features, a smaller batch than sae.batch_rows="
      f"{largest.batch_rows}, more parts of it than sae.accumulate={largest.accumulate} or fewer steps in a call than "
      f"sae.scan_steps={largest.scan_steps}")


def start_params(config: SAEConfig, recipe: MadeRecipe, state: TrainState, own: Recipe | None = None) -> Params:
  """The parameters to start training from, where `config.start_from` names a finished dictionary.

  Args:
    config: the settings.
    recipe: the recipe made for them.
    state: the training state that the recipe would start from.
    own: the record of a recipe that is not part of monojax, if it is one.

  Returns:
    Training parameters, placed where those of `state` are, that compute what the finished dictionary does.

  Raises:
    InputError: there is no finished dictionary, or it does not fit.
  """
  from monojax.sae.dictionary import SAE
  theirs = SAE.load(config.start_from, recipe=own)
  finished = form.like(recipe.model, theirs.model, theirs.params)
  norm_F = jnp.linalg.norm(finished["W_dec_FO"], axis=1)
  least = jnp.where(norm_F > 0, norm_F, jnp.inf).min()
  if not recipe.model.nonlinearity.folds_norms and norm_F.max() > 1.01 * least:
    print(f"sae.start_from: the directions there have norms from {least:.3g} to {norm_F.max():.3g}. "
          f"{config.recipe} keeps them equal, so that other features of a row are among the largest at first",
          flush=True)
  params = training_params(recipe, finished, state.params, state.counters["scale_W"])
  parts = [(0, None)] if recipe.model.causal else recipe.model.wiring.written()  # whose norms recipes reckon with
  empty_F = jnp.stack([(finished["W_dec_FO"][:, first:last] == 0).all(1) for first, last in parts]).any(0)
  params = _able_to_learn(params, state.params, empty_F)
  if recipe.model.causal:
    within = recipe.model.within(params)
    require(all(bool((within[name] == value).all()) for name, value in params.items()), "sae.start_from",
            config.start_from, "has features that read or write sites which those here (sae.causal) do not")
  return placed_like(params, state.params)


def _able_to_learn(params: Params, own: Params, empty_F: jax.Array) -> Params:
  """Training parameters in which no feature is where no gradient would ever move it; prints how many were.

  A threshold of (nearly) 0 has no gradient, since that of its logarithm has the threshold as a factor: it becomes 0.01,
  from where features were seen to learn, or what the recipe starts from if that is less. A feature without a direction
  changes no error: it begins as the recipe would have it begin.

  Args:
    params: the parameters.
    own: what the recipe would start from by itself.
    empty_F: which features have no direction at a site that they write.
  """
  if n_empty := int(empty_F.sum()):
    print(f"sae.start_from: {n_empty:,} features there have no direction, and begin anew", flush=True)
    of = {"W_enc_MF": empty_F[None], "W_dec_FO": empty_F[:, None]}
    params = {name: jnp.where(of.get(name, empty_F), own[name], value) if "F" in name.rpartition("_")[2] else value
              for name, value in params.items()}
  if "log_threshold_F" in params:
    least_F = jnp.minimum(own["log_threshold_F"], math.log(_LEAST_THRESHOLD))
    if n_low := int((params["log_threshold_F"] < least_F).sum()):
      print(f"sae.start_from: {n_low:,} features there fire from (nearly) 0 on, where a threshold learns nothing: "
            f"theirs begin at {float(jnp.exp(least_F.max())):.3g}, where rows have a mean square of 1", flush=True)
    params = {**params, "log_threshold_F": jnp.maximum(params["log_threshold_F"], least_F)}
  return params


def placed_like(params: Params, existing: Params) -> Params:
  """Parameters on the devices where the existing ones are."""
  return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, existing)


def upgrading(recipe: MadeRecipe) -> Callable[[TrainState, int], TrainState]:
  """The function (state, version of its checkpoint) -> state that makes up for what older versions did otherwise.

  Version 1 began the weights' running mean at 0 and divided by the sum of its coefficients only in the end. The state
  is that of one dictionary, or of several of the same recipe with a leading axis for them.
  """
  def upgrade(state: TrainState, version: int) -> TrainState:
    if version > 1 or not recipe.ema_decay:
      return state
    weight = 1.0 - recipe.ema_decay ** state.step.astype(jnp.float32)
    beside = lambda leaf: weight.reshape(weight.shape + (1,) * (leaf.ndim - weight.ndim))
    ema = jax.tree.map(lambda leaf: leaf / beside(leaf), state.counters["ema"])
    return dataclasses.replace(state, counters={**state.counters, "ema": ema})
  return upgrade
