"""Every program of a run lowers for CUDA and for TPUs, on one device and on a mesh, and calls nothing on the host.

Runs are made as on an accelerator, though on a CPU (`lowered_run.py`): where programs are written in two ways, the
accelerator's is taken.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest
from recipes_test import wiring_of
from tiny_run import EXPERIMENTS, TINY

from monojax import mesh as meshes
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import RECIPES, make_recipe
from monojax.sae.step import make_step
from monojax.subjects.pretrained.weights import load_params, open_weights

PLATFORMS = ("cuda", "tpu")


def lowered(workdir, script, *flags, n_devices=1):
  """What a script compiles, a record each."""
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(n_devices), "JAX_PLATFORMS": "cpu",
                 "PYTHONPATH": str(EXPERIMENTS.parent)}
  out = workdir.parent / f"{script}.json"
  done = subprocess.run([sys.executable, str(pathlib.Path(__file__).parent / "lowered_run.py"), str(out), script,
                         f"--workdir={workdir}", *flags], env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])
  return json.loads(out.read_text())


def check(programs, n_devices, *modules):
  """Nothing calls Python, and programs of these modules are among them; the largest has so many devices."""
  for one in programs:
    assert not [call for call in one["calls"] if "callback" in call or "python" in call], one
  missing = {f"monojax.{name}" for name in modules} - {one["name"].partition(":")[0] for one in programs}
  assert not missing
  assert max(one["devices"] for one in programs) == n_devices


def test_every_program_of_a_run(tmp_path):
  programs = lowered(tmp_path / "run", "monosemanticity", *TINY)
  check(programs, 1, "subjects.train", "subjects.sample", "activations.harvest", "sae.step", "sae.resample",
        "analysis.fidelity", "analysis.logits", "analysis.neighbours", "analysis.proxies", "analysis.removal_direct",
        "analysis.sources")


@pytest.mark.slow
def test_every_program_of_a_run_on_a_mesh(tmp_path):
  programs = lowered(tmp_path / "run", "monosemanticity", *TINY, "--activations.source=stream", "--mesh.model=2",
                     n_devices=4)
  check(programs, 4, "subjects.train", "activations.stream", "sae.step", "analysis.fidelity")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({**pretrained_models.CONFIGS, "bert": pretrained_models.BERT}))
def test_every_pretrained_family(name, tmp_path, monkeypatch):
  """The pass that harvests, and, of what predicts tokens, the score of a spliced dictionary."""
  pretrained_models.write(tmp_path / "weights", {**pretrained_models.CONFIGS, "bert": pretrained_models.BERT}[name])
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  model, params = load_params(open_weights(str(tmp_path / "weights")), jnp.bfloat16)
  ids_BT = jax.ShapeDtypeStruct((4, 16), jnp.int32)
  site = "layer.1.resid"
  encode = jax.jit(lambda params, ids_BT: model.apply({"params": params}, ids_BT, wanted=(site,))[1])
  halved = {site: lambda x: x * 0.5}
  splice = jax.jit(lambda params, ids_BT: model.apply({"params": params}, ids_BT, halved, wanted=())[0])
  for function in (encode, splice):
    assert "callback" not in function.trace(params, ids_BT).lower(lowering_platforms=PLATFORMS).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_step_of_every_recipe(name, sparse, shape, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  config = SAEConfig(recipe=name, n_features=1024, batch_rows=256, k=8)
  wiring = wiring_of(name, 64)
  recipe, width = make_recipe(config, wiring, jnp.bfloat16), sum(wiring.widths)
  init, step = make_step(recipe, meshes.make_mesh(meshes.MeshConfig(*shape)), 10, sparse)
  state = init(jax.random.key(0), np.random.default_rng(0).normal(size=(64, width)).astype(np.float32))
  batches = jax.ShapeDtypeStruct((2, 256, width), jnp.float16)
  program = step.trace(state, batches).lower(lowering_platforms=PLATFORMS).as_text()
  assert "callback" not in program and ("num_partitions = 8" in program) == (shape != (1, 1))
