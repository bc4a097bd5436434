"""Times the dictionary's training step against its five matrix products alone, in one run.

The five products (encode, decode, and the gradients of the code, the decoder and the encoder) are the
dense step's floor; a ratio of 1.0 means that penalties, Adam, projection and bookkeeping cost nothing.

  python experiments/bench_sae.py --quick --out=/tmp/bench_sae.json
"""

from absl import flags

from monojax import benchmark, cli

_BATCH = flags.DEFINE_integer("batch_rows", 8192, "rows in a step")
_WIDTH = flags.DEFINE_integer("width", 512, "width M of the activations")
_FEATURES = flags.DEFINE_integer("n_features", 4096, "features F")
_ROUNDS = flags.DEFINE_integer("rounds", 12, "timed rounds")
_QUICK = flags.DEFINE_boolean("quick", False, "fewer rounds: under 50 seconds on two cores")
_FRESH = flags.DEFINE_boolean("fresh_pages", False, "leave the C library's allocator as it is")
_OUT = flags.DEFINE_string("out", "", "also write the figures to this JSON file")


def main():
  import jax
  import jax.numpy as jnp

  from monojax import mesh as meshes
  from monojax.sae import recipes
  from monojax.sae.config import SAEConfig
  from monojax.sae.step import make_step

  b, m, f = _BATCH.value, _WIDTH.value, _FEATURES.value
  keys = jax.random.split(jax.random.key(0), 4)
  x_BM = jax.nn.relu(jax.random.normal(keys[0], (b, m)))
  code_BF = jax.nn.relu(jax.random.normal(keys[1], (b, f)))
  W_MF = jax.random.normal(keys[2], (m, f)) / m ** 0.5
  W_FM = jax.random.normal(keys[3], (f, m)) / f ** 0.5

  def timed(function, *arrays):
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arrays))

  functions = {
      "encode": timed(lambda x, w: x @ w, x_BM, W_MF),
      "decode": timed(lambda c, w: c @ w, code_BF, W_FM),
      "code_gradient": timed(lambda x, w: x @ w.T, x_BM, W_FM),
      "decoder_gradient": timed(lambda c, x: c.T @ x, code_BF, x_BM),
      # Written out first, the transpose makes this product a third faster on a CPU: the floor has it too.
      "encoder_gradient": timed(lambda x, c: jax.lax.optimization_barrier(x.T) @ c, x_BM, code_BF),
  }
  products = tuple(functions)

  mesh = meshes.make_mesh(meshes.MeshConfig(data=1))
  config = SAEConfig(n_features=f, batch_rows=b, compute_dtype="float32")
  init, step = make_step(recipes.make_recipe(config, m, jnp.float32), mesh)
  state = [init(jax.random.key(0), jnp.zeros(m))]

  def one_step():
    state[0], values = step(state[0], x_BM[None])
    jax.block_until_ready(values)

  functions["tm2023"] = one_step
  rounds = 4 if _QUICK.value else _ROUNDS.value
  seconds = benchmark.interleaved(functions, rounds, warmup=1 if _QUICK.value else 2)
  floor = [sum(parts) for parts in zip(*(seconds[name] for name in products), strict=True)]
  best = lambda name: min(seconds[name])
  gflop = 2 * b * m * f / 1e9
  figures = {f"limit/{name}_gflops": gflop / best(name) for name in products}
  figures |= {
      "limit/matmul_gflops": 5 * gflop / min(floor),
      "limit/rows_per_s": b / min(floor),
      "tm2023/dense/rows_per_s": b / best("tm2023"),
      "tm2023/dense/ratio_to_matmuls": benchmark.median_ratio(seconds["tm2023"], floor),
      "shape/batch_rows": b, "shape/width": m, "shape/n_features": f,
  }
  benchmark.report(figures, _OUT.value)


if __name__ == "__main__":
  cli.run(main, keep_memory=lambda: not _FRESH.value)
