"""The training step of a dictionary: one compiled, donated, scanned function for every recipe."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax.sae.model import SHARDING_RULES
from monojax.training import TrainState


def make_step(recipe, mesh):
  """The step of a recipe on a mesh.

  In each scanned batch: encode, penalty, decode, gradients, removal of the decoder gradient's parallel
  part, Adam, renormalisation of the decoder's columns, and the record of which features fired.

  Args:
    recipe: `monojax.sae.recipes.Recipe`.
    mesh: device mesh; rows are split over "data", features over "model".

  Returns:
    init: (key, b_dec_M) -> `TrainState` born on the mesh. Its counter `last_fired_F` is the step count
      after which each feature last fired.
    step: (state, x_SBM of any float dtype) -> (state, metrics averaged over the S batches). The
      state is donated. Metrics: loss, mse (mean over elements), l1 and l0 (per row),
      explained_variance (of the batch), fired_fraction (features that fired in the call).
  """
  def init(key, b_dec_M):
    def make():
      x_1M = jnp.zeros((1, recipe.model.n_inputs))
      params = recipe.model.init(key, x_1M)["params"]
      params = recipe.constrain({**params, "b_dec_M": jnp.asarray(b_dec_M, jnp.float32)})
      counters = {"last_fired_F": jnp.zeros((recipe.model.n_features,), jnp.int32)}
      return TrainState(jnp.zeros((), jnp.int32), params, recipe.tx.init(params), counters)
    return meshes.born_sharded(make, mesh, SHARDING_RULES)

  def one_step(state, x_BM):
    x_BM = x_BM.astype(jnp.float32)
    scale = recipe.penalty_scale(state.step)
    (loss, terms), gradients = jax.value_and_grad(recipe.objective, has_aux=True)(state.params, x_BM, scale)
    updates, opt_state = recipe.tx.update(gradients, state.opt_state, state.params)
    params = recipe.constrain(optax.apply_updates(state.params, updates))
    n_done = state.step + 1
    n_fired_F = jnp.sum(terms["f_BF"] > 0, axis=0, dtype=jnp.int32)
    last_fired_F = jnp.where(n_fired_F > 0, n_done, state.counters["last_fired_F"])
    values = {"loss": loss, "l0": n_fired_F.sum() / x_BM.shape[0], "l1": terms["l1"],
              **reconstruction_metrics(x_BM, terms["error_BM"])}
    return TrainState(n_done, params, opt_state, {"last_fired_F": last_fired_F}), values

  def scan_steps(state, x_SBM):
    before = state.step
    state, values = jax.lax.scan(one_step, state, x_SBM)
    values = jax.tree.map(jnp.mean, values)
    values["fired_fraction"] = jnp.mean(state.counters["last_fired_F"] > before)
    return state, values

  b_dec_M = jax.ShapeDtypeStruct((recipe.model.n_inputs,), jnp.float32)
  abstract = jax.eval_shape(lambda key: init(key, jnp.zeros(b_dec_M.shape)), jax.random.key(0))
  out_shardings = (meshes.shardings(abstract, mesh, SHARDING_RULES), NamedSharding(mesh, P()))
  return init, jax.jit(scan_steps, donate_argnums=0, out_shardings=out_shardings)


def reconstruction_metrics(x_BM, error_BM):
  """Mean squared error over elements, and explained variance within the batch."""
  mse = jnp.square(error_BM).mean()
  variance = (jnp.square(x_BM).mean(0) - jnp.square(x_BM.mean(0))).mean()
  return {"mse": mse, "explained_variance": 1.0 - mse / variance}
