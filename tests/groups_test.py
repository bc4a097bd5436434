"""Groups of features compile whatever the sizes: XLA of jax 0.10 died of a segmentation fault in many of them on a CPU.

It put the products that are the gradients of two groups, padded and added, into one kernel with the removal of the
gradient's part along each direction. A crash would take the tests with it, so that steps run in a process of their own.
"""

import subprocess
import sys

import pytest

STEPS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from monojax import mesh
from monojax.sae.config import SAEConfig
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.sae.step import make_step
for case in sys.argv[1:]:
  recipe, *sizes = case.split(",")
  n_features, width, batch_rows, *groups = map(int, sizes)
  config = SAEConfig(recipe=recipe, n_features=n_features, batch_rows=batch_rows, group_sizes=tuple(groups), k=8,
                     code="dense")
  made = make_recipe(config, Wiring((width,)), jnp.float32)
  init, step = make_step(made, mesh.make_mesh(), config.window_steps)
  x_SBM = np.random.default_rng(0).normal(size=(1, batch_rows, width)).astype(np.float32)
  state, values = step(init(jax.random.key(0), np.ones((2, width))), x_SBM)
  assert np.isfinite(float(values["loss"]))
  print("done:", case, flush=True)
"""
CASES = ["tm2023,256,256,64,16", "topk,255,255,64,128"]
MORE = ["tm2023,512,256,256,16,32", "gated,200,200,64,16",
        "tm2023,256,256,1024,16,32", "tm2023,512,512,512,16", "tm2023,192,256,64,16",
        "tm2023,256,192,64,16", "tm2023,257,257,64,16", "tm2023,1024,1024,64,16,64", "jumprelu,256,256,64,16",
        "batchtopk,256,256,64,16", "matryoshka,384,384,64"]


@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
def test_groups_of_any_sizes_compile(cases):
  result = subprocess.run([sys.executable, "-c", STEPS, *cases], capture_output=True, text=True, timeout=300)
  assert result.returncode == 0 and result.stdout.count("done:") == len(cases), (result.stdout, result.stderr[-2000:])
