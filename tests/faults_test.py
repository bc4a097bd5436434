"""What goes wrong in a run is named, and the same command goes on from there to the same bits."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_run import ENVIRONMENT, EXPERIMENTS, TINY, command, contents, run, tiny

from monojax.pipeline import folder
from monojax.pipeline.presets import DEMO


def bad_inputs(finished, tmp_path):
  workdir, _ = finished
  empty, binary = tmp_path / "empty.jsonl", tmp_path / "wrong.jsonl"
  empty.write_text("")
  binary.write_text('{"body": "x"}\n' * 10)
  return {
      "missing path": (["--tokens.paths=/no/such.jsonl", f"--workdir={tmp_path}/a"], "/no/such.jsonl"),
      "empty corpus": ([f"--tokens.paths={empty}", f"--workdir={tmp_path}/b"], "empty.jsonl"),
      "no such field": ([f"--tokens.paths={binary}", f"--workdir={tmp_path}/c"], "text"),
      "wrong preset": (["--preset=huge", f"--workdir={tmp_path}/d"], "demo, small, paper"),
      "no workdir": ([], "workdir"),
      "unknown flag": (["--sae.n_feature=3", f"--workdir={tmp_path}/e"], "sae.n_feature"),
      "bad value": (["--sae.n_features=-3", f"--workdir={tmp_path}/f"], "sae.n_features=-3"),
      "changed config": ([f"--workdir={workdir}", *TINY, "--subject.learning_rate=0.5"],
                         f"subject.*learning_rate: {DEMO.subject.learning_rate} -> 0.5"),
      "vocabulary too big": ([f"--workdir={tmp_path}/g", "--tokens.max_bytes=20000", "--tokens.vocab_size=60000"],
                             "vocab_size"),
      "stray argument": (["demo", f"--workdir={tmp_path}/h"], "demo"),
      "no such site": ([f"--workdir={tmp_path}/copy", *TINY, "--activations.site=layer.7.mlp.hidden"],
                       "layer.0.mlp.hidden"),
      "negative seed": (["--subject.seed=-1", f"--workdir={tmp_path}/i"], "subject.seed=-1"),
  }


def test_bad_input_ends_in_one_message(finished, tmp_path):
  import re
  import shutil
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, tmp_path / "copy" / stage)
  for name, (flags, expected) in bad_inputs(finished, tmp_path).items():
    result = subprocess.run([sys.executable, str(EXPERIMENTS / "monosemanticity.py"), *flags],
                            capture_output=True, text=True, timeout=120)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2, (name, result.returncode, result.stderr)
    assert len(errors) == 1 and re.search(expected, errors[0]), (name, result.stderr)
    assert "Traceback" not in result.stderr + result.stdout, name


def test_a_store_cut_short_is_named(finished, tmp_path):
  import shutil
  workdir = tmp_path / "cut"
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / "sae")
  shard = workdir / "activations" / "sites" / "layer.0.mlp.hidden" / "c" / "1" / "0"
  shard.write_bytes(shard.read_bytes()[:-1000])
  result = run("train_sae", workdir, *tiny("sae"))
  assert result.returncode == 2 and "shard" in result.stderr and "Traceback" not in result.stderr
  (workdir / "activations" / "stage.json").unlink()
  result = run("train_sae", workdir, *tiny("sae"))
  assert result.returncode == 2 and "not finished" in result.stderr and "Traceback" not in result.stderr


def test_a_damaged_store_is_checked_and_repaired(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / "damaged")
  check = lambda *flags: run("check_store", workdir, *flags)
  assert (check().returncode, check().stdout) == (0, "0 damaged shards\n")
  damaged = workdir / "activations" / "sites" / "layer.0.mlp.hidden" / "c" / "1" / "0"
  content = bytearray(damaged.read_bytes())
  content[1000] ^= 4
  damaged.write_bytes(content)
  found = check()
  assert found.returncode == 1 and "1 damaged shards" in found.stdout and "shard 1: " in found.stdout + found.stderr
  repaired = check("--repair")
  assert repaired.returncode == 0, repaired.stderr[-3000:]
  assert check().returncode == 0 and contents(workdir) == contents(finished[0])
  result = run("monosemanticity", workdir, *TINY)
  assert result.returncode == 0 and result.stdout.count("already done") == len(folder.STAGES)


def test_a_refused_setting_can_be_corrected(tmp_path):
  flags = ["--tokens.max_bytes=20000", "--tokens.val_fraction=0.2"]
  assert run("prepare_text", tmp_path / "run", *flags, "--tokens.vocab_size=60000").returncode == 2
  result = run("prepare_text", tmp_path / "run", *flags, "--tokens.vocab_size=300")
  assert result.returncode == 0, result.stderr[-3000:]


def kill_at_random_and_finish(workdir, seed, n_kills, *flags, most_seconds=25.0):
  """Runs the pipeline, ending it at random up to `n_kills` times and at least once, then lets it end.

  Returns:
    How many times it was ended, each time by SIGKILL, SIGTERM or SIGINT.
  """
  rng = random.Random(seed)
  n_killed, delay = 0, rng.uniform(most_seconds / 8, most_seconds)
  while n_killed < n_kills:
    process = subprocess.Popen(command("monosemanticity", workdir, *TINY, *flags), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True, env=ENVIRONMENT)
    try:
      assert process.wait(delay) == 0
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
      process.wait()
      n_killed, delay = n_killed + 1, rng.uniform(most_seconds / 8, most_seconds)
      continue
    if n_killed:
      break
    shutil.rmtree(workdir)  # it ended before it could be killed: once more, and sooner
    delay /= 2
  result = run("monosemanticity", workdir, *TINY, *flags)
  assert result.returncode == 0, (seed, result.stderr[-3000:])
  return n_killed


def test_killed_once_it_ends_with_the_same_bits(finished, tmp_path):
  kill_at_random_and_finish(tmp_path / "killed", 0, 1, most_seconds=12.0)
  assert contents(tmp_path / "killed") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_anywhere_it_ends_with_the_same_bits(finished, tmp_path, seed):
  n_killed = kill_at_random_and_finish(tmp_path / "killed", seed, 8, most_seconds=6.0)
  print(f"{n_killed} kills")
  assert contents(tmp_path / "killed") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_anywhere_a_streamed_run_ends_with_the_same_bits(streamed, tmp_path, seed):
  n_killed = kill_at_random_and_finish(tmp_path / "killed", seed, 8, "--source=stream", most_seconds=6.0)
  print(f"{n_killed} kills")
  assert contents(tmp_path / "killed") == contents(streamed)


def test_a_full_disk_loses_nothing(finished, tmp_path):
  """Files may grow to 500 KB: the first shard fails with a message; once they may be larger the harvest goes on."""
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1)); " \
            "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
  result = subprocess.run([sys.executable, "-c", limited, *command("harvest", workdir, *tiny("activations"))[1:]],
                          capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
  assert result.returncode == 1, result.stderr[-3000:]
  assert "cannot write shard" in result.stderr and "it continues there" in result.stderr
  result = run("harvest", workdir, *tiny("activations"))
  assert result.returncode == 0, result.stderr[-3000:]
  store = lambda path: {name: value for name, value in contents(path).items() if name.startswith("activations/")}
  assert store(workdir) == store(finished[0])
