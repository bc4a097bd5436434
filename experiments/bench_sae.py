"""Times every recipe's training step against five matrix products alone, in one run.

The five products (encode, decode, and the gradients of the code, the decoder and the encoder) are the dense
step's floor; a ratio of 1.0 means that penalties, Adam, projection and bookkeeping cost nothing. A step with a
sparse code needs only the encoder's product and can go below it. Encoder biases are set so that about 32
features of a row fire, as they do in training.

  python experiments/bench_sae.py --quick --out=/tmp/bench_sae.json
  python experiments/bench_sae.py --recipes=tm2023,topk --n_features=16384
"""

from absl import flags

from monojax import benchmark, cli

_BATCH = flags.DEFINE_integer("batch_rows", 8192, "rows in a step")
_WIDTH = flags.DEFINE_integer("width", 512, "width M of the activations")
_FEATURES = flags.DEFINE_integer("n_features", 4096, "features F")
_ACTIVE = flags.DEFINE_integer("active", 32, "features of a row that fire, k of the TopK family")
_RECIPES = flags.DEFINE_list("recipes", None, "recipes to time; all by default, tm2023 and topk with --quick")
_MEMBERS = flags.DEFINE_integer("members", 0, "also time a sweep of so many tm2023 dictionaries")
_ROUNDS = flags.DEFINE_integer("rounds", 12, "timed rounds")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "of the matrix products")
_QUICK = flags.DEFINE_boolean("quick", False, "fewer rounds: under 50 seconds on two cores")
_FRESH = flags.DEFINE_boolean("fresh_pages", False, "leave the C library's allocator as it is")
_OUT = flags.DEFINE_string("out", "", "also write the figures to this JSON file")


def products(x_BM):
  """The five products as timed functions."""
  import jax
  import jax.numpy as jnp
  b, m, f = _BATCH.value, _WIDTH.value, _FEATURES.value
  dtype = jnp.dtype(_DTYPE.value)
  keys = jax.random.split(jax.random.key(1), 3)
  x_BM = x_BM.astype(dtype)
  code_BF = jax.nn.relu(jax.random.normal(keys[0], (b, f), dtype))
  W_MF = (jax.random.normal(keys[1], (m, f)) / m ** 0.5).astype(dtype)
  W_FM = (jax.random.normal(keys[2], (f, m)) / f ** 0.5).astype(dtype)

  def timed(function, *arrays):
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arrays))
  dot = lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
  return {
      "encode": timed(lambda x, w: dot(x, w), x_BM, W_MF),
      "decode": timed(lambda c, w: dot(c, w), code_BF, W_FM),
      "code_gradient": timed(lambda x, w: dot(x, w.T), x_BM, W_FM),
      "decoder_gradient": timed(lambda c, x: dot(c.T, x), code_BF, x_BM),
      # Written out first, the transpose makes this product a third faster on a CPU: the floor has it too.
      "encoder_gradient": timed(lambda x, c: dot(jax.lax.optimization_barrier(x.T), c), x_BM, code_BF),
  }


def steps(name, x_BM, sparse, n_members=0):
  """A function that takes one training step of a recipe."""
  import jax
  import jax.numpy as jnp

  from monojax import mesh as meshes
  from monojax.sae import recipes
  from monojax.sae.config import SAEConfig
  from monojax.sae.step import make_step
  from monojax.sae.sweep import stacked
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  config = SAEConfig(recipe=name, n_features=_FEATURES.value, batch_rows=_BATCH.value, k=_ACTIVE.value,
                     warmup_steps=10**9)
  recipe = recipes.make_recipe(config, _WIDTH.value, jnp.dtype(_DTYPE.value))
  init, step = make_step(recipe, mesh, config.window_steps, sparse, 1, n_members)
  state = init(jax.random.key(0), x_BM[:4096])
  h_BF = recipe.model.apply({"params": state.params}, x_BM[:1024] * state.counters["scale_W"][None],
                            method="pre_activations")
  # As many features fire as after training, and stay so: the learning rate is next to nothing.
  level_F = jnp.quantile(h_BF, 1 - _ACTIVE.value / _FEATURES.value, axis=0)
  if "log_threshold_F" in state.params:
    level_F = level_F - jnp.exp(state.params["log_threshold_F"])
  state = state.replace(params={**state.params, "b_enc_F": state.params["b_enc_F"] - level_F})
  held = [stacked([state] * n_members) if n_members else state]

  def one_step():
    held[0], values = step(held[0], x_BM[None])
    return jax.block_until_ready(values)
  return one_step


def main():
  import jax

  from monojax.sae.config import PUBLISHED
  b, m, f = _BATCH.value, _WIDTH.value, _FEATURES.value
  x_BM = jax.nn.relu(jax.random.normal(jax.random.key(0), (b, m)))
  functions = products(x_BM)
  floor_names = tuple(functions)
  chosen = _RECIPES.value or (("tm2023", "topk") if _QUICK.value else tuple(PUBLISHED))
  functions |= {f"{name}/{kind}": steps(name, x_BM, kind == "sparse")
                for name in chosen for kind in ("dense", "sparse")}
  if _MEMBERS.value:
    functions["sweep"] = steps("tm2023", x_BM, False, _MEMBERS.value)
  rounds = 3 if _QUICK.value else _ROUNDS.value
  seconds = benchmark.interleaved(functions, rounds, warmup=1 if _QUICK.value else 2)
  floor = [sum(parts) for parts in zip(*(seconds[name] for name in floor_names), strict=True)]
  gflop = 2 * b * m * f / 1e9
  figures = {f"limit/{name}_gflops": gflop / min(seconds[name]) for name in floor_names}
  figures |= {"limit/matmul_gflops": 5 * gflop / min(floor), "limit/rows_per_s": b / min(floor)}
  for name in functions:
    if "/" in name:
      figures[f"{name}/rows_per_s"] = b / min(seconds[name])
      figures[f"{name}/ratio_to_matmuls"] = benchmark.median_ratio(seconds[name], floor)
  for name in chosen:
    figures[f"{name}/sparse/fraction"] = float(functions[f"{name}/sparse"]()["sparse_fraction"])
  if _MEMBERS.value and "tm2023" in chosen:
    single = [_MEMBERS.value * value for value in seconds["tm2023/dense"]]
    figures["sweep/ratio_to_single_steps"] = benchmark.median_ratio(seconds["sweep"], single)
  figures |= {"shape/batch_rows": b, "shape/width": m, "shape/n_features": f, "shape/active": _ACTIVE.value}
  benchmark.report(figures, _OUT.value)


if __name__ == "__main__":
  cli.run(main, keep_memory=lambda: not _FRESH.value)
