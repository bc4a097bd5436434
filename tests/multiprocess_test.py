"""One job on two processes of two devices each equals the job on one process of four."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys

import numpy as np
import pretrained_models
import pytest

from monojax import checkpoint
from monojax.pipeline import folder
from monojax.pipeline.folder import RunFolder
from monojax.text.config import TextConfig
from monojax.text.corpus import documents
from monojax.text.problems import Problems
from monojax.text.tokenizer import train

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
SETTINGS = [
    "--tokens.max_bytes=300000", "--tokens.vocab_size=400", "--tokens.val_fraction=0.2",
    "--subject.n_context=32", "--subject.model.d_model=32", "--subject.model.d_mlp=48",
    "--subject.n_steps=40", "--subject.checkpoint_every_steps=10", "--subject.batch_contexts=16",
    "--subject.sample_tokens=8",
    "--activations.shard_rows=8192", "--activations.chunk_rows=1024", "--sae.buffer_rows=4096",
    "--sae.n_features=64", "--sae.batch_rows=256", "--sae.n_steps=60", "--sae.checkpoint_every_steps=10",
    "--sae.resample_every_steps=25", "--sae.resample_rows=1024", "--sae.start_rows=1024",
    "--frontier.sparsities=", "--analysis.n_tokens=10000", "--analysis.n_detector_tokens=5000",
]


# A pretrained subject is split over two devices, in each process by itself.
PRETRAINED = [
    "--mesh.model=2", "--tokens.max_bytes=300000", "--tokens.val_fraction=0.2", "--subject.n_context=32",
    "--subject.val_tokens=2048", "--subject.sample_tokens=8", "--activations.site=layer.1.resid",
    "--activations.batch_contexts=16", "--activations.shard_rows=8192", "--activations.chunk_rows=1024",
    "--activations.dtype=float32", "--sae.buffer_rows=4096", "--sae.n_features=64", "--sae.k=8",
    "--sae.batch_rows=256", "--sae.n_steps=60", "--sae.checkpoint_every_steps=10", "--sae.start_rows=1024",
    "--sae.val_tokens=4096", "--analysis.n_tokens=10000", "--analysis.n_detector_tokens=5000",
]


def start(workdir, n_processes, script, *flags):
  """The processes of one job, with four devices in all."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    port = found.getsockname()[1]
  devices = f"--xla_force_host_platform_device_count={4 // n_processes}"
  environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
  command = [sys.executable, str(EXPERIMENTS / f"{script}.py"), f"--workdir={workdir}", *flags]
  several = lambda i: [f"--coordinator=localhost:{port}", f"--num_processes={n_processes}", f"--process_id={i}"]
  return [subprocess.Popen(command + (several(i) if n_processes > 1 else []), env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
          for i in range(n_processes)]


def finish(processes, timeout=900):
  for process in processes:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-4000:]


def require_alike(workdir, expected):
  trained = ("subject/checkpoints",) if (expected / "subject" / "checkpoints").exists() else ()
  for place in (*trained, "sae/checkpoints", "sae/dictionary"):
    found, _, step = checkpoint.load_params(workdir / place)
    wanted, _, wanted_step = checkpoint.load_params(expected / place)
    assert step == wanted_step and found.keys() == wanted.keys()
    for name, value in _flat(wanted):
      np.testing.assert_allclose(dict(_flat(found))[name], value, atol=1e-5, err_msg=f"{place} {name}")
  figures, wanted = (json.loads((path / "summary.json").read_text()) for path in (workdir, expected))
  for name in ("subject/val_loss", "activations/rows", "activations/mean_norm", "sae/l0", "sae/ce_recovered_zero"):
    assert figures[name] == pytest.approx(wanted[name], rel=1e-3), name
  made = [name for name in folder.STAGES if RunFolder(expected).stage(name)]
  assert "browser" in made and all(RunFolder(workdir).stage(name) for name in made)


def _flat(tree, path=()):
  for name, value in tree.items():
    yield from _flat(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]


def llama(folder):
  """Writes a small Llama of random weights with a tokenizer."""
  pretrained_models.write(folder, dict(pretrained_models.LLAMA, vocab_size=400))
  texts = [document.text.encode() for document in documents(TextConfig(max_bytes=200_000), Problems())]
  (folder / "tokenizer.json").write_text(train(texts, 400).backend.to_str())


@pytest.fixture(scope="module", params=["store", "stream", "pretrained"])
def alone(request, tmp_path_factory):
  """A run of one process, and how it was called."""
  workdir = tmp_path_factory.mktemp("alone") / request.param
  if request.param == "pretrained":
    llama(workdir.with_name("llama"))
    call = ["pretrained", f"--subject.weights={workdir.with_name('llama')}", *PRETRAINED]
  else:
    # A stream computes its rows in each run: kept in 16 bits, some of them would round to the other side.
    kept = ["--activations.dtype=float32"] * (request.param == "stream")
    call = ["monosemanticity", f"--source={request.param}", *SETTINGS, *kept]
  finish(start(workdir, 1, *call))
  return workdir, call


@pytest.mark.slow
def test_two_processes_make_the_same_run(alone, tmp_path):
  finish(start(tmp_path / "two", 2, *alone[1]))
  require_alike(tmp_path / "two", alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("n_before, n_after", [(2, 2), (2, 1), (1, 2)])
def test_killed_in_the_middle_the_job_goes_on(alone, tmp_path, n_before, n_after):
  """Also on another number of processes than it was begun with."""
  rng = random.Random(f"{n_before} {n_after}")
  processes = start(tmp_path / "killed", n_before, *alone[1])
  try:
    processes[rng.randrange(n_before)].wait(rng.uniform(10, 60))
  except subprocess.TimeoutExpired:
    pass
  for process in processes:  # what a cluster does with a job that has lost a process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  finish(start(tmp_path / "killed", n_after, *alone[1]))
  require_alike(tmp_path / "killed", alone[0])
