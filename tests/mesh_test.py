"""Every stage on meshes of several devices against one device: the same to rounding."""

import contextlib
import dataclasses
import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes_test import wiring_of
from tiny_run import ENVIRONMENT, command

from monojax import checkpoint
from monojax import mesh as meshes
from monojax.activations import harvest
from monojax.activations.config import HarvestConfig
from monojax.config import InputError
from monojax.mesh import MeshConfig
from monojax.metrics import MetricsConfig
from monojax.pipeline import stages
from monojax.pipeline.checks import look_ahead
from monojax.pipeline.config import FrontierConfig, RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig, SweepConfig
from monojax.sae.model import SHARDING_RULES, Wiring
from monojax.sae.recipes import RECIPES, make_recipe
from monojax.sae.step import make_step
from monojax.sae.sweep import name_of, train_sweep
from monojax.subjects.config import SubjectConfig, TransformerConfig
from monojax.text.config import TextConfig

SHAPES = [(2, 1), (1, 2), (2, 2)]
M = 12
SAE = SAEConfig(n_features=24, batch_rows=64, n_steps=12, scan_steps=4, checkpoint_every_steps=8, start_rows=256,
                buffer_rows=2048, resample_every_steps=6, resample_rows=64, dead_window_steps=2, learning_rate=0.01,
                sparsity_coefficient=0.1, val_tokens=2000)
# Activations are kept in 32 bits: in 16, a difference in the last bit can round to another number.
CONFIG = RunConfig(
    tokens=TextConfig(max_bytes=120_000, vocab_size=300, val_fraction=0.2),
    subject=SubjectConfig(model=TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=32), n_context=32, n_steps=8,
                          batch_contexts=8, scan_steps=4, sample_tokens=0, val_tokens=2000),
    activations=HarvestConfig(dtype="float32", batch_contexts=16, shard_rows=8192, chunk_rows=1024),
    sae=SAE, frontier=FrontierConfig((0.02,)), sweep=SweepConfig(name="grid", sparsities=(0.02, 0.3)))


def on(shape, **sections):
  return dataclasses.replace(CONFIG, mesh=MeshConfig(*shape), **sections)


def require_close(found, wanted, of):
  assert jax.tree.structure(found) == jax.tree.structure(wanted), of
  for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{of} {jax.tree_util.keystr(path)}")


def parameters(workdir):
  """{folder: parameters} of everything trained in a run."""
  folders = {path.parent.parent for path in workdir.rglob("_CHECKPOINT_METADATA")}
  return {path.relative_to(workdir).as_posix(): checkpoint.load_params(path)[0] for path in folders}


class Rows:
  """A source of exponential rows."""

  def __init__(self, width):
    self.width = width

  def batch(self, step):
    return np.random.default_rng(step).exponential(size=(64, self.width)).astype(np.float32)

  def sample(self, n_rows, seed):
    return np.random.default_rng(7).exponential(size=(n_rows, self.width)).astype(np.float32)


def swept(directory, shape, configs):
  wiring = wiring_of(configs[0].recipe, M)
  return {name: params for name, (_, _, params) in train_sweep(
      configs, Rows(sum(wiring.widths)), wiring, directory, {name_of(config): {} for config in configs},
      meshes.make_mesh(MeshConfig(*shape)), MetricsConfig()).items()}


def test_a_sweep_on_a_mesh_is_that_on_one_device(tmp_path):
  configs = SweepConfig(sparsities=(0.05, 0.3)).configs(dataclasses.replace(SAE, n_steps=4, resample_every_steps=0))
  require_close(swept(tmp_path / "several", (2, 2), configs), swept(tmp_path / "one", (1, 1), configs), (2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_of_two_groups_with_resampling(tmp_path, shape):
  topk = dataclasses.replace(SAE, recipe="topk", k=3, sparsity_coefficient=None)
  configs = [*SweepConfig(sparsities=(0.05, 0.3)).configs(SAE), *SweepConfig(seeds=(0, 1)).configs(topk)]
  require_close(swept(tmp_path / "several", shape, configs), swept(tmp_path / "one", (1, 1), configs), shape)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sweep_of_every_recipe(tmp_path, recipe):
  base = SAEConfig(recipe=recipe, n_features=24, batch_rows=64, n_steps=8, scan_steps=4, start_rows=256,
                   **{"k": 3} if RECIPES[recipe].knob == "k" else {"sparsity_coefficient": 0.05})
  configs = SweepConfig(seeds=(0, 1)).configs(base)
  wanted = swept(tmp_path / "one", (1, 1), configs)
  for shape in SHAPES:
    require_close(swept(tmp_path / f"{shape}", shape, configs), wanted, (recipe, shape))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A run of which only the tokens are made."""
  workdir = tmp_path_factory.mktemp("mesh") / "text"
  stages.prepare_text(RunFolder(workdir), CONFIG)
  return workdir


def whole_run(text, workdir, shape, source):
  """Every stage that takes a mesh, and the analysis of what they make."""
  shutil.copytree(text, workdir)
  run = RunFolder(workdir)
  config = on(shape, activations=dataclasses.replace(CONFIG.activations, source=source))
  look_ahead(run, config, stages.IN_ORDER)
  stages.train_subject(run, config)
  stages.harvest(run, config)
  stages.train_sae(run, config)
  stages.train_frontier(run, config)
  if source == "store":
    stages.sweep(run, config)
    topk = dataclasses.replace(SAE, recipe="batchtopk", k=3, sparsity_coefficient=None)
    stages.train_sae(run, dataclasses.replace(config, sae=topk), "dictionaries/other")
    (workdir / "frontier").rename(workdir / "from the start")
    stages.train_frontier(run, dataclasses.replace(config, frontier=FrontierConfig((0.02,), n_steps=4)))
  return parameters(workdir), json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module", params=["store", "stream"])
def alone(request, text, tmp_path_factory):
  return request.param, whole_run(text, tmp_path_factory.mktemp("one") / "run", (1, 1), request.param)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_stage_on_a_mesh(alone, text, tmp_path, shape):
  source, (wanted, summary) = alone
  found, figures = whole_run(text, tmp_path / "run", shape, source)
  assert len(wanted) >= (9 if source == "store" else 5)
  require_close(found, wanted, (source, shape))
  assert figures.keys() == summary.keys()
  for name, value in summary.items():
    if isinstance(value, float) and not name.endswith("seconds"):
      assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("shape", [(1, 1), *SHAPES, (4, 1), (0, 1), (0, 2)])
def test_a_harvest_takes_the_devices_of_the_mesh(shape):
  mesh = meshes.make_mesh(MeshConfig(*shape))
  own = harvest.mesh_of(CONFIG.activations, mesh)
  assert set(own.devices.flat) == set(mesh.devices.flat) and own.shape["data"] == mesh.size


@pytest.mark.parametrize("stage, section, field, shape", [
    ("subject", "subject", "batch_contexts", (3, 1)), ("activations", "activations", "batch_contexts", (3, 1)),
    ("activations", "activations", "batch_contexts", (1, 3)), ("sae", "sae", "batch_rows", (3, 1)),
    ("frontier", "sae", "batch_rows", (3, 2)), ("sweeps/grid", "sae", "batch_rows", (3, 1))])
def test_a_batch_that_does_not_divide_is_named_before_any_work(tmp_path, stage, section, field, shape):
  value = getattr(getattr(CONFIG, section), field)
  with pytest.raises(InputError, match=f"mesh.data={shape[0]}") as found:
    look_ahead(RunFolder(tmp_path / "run"), on(shape), [stage])
  assert f"{section}.{field}={value}" in str(found.value) and not (tmp_path / "run").exists()


# Studies take all devices of the machine.
STUDIES = {
    "synthetic": ["--recipes=tm2023,batchtopk", "--levels=2", "--sizes=1", "--grid_features=32", "--grid_width=16",
                  "--grid_steps=20", "--planted.n_features=16", "--planted.width=12", "--planted.mean_active=2",
                  "--sae.n_features=16", "--sae.k=2", "--sae.batch_rows=512", "--sae.n_steps=20"],
    "index_arithmetic": ["--mlp.n_steps=20", "--mlp.batch_rows=256", "--sae.n_features=256", "--sae.n_steps=20",
                         "--sae.batch_rows=512", "--sae.k=16", "--sweep_recipes=topk", "--sweep_sizes=32"]}


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_on_several_devices(tmp_path, study):
  found = []
  for n in (1, 2):
    environment = {**ENVIRONMENT, "XLA_FLAGS": f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count={n}"}
    result = subprocess.run(command(study, tmp_path / str(n), *STUDIES[study]), env=environment, capture_output=True,
                            text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    found.append(parameters(tmp_path / str(n)))
    # Biases that a batch normalisation follows have a gradient of nothing but rounding; the finished subject has none.
    found[-1].pop("mlp/checkpoints", None)
  require_close(found[1], found[0], study)


@pytest.mark.slow
def test_a_million_features_are_saved_and_restored_shard_by_shard(tmp_path):
  n_features = 2**20
  config = SAEConfig(recipe="topk", n_features=n_features, k=4, batch_rows=16)
  of_mesh = lambda shape: meshes.make_mesh(MeshConfig(*shape), jax.devices()[:shape[0] * shape[1]])

  def init(width, shape):
    return make_step(make_recipe(config, Wiring((width,)), np.float32), of_mesh(shape), 100)[0]
  largest = lambda state, n: [leaf for leaf in jax.tree.leaves(state) if leaf.size >= n_features * n]

  # At the width of an 8-billion Llama, in shapes alone: no device holds more than its part.
  sample = jnp.ones((4, 4096))
  abstract = jax.eval_shape(lambda key: init(4096, (1, 8))(key, sample), jax.random.key(0))
  placed = meshes.shardings(abstract, of_mesh((1, 8)), SHARDING_RULES)
  parts = [np.prod(place.shard_shape(leaf.shape)) for leaf, place in zip(jax.tree.leaves(abstract),
                                                                         jax.tree.leaves(placed), strict=True)]
  assert sum(parts) < 1.001 * sum(leaf.size for leaf in jax.tree.leaves(abstract)) / 8

  state = init(8, (1, 8))(jax.random.key(0), np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))
  with contextlib.closing(checkpoint.Checkpoints(tmp_path, {})) as saved:
    saved.save(3, state)
  written = [one["array_metadata"] for file in tmp_path.glob("3/*/array_metadatas/*")
             for one in json.loads(file.read_text())["array_metadatas"]]
  sizes = [np.prod(one["write_shape"]) for one in written]
  assert len(largest(state, 8)) == 8 and max(sizes) == n_features * 8 / 8  # each device its own part, none the whole
  wanted = init(8, (1, 4))(jax.random.key(1), np.ones((64, 8), np.float32))
  with contextlib.closing(checkpoint.Checkpoints(tmp_path, {})) as saved:
    found = saved.restore(wanted).state
  for before, after in zip(largest(state, 1), largest(found, 1), strict=True):
    assert after.addressable_shards[0].data.size == after.size // 4
    for shard in after.addressable_shards:
      np.testing.assert_array_equal(shard.data, np.asarray(before[shard.index]))
