"""A whole run on little text, through the scripts: its settings, how to call them, and what a run consists of."""

import hashlib
import json
import os
import pathlib
import sys

import numpy as np
import warm_scripts

from monojax import checkpoint, files
from monojax.pipeline import folder
from monojax.pipeline.folder import RunFolder

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
TINY = [
    "--tokens.max_bytes=400000", "--tokens.vocab_size=400", "--tokens.val_fraction=0.2",
    "--subject.n_context=32", "--subject.model.d_model=32", "--subject.model.d_mlp=48",
    "--subject.model.vocab_size=448",  # more than the tokenizer has, as for a mesh that must divide it
    "--subject.n_steps=60", "--subject.checkpoint_every_steps=20", "--subject.sample_tokens=8",
    "--activations.shard_rows=16384", "--activations.chunk_rows=1024", "--sae.buffer_rows=4096",
    "--sae.n_features=64", "--sae.batch_rows=256", "--sae.n_steps=90", "--sae.checkpoint_every_steps=30",
    "--sae.val_tokens=16384", "--sae.resample_every_steps=25", "--sae.resample_rows=1024", "--sae.start_rows=1024",
    "--frontier.sparsities=0.02", "--frontier.n_steps=20",
    "--analysis.n_tokens=20000", "--analysis.n_detector_tokens=10000",
]


def tiny(*fields):
  """Those of the flags that scripts of only some stages know."""
  return [flag for flag in TINY if flag[2:].split(".")[0] in fields]




# conftest.py names a folder for compiled programs, which later calls take from there.
ENVIRONMENT = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu",
               "MPLBACKEND": "Agg", "PYTHONPATH": str(EXPERIMENTS.parent)}


def command(script, workdir, *flags):
  return [sys.executable, str(EXPERIMENTS / f"{script}.py"), f"--workdir={workdir}", *flags]


def run(script, workdir, *flags, timeout=300):
  return warm_scripts.run(command(script, workdir, *flags)[1:], ENVIRONMENT, timeout)


def contents(workdir):
  """Digests of what a run is made of: everything but timings, logs and what orbax says of the hour."""
  found = {}
  checkpoints = {path.parent.parent for path in workdir.rglob("_CHECKPOINT_METADATA")}
  for path in sorted(workdir.rglob("*")):
    name = path.relative_to(workdir).as_posix()
    skipped = (any(saved in path.parents for saved in checkpoints) or "site/" in name or path.name.endswith(".__lock")
               or path.name in ("metrics.jsonl", "stage.json", "summary.json", "figures.json", "frontier.csv",
                                files.SUMS, files.LOCK))
    if path.name == "frontier.json":
      points = [{**point, "train_seconds": None} for point in json.loads(path.read_text())]
      found[name] = json.dumps(points, sort_keys=True)
    elif path.is_file() and not skipped:
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  for directory in sorted(checkpoints):
    params, _, step = checkpoint.load_params(directory)
    leaves = json.dumps({"step": step, "params": digests(params)}, sort_keys=True)
    found[directory.relative_to(workdir).as_posix()] = leaves
  for stage in folder.STAGES:
    if record := RunFolder(workdir).stage(stage):
      found[f"figures of {stage}"] = json.dumps(record["figures"])
  return found


def digests(tree):
  if isinstance(tree, dict):
    return {name: digests(value) for name, value in tree.items()}
  return hashlib.sha256(np.ascontiguousarray(tree).tobytes()).hexdigest()
