"""Derivatives of Llama 3 with 8 billion parameters: the whole command at full width, and the whole depth in shapes."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_run import ENVIRONMENT, run

from monojax import files
from monojax import mesh as meshes
from monojax.subjects.pretrained.families import read_config
from monojax.subjects.pretrained.model import PretrainedTransformer, param_shapes
from monojax.subjects.pretrained.tensors import sizes_of
from monojax.text.config import TextConfig
from monojax.text.corpus import Problems, documents
from monojax.text.tokenizer import train

SITE = "layer.-1.mlp.hidden"
LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}
LLAMA_70B = {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672,
             "num_attention_heads": 64}


# The whole depth, in shapes.

def architecture(config):
  return read_config(config, "test")[1]


def abstract(config, n_loaded=None):
  a = architecture(config)
  n_loaded = n_loaded or a.n_layers
  return PretrainedTransformer(a, jnp.bfloat16, n_loaded), param_shapes(a, n_loaded, jnp.bfloat16)


@pytest.mark.parametrize("model_axis", [1, 2, 4, 8])
def test_every_large_array_of_32_layers_is_split(model_axis):
  model, params = abstract(LLAMA_8B)
  assert meshes.bytes_of(params) == 2 * 8_030_261_248  # the parameters that the model's page tells
  mesh = meshes.make_mesh(meshes.MeshConfig(data=8 // model_axis, model=model_axis))
  where = meshes.shardings(params, mesh, model.sharding_rules)
  on_device = jax.tree.map(lambda leaf, place: 2 * int(np.prod(place.shard_shape(leaf.shape))), params, where)
  for (path, leaf), n_bytes in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(on_device), strict=True):
    assert n_bytes * model_axis == 2 * leaf.size or leaf.size < 1_000_000, path
  total = sum(jax.tree.leaves(on_device))
  print(f"\nmodel={model_axis}: {total / 1e9:.3f} GB of parameters a device", end="")
  norms = 2 * (2 * 32 + 1) * 4096
  assert total == (2 * 8_030_261_248 - norms) // model_axis + norms


@pytest.mark.parametrize("config", [LLAMA_8B, LLAMA_70B], ids=["8b", "70b"])
def test_all_layers_are_traced_and_lowered_in_seconds(config):
  """Their loop is one program, however many there are."""
  tokens_BT = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
  site = f"layer.{config['num_hidden_layers'] - 1}.mlp.hidden"

  def lowered(n_layers):
    model, params = abstract({**config, "num_hidden_layers": n_layers})
    wanted = (f"layer.{n_layers - 1}.mlp.hidden",)
    start = time.perf_counter()
    program = jax.jit(lambda params, x: model.apply({"params": params}, x, wanted=wanted)).lower(params, tokens_BT)
    return program, time.perf_counter() - start
  program, seconds = lowered(config["num_hidden_layers"])
  logits, sites = program.out_info
  assert logits.shape == (4, 1024, 128_256) and sites[site].shape == (4, 1024, config["intermediate_size"])
  few, _ = lowered(3)
  assert len(program.as_text()) < 1.1 * len(few.as_text())
  assert seconds < 30


def test_a_model_cut_off_at_a_middle_layer_has_only_the_layers_before():
  model, params = abstract(LLAMA_8B, 16)
  embedding, layer = 128_256 * 4096, 218_112_000
  assert meshes.bytes_of(params) == 2 * (embedding + 16 * layer)
  tokens_BT = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
  output, sites = jax.eval_shape(lambda params, x: model.apply({"params": params}, x, wanted=("layer.15.resid",)),
                                 params, tokens_BT)
  assert output is None and sites["layer.15.resid"].shape == (4, 1024, 4096)


# Two layers of full width, in numbers.

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of 3 GB as transformers would write it: shards in bfloat16, their index, and a tokenizer."""
  place = tmp_path_factory.mktemp("llama") / "model"
  place.mkdir()
  write_folder(place, {**LLAMA_8B, "num_hidden_layers": 2})
  yield place
  for path in place.iterdir():
    path.unlink()


def write_folder(place, config):
  (place / "config.json").write_text(json.dumps(config))
  family, a = read_config(config, "test")
  some = np.random.default_rng(0).normal(size=1_000_003).astype(np.float32)
  shards, places = {}, {}
  for layer, name, tensor in family.tensors(a, a.n_layers):
    shards.setdefault("outer" if layer is None else layer, []).append((name, tensor.shape(sizes_of(a))))
  for i, names in enumerate(shards.values(), 1):
    tensors = {}
    for name, shape in names:
      values = 1 + 0.1 * some if len(shape) == 1 else some * shape[1] ** -0.5
      full = name if name == "lm_head.weight" else f"model.{name}"
      tensors[full] = np.resize(values.astype(ml_dtypes.bfloat16), shape)
    file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
    save_file(tensors, place / file, metadata={"format": "pt"})
    places |= dict.fromkeys(tensors, file)
  (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
  texts = [document.text.encode() for document in documents(TextConfig(max_bytes=200_000), Problems())]
  (place / "tokenizer.json").write_text(train(texts, 2000).backend.to_str())


_LOAD = """
import json, pathlib, sys, time
import jax, jax.numpy as jnp
from monojax import mesh as meshes
from monojax.host_memory import keep_freed_memory
from monojax.subjects.config import SubjectConfig
from monojax.subjects.subject import load_pretrained
keep_freed_memory()
jax.block_until_ready(jnp.ones(3) + 1)
own = pathlib.Path("/proc/self")
of_status = lambda name: int((own / "status").read_text().split(name + ":")[1].split()[0]) * 1024
read = lambda: int((own / "io").read_text().split()[1])
(own / "clear_refs").write_text("5")  # the peak is now what there is
before, read_before, start = of_status("VmRSS"), read(), time.perf_counter()
settings = SubjectConfig(weights=sys.argv[1], compute_dtype="bfloat16")
subject = load_pretrained(settings, json.loads(sys.argv[2]))
jax.block_until_ready(subject.params)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": of_status("VmHWM") - before,
                  "read": read() - read_before, "bytes": meshes.bytes_of(subject.params),
                  "n_loaded": subject.model.n_loaded}))
"""


def loaded(folder, sites):
  done = subprocess.run([sys.executable, "-c", _LOAD, str(folder), json.dumps(sites)], capture_output=True, text=True,
                        env=ENVIRONMENT, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  print(f"\n{sites}: {found}", end="")
  return found


@pytest.mark.slow
def test_loading_holds_the_model_once_and_reads_no_layer_above_the_site(folder):
  largest = 2 * 128_256 * 4096
  whole, part = loaded(folder, None), loaded(folder, ["layer.0.mlp.hidden"])
  for found in (whole, part):
    assert 0.9 * found["bytes"] < found["peak"] <= found["bytes"] + 1.1 * largest
    assert found["read"] <= 1.01 * found["bytes"] + 30e6  # headers, the ends of files that identify them, modules
  layer, norms = 2 * 218_112_000, 2 * 4096
  assert (whole["n_loaded"], part["n_loaded"]) == (2, 1)
  assert (whole["bytes"], part["bytes"]) == (2 * (largest + layer) + norms, largest + layer)
  assert part["seconds"] < whole["seconds"]


SMALL = ["--subject.n_context=64", "--subject.val_tokens=256", "--subject.sample_tokens=4",
         "--tokens.max_bytes=400000", "--activations.n_tokens=4096", "--activations.batch_contexts=4",
         "--activations.dtype=bfloat16", "--sae.n_features=256", "--sae.k=16", "--sae.batch_rows=256",
         "--sae.n_steps=64", "--sae.warmup_steps=8", "--sae.learning_rate=0.0005", "--sae.val_tokens=256",
         "--sae.buffer_rows=2048", "--analysis.n_tokens=640", "--analysis.n_detector_tokens=128"]


@pytest.mark.slow
def test_the_whole_command_at_full_width(folder, tmp_path):
  start = time.perf_counter()
  done = run("pretrained", tmp_path / "run", f"--subject.weights={folder}", f"--activations.site={SITE}", *SMALL,
             timeout=1800)
  assert done.returncode == 0, done.stderr[-3000:]
  print(done.stdout, f"{time.perf_counter() - start:.0f} s")
  summary = files.read_record(tmp_path / "run" / "summary.json")
  assert summary["subject/parameters"] == 2 * 128_256 * 4096 + 2 * 218_112_000 + 4096
  assert 8 < summary["sae/l0"] < 32
  steps = [json.loads(line) for line in (tmp_path / "run" / "sae" / "metrics.jsonl").read_text().splitlines()]
  assert steps[-1]["loss"] < steps[0]["loss"]
  assert summary["sae/kl_spliced"] > 0 and np.isfinite(summary["sae/ce_clean"])
  # Of 64 positions the first is left out, and the end of a document, which more than a twentieth of contexts have.
  assert summary["activations/width"] == 14_336 and summary["activations/rows"] == 64 * 62
  site = tmp_path / "run" / "browser" / "site"
  assert (site / "index.html").exists() and any(site.rglob("*.js"))
