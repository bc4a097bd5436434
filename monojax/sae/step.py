"""The training step of a dictionary: one compiled, donated, scanned function for every recipe."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.sae import downstream as end_to_end
from monojax.sae.downstream import Downstream
from monojax.sae.finish import kept_params
from monojax.sae.model import SHARDING_RULES
from monojax.sae.objectives import Given, Pass, SparseCode
from monojax.sae.parts import MadeRecipe
from monojax.sae.sparse.code import count_F
from monojax.training import TrainState
from monojax.variance import explained_variance

# Steps that stay with a dense code after a batch that a sparse one had no room for.
RETRY_STEPS = 16
# Rows of a call's last batch on which the weights that will be kept are judged.
_KEPT_ROWS = 1024

Init = Callable[[jax.Array, Any], TrainState]  # (key, sample x_NW) -> state
# (state, x_SBW) -> (state, metrics); end to end, (state, (x_SBW, what is known of the contexts of each step))
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


def make_init(recipe: MadeRecipe, mesh: Mesh) -> Init:
  """The function (key, sample x_NW) -> `TrainState` of a recipe, born on the mesh; see `make_step`."""
  model, wiring = recipe.model, recipe.model.wiring

  def init(key: jax.Array, sample_NW: Any) -> TrainState:
    def make(key: jax.Array, sample_NW: jax.Array) -> TrainState:
      scale_W = jnp.ones((sum(wiring.widths),))
      if recipe.normalised:
        scale_W = wiring.alike(site_scales(sample_NW, wiring.widths))
      x_NW = sample_NW * scale_W[None]
      init_key, start_key = jax.random.split(key)
      params = model.init(init_key, jnp.zeros((1, wiring.n_inputs)))["params"]
      params = recipe.start(start_key, params, wiring.inputs(x_NW), wiring.targets(x_NW))
      counters = {"last_fired_F": jnp.zeros((model.n_features,), jnp.int32), "scale_W": scale_W,
                  "dense_until": jnp.zeros((), jnp.int32),
                  **{name: jnp.asarray(value, jnp.float32) for name, value in recipe.peaks.items()}}
      if recipe.ema_decay:
        counters["ema"] = jax.tree.map(jnp.zeros_like, params)
      return TrainState(jnp.zeros((), jnp.int32), params, recipe.tx.init(params), counters)
    sample_NW = meshes.on_mesh(sample_NW, mesh, P()).astype(jnp.float32)
    return meshes.born_sharded(make, mesh, SHARDING_RULES, key, sample_NW)
  return init


def make_gradients(recipe: MadeRecipe, mesh: Mesh, window_steps: int, sparse: bool,
                   downstream: Downstream | None = None) -> Callable[..., tuple]:
  """The function of (state, part of a batch x_BW) that a step updates the parameters by; see `make_step`.

  End to end it is also given (`downstream.params`, what is known of the part's contexts). It returns (gradients,
  parameters observed instead of learned, metrics, fired_F).
  """
  model, wiring = recipe.model, recipe.model.wiring

  def gradients_of(state: TrainState, x_BW: jax.Array, beyond: Any = None) -> tuple:
    def objective(params: Any, given: Given,
                  code: SparseCode | None) -> tuple[jax.Array, tuple[Pass, dict[str, jax.Array]]]:
      loss, passed = recipe.objective(params, given, code)
      if downstream is None:
        return loss, (passed, {})
      scale_O = wiring.targets(state.counters["scale_W"])
      more, values = end_to_end.added(downstream, recipe, passed, scale_O, beyond)
      return loss + more, (passed, {**values, "kl_share": more / (loss + more)})
    graded = jax.value_and_grad(objective, has_aux=True)
    x_BM, y_BO = wiring.inputs(x_BW), wiring.targets(x_BW)
    dead_F = state.step - state.counters["last_fired_F"] >= window_steps
    penalty = recipe.penalty_scale(state.step) * state.counters["penalty"]
    given = Given(x_BM=x_BM, y_BO=y_BO, earlier_BM=wiring.inputs_earlier(x_BW), step=state.step, penalty=penalty,
                  dead_F=dead_F, model=model, mesh=mesh)

    def graded_by(params, code, is_sparse):
      (loss, (passed, more)), gradients = graded(params, given, code)
      values = {"loss": loss, "l1": passed.f.sum() / x_BM.shape[0],
                **reconstruction_metrics(y_BO, passed.error_BO, wiring.targets(state.counters["scale_W"])),
                "dead_fraction": dead_F.mean(), "sparse_fraction": jnp.float32(is_sparse), **more}
      return (gradients, model.nonlinearity.observe(params, passed.f), values,
              count_F(passed.f > 0, passed.places, model.n_features))

    densely = lambda params: graded_by(params, None, False)
    if not sparse:
      return densely(state.params)

    def if_it_fits(params):
      h_BF = model.apply({"params": params}, x_BM, method="pre_activations")
      h_VK, places, fits = model.nonlinearity.narrow(h_BF, params, recipe.slots, mesh)
      return jax.lax.cond(fits, lambda params: graded_by(params, (h_VK, places), True), densely, params)
    return jax.lax.cond(state.step >= state.counters["dense_until"], if_it_fits, densely, state.params)
  return gradients_of


def make_update(recipe: MadeRecipe, mesh: Mesh, window_steps: int, sparse: bool, n_parts: int,
                downstream: Downstream | None = None) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The function (state, batch x_BW) -> (state after one optimiser step, its metrics); see `make_step`.

  End to end it is also given (`downstream.params`, what is known of the batch's contexts).
  """
  gradients_of = make_gradients(recipe, mesh, window_steps, sparse, downstream)

  def one_step(state: TrainState, x_BW: jax.Array, beyond: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
    x_BW = x_BW.astype(jnp.float32) * state.counters["scale_W"][None]
    if n_parts == 1:
      gradients, observed, values, fired_F = gradients_of(state, x_BW, beyond)
    elif beyond is None:
      parts = jax.lax.map(lambda x_BW: gradients_of(state, x_BW), in_parts(x_BW, n_parts))
    else:
      params, in_context = beyond
      n_contexts = len(jax.tree.leaves(in_context)[0])
      x_PCRW = in_parts(x_BW.reshape(n_contexts, -1, x_BW.shape[1]), n_parts)
      parts = jax.lax.map(lambda part: gradients_of(state, part[0].reshape(-1, x_BW.shape[1]), (params, part[1])),
                          (x_PCRW, jax.tree.map(lambda leaf: in_parts(leaf, n_parts), in_context)))
    if n_parts > 1:
      gradients, observed, values = jax.tree.map(lambda leaf: leaf.mean(0), parts[:3])
      fired_F = parts[3].sum(0)
    params = {**state.params, **observed}
    updates, opt_state = recipe.tx.update(gradients, state.opt_state, params)
    updates = jax.tree.map(lambda update: state.counters["learning_rate"] * update, updates)
    params = recipe.constrain(optax.apply_updates(params, updates))
    n_done = state.step + 1
    tried = state.step >= state.counters["dense_until"]
    counters = {**state.counters, "last_fired_F": jnp.where(fired_F > 0, n_done, state.counters["last_fired_F"]),
                "dense_until": jnp.where(tried & (values["sparse_fraction"] < 1), n_done + RETRY_STEPS,
                                         state.counters["dense_until"])}
    if recipe.ema_decay:
      decay = mean_decay(recipe.ema_decay, state.step)
      counters["ema"] = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, counters["ema"], params)
    return (TrainState(n_done, params, opt_state, counters),
            {**values, "l0": fired_F.sum() / x_BW.shape[0]})
  return one_step


def in_parts(batch: jax.Array, n_parts: int) -> jax.Array:
  """An array cut along its first axis into parts, each of which has items from all devices that it is split over."""
  return batch.reshape(-1, n_parts, *batch.shape[1:]).swapaxes(0, 1)


def make_step(recipe: MadeRecipe, mesh: Mesh, window_steps: int, sparse: bool = False, n_parts: int = 1,
              n_members: int = 0, downstream: Downstream | None = None) -> tuple[Init, Step]:
  """The step of a recipe on a mesh.

  For each batch of a call: encode, penalty, decode, gradients, the update, the recipe's constraint on the decoder, the
  weights' running mean where the recipe keeps one, and the record of which features fired.

  Args:
    recipe: from `monojax.sae.recipes.make_recipe`.
    mesh: device mesh; rows are split over "data", features over "model".
    window_steps: a feature that has not fired for so many steps is dead.
    sparse: whether to compute only the features that fire, wherever they fit into `recipe.slots`.
    n_parts: a batch is computed in so many parts, one after the other, and their gradients averaged, which
      takes that much less memory.
    n_members: 0 for one dictionary; otherwise the state that `step` takes holds so many, each leaf with a
      leading axis for them, and each metric is a list. `init` still makes one.
    downstream: for end-to-end training, what the reconstructions are spliced into. `step` then takes (x_SBW, what is
      known of the contexts of each step), and the metrics kl, kl_weight and kl_share are added; see
      `monojax.sae.downstream.added`.

  Returns:
    init: (key, sample x_NW) -> `TrainState` born on the mesh. Its counters: `last_fired_F`, the step count
      after which each feature last fired; `scale_W`, what each column of a batch is multiplied by; `penalty`
      and `learning_rate`, the peaks of their schedules; `dense_until`, the step before which no sparse code is
      tried; and, where the recipe keeps one, `ema`, the weights' running mean.
    step: (state, x_SBW of any float dtype) -> (state, metrics averaged over the S batches). The
      state is donated. Metrics: loss, mse (mean over elements), l1 and l0 (per row), explained_variance (of
      the batch; NaN where its rows are all equal), fired_fraction (features that fired in the call),
      dead_fraction, sparse_fraction (of the batches, those computed with a sparse code).
  """
  init, one_step = make_init(recipe, mesh), make_update(recipe, mesh, window_steps, sparse, n_parts, downstream)

  def scan_steps(state: TrainState, batches: Any, frozen: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
    before = state.step
    if downstream is None:
      state, values = jax.lax.scan(one_step, state, batches)
    else:
      state, values = jax.lax.scan(lambda state, batch: one_step(state, batch[0], (frozen, batch[1])), state, batches)
    values = jax.tree.map(lambda value: value.mean(0), values)
    return state, {**values, "fired_fraction": jnp.mean(state.counters["last_fired_F"] > before)}

  def scan_members(states: TrainState, batches: Any,
                   frozen: Any = None) -> tuple[TrainState, dict[str, list[jax.Array]]]:
    # A member's loop over the batches is compiled as that of a dictionary by itself is, to the last bit.
    states, values = jax.lax.map(lambda state: scan_steps(state, batches, frozen), states)
    return states, {name: [value[i] for i in range(n_members)] for name, value in values.items()}

  sample = jnp.ones((2, sum(recipe.model.wiring.widths)))
  abstract = jax.eval_shape(lambda key: init(key, sample), jax.random.key(0))
  rules = SHARDING_RULES
  if n_members:
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n_members, *leaf.shape), leaf.dtype), abstract)
    rules = {name: P(None, *spec) for name, spec in rules.items()}
  out_shardings = (meshes.shardings(abstract, mesh, rules), NamedSharding(mesh, P()))
  step = jax.jit(scan_members if n_members else scan_steps, donate_argnums=0, out_shardings=out_shardings)
  return init, step if downstream is None else lambda state, batches: step(state, batches, downstream.params)


def mean_decay(decay: float, step: jax.Array) -> jax.Array:
  """The decay of the weights' running mean at the step after `step` others: min(decay, step / (step + 9)).

  A mean of constant decay .999 still holds a third of the first weights after 1,000 steps. With this one the mean is
  what the first step made (decay 0), and later spans about the last tenth of the steps, until the decay asked for
  spans less.
  """
  return jnp.minimum(decay, step / (step + 9.0))


def judging_what_is_kept(recipe: MadeRecipe, mesh: Mesh, step: Step, n_members: int = 0) -> Step:
  """A step that also says how good the weights are that will be kept, where those are a running mean.

  It adds the metric kept_explained_variance: that of the mean as it is used outside of training, on up to 1,024 rows
  of the call's last batch. Where the last weights are kept, the step's own metrics are about them.

  Args:
    recipe, mesh, n_members: as for `make_step`.
    step: from `make_step`.
  """
  if not recipe.ema_decay:
    return step
  wiring = recipe.model.wiring

  def judge(state: TrainState, x_BW: jax.Array) -> jax.Array:
    x_BW = x_BW.astype(jnp.float32) * state.counters["scale_W"][None]
    y_BO = wiring.targets(x_BW)
    found_BO, _ = recipe.model.apply({"params": kept_params(recipe, state)}, wiring.inputs(x_BW), mesh)
    return explained_variance(y_BO, found_BO - y_BO)

  def judge_last(state: TrainState, batches: Any) -> Any:
    x_SBW = batches[0] if isinstance(batches, tuple) else batches
    x_BW = x_SBW[-1, :_KEPT_ROWS]
    if not n_members:
      return judge(state, x_BW)
    values = jax.lax.map(lambda one: judge(one, x_BW), state)
    return [values[i] for i in range(n_members)]
  judged = jax.jit(judge_last, out_shardings=NamedSharding(mesh, P()))

  def step_and_judge(state: TrainState, batches: Any) -> tuple[TrainState, dict[str, Any]]:
    state, values = step(state, batches)
    return state, {**values, "kept_explained_variance": judged(state, batches)}
  return step_and_judge


def site_scales(sample_NW: jax.Array, widths: tuple[int, ...]) -> jax.Array:
  """For each column the factor that gives its site a mean norm of sqrt(width) over the sample."""
  scales, first = [], 0
  for width in widths:
    norm = jnp.linalg.norm(sample_NW[:, first:first + width], axis=1).mean()
    scales.append(jnp.full((width,), width ** 0.5 / jnp.maximum(norm, 1e-12)))
    first += width
  return jnp.concatenate(scales)


def reconstruction_metrics(y_BO: jax.Array, error_BO: jax.Array, scale_O: jax.Array) -> dict[str, jax.Array]:
  """Mean squared error over elements in the data's own units, and explained variance within the batch."""
  mse = (jnp.square(error_BO).mean(0) / jnp.square(scale_O)).mean()
  return {"mse": mse, "explained_variance": explained_variance(y_BO, error_BO)}
