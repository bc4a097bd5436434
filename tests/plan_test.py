"""The plan of a run: operations against what XLA counts, and bytes by hand."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest
from tiny_run import ENVIRONMENT, EXPERIMENTS

from monojax.activations.config import HarvestConfig
from monojax.pipeline import plan
from monojax.pipeline.config import FrontierConfig, RunConfig
from monojax.sae.config import SAEConfig
from monojax.subjects.config import SubjectConfig
from monojax.subjects.pretrained.families import read_config
from monojax.subjects.pretrained.model import PretrainedTransformer, param_shapes

# Wide enough that products are nearly all of the work, in contexts of two blocks of queries.
WIDE = dict(pretrained_models.LLAMA, hidden_size=512, intermediate_size=1024, num_attention_heads=8, vocab_size=2048,
            num_key_value_heads=4, max_position_embeddings=512)


def architecture(config):
  return read_config(config, "test")[1]


@pytest.mark.parametrize("name, n_context", [("llama", 64), ("llama", 512), ("gemma2", 64), ("bert", 64)])
def test_operations_of_a_pass_are_what_xla_counts(name, n_context):
  config = {"llama": WIDE, "gemma2": dict(pretrained_models.CONFIGS["gemma2"], hidden_size=512, intermediate_size=1024),
            "bert": dict(pretrained_models.BERT, hidden_size=512, intermediate_size=1024)}[name]
  a = architecture(config)
  model = PretrainedTransformer(a, jnp.float32, a.n_layers)
  tokens = jax.ShapeDtypeStruct((1, n_context), jnp.int32)
  every_layer = tuple(f"layer.{i}.mlp.out" for i in range(a.n_layers))  # so that none is in a loop, which counts once

  def counted(function):
    return jax.jit(function).lower(param_shapes(a, a.n_layers, jnp.float32), tokens).compile().cost_analysis()["flops"]
  seen = plan.seen_of(a, n_context)
  assert seen == {64: 1.0, 512: 0.75}[n_context]
  found = counted(lambda params, x: model.apply({"params": params}, x, wanted=every_layer)[1])
  assert plan.pass_of(a, every_layer).operations(n_context, seen) * n_context == pytest.approx(found, rel=0.1)
  found = counted(lambda params, x: model.apply({"params": params}, x, wanted=every_layer))
  whole = plan.pass_of(a, None, with_logits=True)
  assert whole.operations(n_context, seen) * n_context == pytest.approx(found, rel=0.1)


def test_parameters_of_a_pass_are_those_that_are_loaded():
  a = architecture(WIDE)
  layer = 512 * (8 + 8) * 64 + 512 * 512 + 3 * 512 * 1024
  assert plan.pass_of(a, ["layer.1.resid"]).products == 2 * layer
  assert plan.pass_of(a, ["layer.1.resid"]).parameters == 2 * (layer + 2 * 512) + 2048 * 512
  assert plan.pass_of(a, None, with_logits=True).products == 3 * layer + 2048 * 512


def settings(**changes):
  config = RunConfig(subject=SubjectConfig(weights="x", n_context=64, val_tokens=640),
                     activations=HarvestConfig(site="layer.-2.mlp.in", more_sites=("layer.1.mlp.hidden", "embed"),
                                               n_tokens=64_000, tokens_per_context=16, dtype="float16"),
                     sae=SAEConfig(recipe="topk", k=8, n_features=100, batch_rows=50, n_steps=7, val_tokens=320,
                                   reads=("layer.1.mlp.in",), writes=("layer.1.mlp.hidden",)))
  return dataclasses.replace(config, **changes)


def stages(config, n_available=0):
  return {stage.name: stage for stage in plan.stages_of(config, architecture(WIDE), 4, n_available)}


def test_a_store_of_several_sites_and_a_transcoder():
  a, found = architecture(WIDE), stages(settings())
  assert list(found) == ["subject", "activations", "sae", "analysis"]
  assert found["activations"].disk == 16_000 * ((512 + 1024 + 512) * 2 + 16)
  assert found["activations"].operations == 64_000 * plan.pass_of(a, ["layer.1.mlp.hidden"]).operations(64)
  measured = 4 * 320 * plan.pass_of(a, None, with_logits=True).operations(64)
  assert found["sae"].operations == 350 * (4 * 512 + 6 * 1024) * 100 + measured
  # In and out of the dictionary, in parameters and moments, twice: checkpoints, and the file that it is loaded from.
  assert found["sae"].disk == 16 * (512 + 1024) * 100


def test_a_stream_stores_nothing_and_runs_the_subject_in_training():
  stored, config = settings(), settings(activations=dataclasses.replace(settings().activations, source="stream"))
  found = stages(config)
  assert found["activations"].disk == found["activations"].operations == 0
  more = found["sae"].operations - stages(stored)["sae"].operations
  assert more == 350 * 4 * plan.pass_of(architecture(WIDE), ["layer.1.resid"]).operations(64)  # a quarter is kept


def test_all_of_the_text_or_no_more_than_there_is():
  every = settings(activations=dataclasses.replace(settings().activations, n_tokens=0))
  assert stages(every)["activations"].disk == 0
  assert stages(every, 6400)["activations"].disk == stages(settings(), 6400)["activations"].disk > 0
  assert stages(settings())["activations"].disk == 10 * stages(settings(), 6400)["activations"].disk


def test_the_frontier_counts():
  found = stages(settings(frontier=FrontierConfig(sparsities=(4, 16), n_steps=14)))
  assert found["frontier"].operations > 4 * 350 * (4 * 512 + 6 * 1024) * 100


def command(*flags):
  done = subprocess.run([sys.executable, EXPERIMENTS / "plan.py", *flags], capture_output=True, text=True, timeout=120,
                        env=ENVIRONMENT)
  return done.returncode, done.stdout, done.stderr


def test_the_command_knows_pretrained_shapes(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(WIDE))  # no tensors are needed
  code, text, errors = command(f"--weights={tmp_path}", "--site=layer.-2.mlp.hidden", "--n_features=2048",
                               "--context=64", "--n_rows=640000", "--tflops=0.001", "--device_gb=0.05")
  assert code == 0, errors
  rows = np.array([line.split()[:5] for line in text.splitlines() if line.strip()[:1].isdigit()], float)
  assert rows[:, 0].tolist() == [1, 2, 4, 8]
  np.testing.assert_allclose(rows[:, 3], 16 * 2 * 1024 * 2048 / rows[:, 0] / 1e9, atol=0.006)
  assert "width 1,024" in text and "layers 2" in text and "more than 0.05" in text
  code, _, errors = command(f"--weights={tmp_path}", "--site=layer.9.resid")
  assert code == 2 and "--site='layer.9.resid': the subject's sites are layer.0 to layer.2" in errors
  code, _, errors = command(f"--weights={tmp_path}", "--context=1024")
  assert code == 2 and "--context=1024: the subject reads at most 512 tokens" in errors


def test_the_command_on_llama():
  code, text, errors = command("--preset=llama-3-8b", "--devices=8", "--mesh.model=8")
  assert code == 0, errors
  assert "width 14,336" in text and "subject_params 6,979,321,856" in text
  last = text.splitlines()[-1].split()
  assert last == ["8", "2.01", "2.01", "1.88", "3.89"]
