"""Times a dictionary's training step: every recipe against its five matrix products and against the peers' steps.

All in one run, on the same rows: the ratios compare where absolute times on a noisy machine do not. The five
products (encode, decode, gradients of the code, the decoder and the encoder) are what a dense step cannot do
without; a sparse step needs the first of them. Peers are timed if installed: pip install 'monojax[peers]'.

  python experiments/bench_sae.py --quick --out=/tmp/bench_sae.json
  python experiments/bench_sae.py --width=768 --n_features=24576 --batch_rows=2048 --recipes=tm2023,topk --rounds=4
"""

import resource

from absl import flags

from monojax import benchmark, cli

_BATCH = flags.DEFINE_integer("batch_rows", 8192, "rows in a step")
_WIDTH = flags.DEFINE_integer("width", 512, "width M of the activations")
_FEATURES = flags.DEFINE_integer("n_features", 4096, "features F")
_ACTIVE = flags.DEFINE_integer("active", 32, "features of a row that fire; k of the TopK family")
_RECIPES = flags.DEFINE_list("recipes", None, "recipes to time; all by default, tm2023 and topk with --quick")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "of the matrix products: float32, bfloat16 or both")
_MEMBERS = flags.DEFINE_integer("members", 0, "also time a sweep of so many tm2023 dictionaries")
_PEERS = flags.DEFINE_boolean("peers", True, "time the peers that are installed")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "timed rounds")
_QUICK = flags.DEFINE_boolean("quick", False, "two recipes, three rounds, no peers: about a minute on two cores")
_FRESH = flags.DEFINE_boolean("fresh_pages", False, "leave the C library's allocator as it is")
_OUT = flags.DEFINE_string("out", "", "also write the figures to this JSON file")

# Which of our recipes does what a peer's architecture does.
SAME = {"standard": "tm2023", "topk": "topk", "batchtopk": "batchtopk"}


def products(x_BM, dtype):
  """The five products as timed functions."""
  import jax
  import jax.numpy as jnp
  b, m, f = _BATCH.value, _WIDTH.value, _FEATURES.value
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


def steps(name, x_BM, sparse, dtype, n_members=0):
  """A function that takes one training step of a recipe, and returns its metrics."""
  import jax
  import jax.numpy as jnp

  from monojax import mesh as meshes
  from monojax.sae.config import SAEConfig
  from monojax.sae.model import Wiring
  from monojax.sae.recipes import make_recipe
  from monojax.sae.step import make_step
  from monojax.sae.sweep import stacked
  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  # As many features fire as after training, and stay so: the learning rate is next to nothing. For each that
  # fires, jan2025's band holds four, as in a dictionary of 4,096 features trained to an L0 of 33.
  config = SAEConfig(recipe=name, n_features=_FEATURES.value, batch_rows=_BATCH.value, k=_ACTIVE.value,
                     warmup_steps=10**9)
  recipe = make_recipe(config, Wiring((_WIDTH.value,)), dtype)
  init, step = make_step(recipe, mesh, config.window_steps, sparse, 1, n_members)
  state = init(jax.random.key(0), x_BM[:4096])
  h_BF = recipe.model.apply({"params": state.params}, x_BM[:1024] * state.counters["scale_W"][None],
                            method="pre_activations")
  # Each feature's own level would be the mean of a few rows where F is large: one for all, in standard deviations.
  mean_F, deviation_F = h_BF.mean(0), h_BF.std(0)
  z_BF = (h_BF[:256] - mean_F[None]) / deviation_F[None]
  above = lambda n: jnp.quantile(z_BF, max(0.0, 1 - n / _FEATURES.value))  # what n entries of a row are above
  level = above(_ACTIVE.value)
  params = state.params
  if name == "jan2025":
    spread_F = recipe.model.nonlinearity.bandwidth / 2 / (level - above(4 * _ACTIVE.value)) / deviation_F
    params = {**params, "W_enc_MF": params["W_enc_MF"] * spread_F, "b_enc_F": params["b_enc_F"] * spread_F}
    mean_F, deviation_F = mean_F * spread_F, deviation_F * spread_F
  level_F = mean_F + level * deviation_F
  if "log_threshold_F" in params:
    level_F = level_F - jnp.exp(params["log_threshold_F"])
  state = state.replace(params={**params, "b_enc_F": params["b_enc_F"] - level_F})
  held = [stacked([state] * n_members) if n_members else state]

  def one_step():
    held[0], values = step(held[0], x_BM[None])
    return jax.block_until_ready(values)
  return one_step


def peers(x_BM):
  """{"NAME/ARCHITECTURE": a function that takes one of its training steps} of the peers that are installed."""
  import numpy as np
  try:
    from sae_peers import PEERS
  except ImportError:
    print("PyTorch is not installed: no peers (pip install 'monojax[peers]')")
    return {}
  found = {}
  for name, (make, architectures) in PEERS.items():
    try:
      found |= {f"{name}/{kind}": make(kind, np.array(x_BM), _FEATURES.value, _ACTIVE.value)
                for kind in architectures}
    except ImportError as error:
      print(f"{name} is not timed: {error}")
  return found


def main():
  import jax
  import jax.numpy as jnp

  from monojax.sae.recipes import OF_ROWS
  b, m, f = _BATCH.value, _WIDTH.value, _FEATURES.value
  x_BM = jax.nn.relu(jax.random.normal(jax.random.key(0), (b, m)))
  chosen = _RECIPES.value or (("tm2023", "topk") if _QUICK.value else OF_ROWS)
  figures = {"shape/batch_rows": b, "shape/width": m, "shape/n_features": f, "shape/active": _ACTIVE.value}
  for dtype_name in _DTYPES.value:
    figures |= measure(x_BM, chosen, dtype_name, jnp.dtype(dtype_name), 5 * 2 * b * m * f / 1e9)
  figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  benchmark.report(figures, _OUT.value)


def measure(x_BM, chosen, dtype_name, dtype, gflop):
  """The figures of one dtype; those of float32 have no prefix."""
  import jax
  prefix = "" if dtype_name == "float32" else f"{dtype_name}/"
  functions = products(x_BM, dtype)
  floor_names = tuple(functions)
  functions |= {f"{name}/{kind}": steps(name, x_BM, kind == "sparse", dtype)
                for name in chosen for kind in ("dense", "sparse")}
  others = peers(x_BM) if _PEERS.value and not _QUICK.value and not prefix else {}
  functions |= others
  if _MEMBERS.value:
    functions["sweep"] = steps("tm2023", x_BM, False, dtype, _MEMBERS.value)
    functions["single"] = steps("tm2023", x_BM, False, dtype)
  # PyTorch's threads go on spinning for 0.2 s after their work.
  seconds = benchmark.interleaved(functions, 3 if _QUICK.value else _ROUNDS.value, warmup=1,
                                  pause_seconds=0.3 if others else 0.0)
  floor = [sum(parts) for parts in zip(*(seconds[name] for name in floor_names), strict=True)]
  rows_per_s = lambda name: _BATCH.value / min(seconds[name])
  figures = {"limit/matmul_gflops": gflop / min(floor), "limit/rows_per_s": _BATCH.value / min(floor)}
  for name in chosen:
    for kind in ("dense", "sparse"):
      figures[f"{name}/{kind}/rows_per_s"] = rows_per_s(f"{name}/{kind}")
      figures[f"{name}/{kind}/ratio_to_matmuls"] = benchmark.median_ratio(seconds[f"{name}/{kind}"], floor)
      if jax.default_backend() != "cpu":
        figures[f"{name}/{kind}/fraction_of_matmul_rate"] = min(floor) / min(seconds[f"{name}/{kind}"])
    figures[f"{name}/sparse/fraction"] = float(functions[f"{name}/sparse"]()["sparse_fraction"])
  for name in others:
    figures[f"peer/{name}/rows_per_s"] = rows_per_s(name)
    ours = SAME[name.split("/")[1]]
    for kind in ("dense", "sparse") if ours in chosen else ():
      figures[f"{ours}/{kind}/ratio_to_{name.split('/')[0]}"] = benchmark.median_ratio(
          seconds[name], seconds[f"{ours}/{kind}"])
  if _MEMBERS.value:
    figures["sweep/ratio_to_single_steps"] = benchmark.median_ratio(
        seconds["sweep"], [_MEMBERS.value * value for value in seconds["single"]])
  return {prefix + name: value for name, value in figures.items()}


if __name__ == "__main__":
  cli.run(main, keep_memory=lambda: not _FRESH.value)
