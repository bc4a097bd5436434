"""The whole pipeline through its scripts, on little text: every stage, bad input, kill and go on."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import monojax
from monojax import runs
from monojax.config import InputError

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
TINY = [
    "--text.max_bytes=400000", "--text.vocab_size=400", "--text.val_fraction=0.2",
    "--subject.model.n_context=32", "--subject.model.d_model=32", "--subject.model.d_mlp=48",
    "--subject.model.vocab_size=448",  # more than the tokenizer has, as for a mesh that must divide it
    "--subject.n_steps=60", "--subject.checkpoint_every_steps=20", "--subject.sample_tokens=8",
    "--activations.shard_rows=16384", "--activations.chunk_rows=1024", "--sae.buffer_rows=4096",
    "--sae.n_features=64", "--sae.batch_rows=256", "--sae.n_steps=90", "--sae.checkpoint_every_steps=30",
    "--sae.resample_every_steps=25", "--sae.resample_rows=1024", "--sae.start_rows=1024",
    "--frontier.sparsities=0.02", "--frontier.n_steps=20",
    "--analysis.n_tokens=20000", "--analysis.n_detector_tokens=10000",
]


def tiny(*fields):
  """Those of the flags that scripts of only some stages know."""
  return [flag for flag in TINY if flag[2:].split(".")[0] in fields]


STAGES = [("prepare_text", "text"), ("train_subject", "subject"), ("harvest", "activations"),
          ("train_sae", "sae"), ("train_frontier", "frontier"), ("analyze", "analysis"),
          ("build_browser", "browser")]


# Later calls take the first one's compiled programs: the same programs, in less time.
CACHE = tempfile.TemporaryDirectory()
ENVIRONMENT = {**os.environ, "JAX_COMPILATION_CACHE_DIR": CACHE.name,
               "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def command(script, workdir, *flags):
  return [sys.executable, str(EXPERIMENTS / f"{script}.py"), f"--workdir={workdir}", *flags]


def run(script, workdir, *flags, timeout=300):
  return subprocess.run(command(script, workdir, *flags), capture_output=True, text=True, timeout=timeout,
                        env=ENVIRONMENT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run made in one call by the main script."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  result = run("monosemanticity", workdir, *TINY)
  assert result.returncode == 0, result.stderr[-3000:]
  return workdir, result.stdout


@pytest.fixture(scope="module")
def streamed(finished, tmp_path_factory):
  """The same run, but for activations that are computed where they are used."""
  workdir = tmp_path_factory.mktemp("runs") / "streamed"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  result = run("monosemanticity", workdir, *TINY, "--source=stream")
  assert result.returncode == 0, result.stderr[-3000:]
  return workdir


def contents(workdir):
  """Digests of what a run is made of: everything but timings, logs and what orbax says of the hour."""
  digests = {}
  checkpoints = {path.parent.parent for path in workdir.rglob("_CHECKPOINT_METADATA")}
  for path in sorted(workdir.rglob("*")):
    name = path.relative_to(workdir).as_posix()
    skipped = (any(saved in path.parents for saved in checkpoints) or "site/" in name or path.name.endswith(".__lock")
               or path.name in ("metrics.jsonl", "stage.json", "summary.json", "figures.json", "frontier.csv"))
    if path.name == "frontier.json":
      points = [{**point, "train_seconds": None} for point in json.loads(path.read_text())]
      digests[name] = json.dumps(points, sort_keys=True)
    elif path.is_file() and not skipped:
      digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  for directory in sorted(checkpoints):
    from monojax import checkpoint
    params, _, step = checkpoint.load_params(directory)
    leaves = json.dumps({"step": step, "params": _digests(params)}, sort_keys=True)
    digests[directory.relative_to(workdir).as_posix()] = leaves
  for stage in runs.INPUTS:
    if record := runs.Run(workdir).stage(stage):
      digests[f"figures of {stage}"] = json.dumps(record["figures"])
  return digests


def _digests(tree):
  if isinstance(tree, dict):
    return {name: _digests(value) for name, value in tree.items()}
  return hashlib.sha256(np.ascontiguousarray(tree).tobytes()).hexdigest()


def test_summary_holds_every_figure(finished):
  workdir, printed = finished
  summary = json.loads((workdir / "summary.json").read_text())
  for name in ("subject/val_loss", "subject/unigram_loss", "subject/bigram_loss", "sae/l0",
               "sae/explained_variance", "sae/ce_recovered_zero", "sae/ce_recovered_mean",
               "sae/alive_fraction", "sae/ultralow_fraction", "sae/n_features"):
    assert np.isfinite(summary[name]), name
    assert name in printed
  assert all(summary[f"{stage}/seconds"] >= 0 for stage in runs.INPUTS)
  assert summary["sae/n_features"] == 64 and summary["subject/val_loss"] < summary["subject/unigram_loss"]
  assert (workdir / "browser" / "site" / "index.html").exists()
  assert (workdir / "frontier" / "frontier.csv").read_text().count("\n") == 3
  assert (workdir / "subject" / "samples.txt").stat().st_size > 0


def test_a_finished_run_is_not_done_again(finished):
  workdir, _ = finished
  before = contents(workdir)
  started = time.time()
  result = run("monosemanticity", workdir, *TINY)
  assert result.returncode == 0 and result.stdout.count("already done") == len(runs.INPUTS)
  assert contents(workdir) == before
  assert not [p for p in workdir.rglob("*") if p.is_file() and p.stat().st_mtime > started
              and p.name != "summary.json"]


def test_stage_scripts_make_the_same_run(finished, tmp_path):
  workdir, _ = finished
  for script, field in STAGES:
    flags = [flag for flag in TINY if flag.startswith(f"--{field}.")]
    result = run(script, tmp_path / "tiny", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
  assert contents(tmp_path / "tiny") == contents(workdir)


def test_load_gives_everything_for_a_notebook(finished):
  workdir, _ = finished
  loaded = monojax.load(workdir)
  summary = json.loads((workdir / "summary.json").read_text())
  features = loaded.features
  assert features.density_F.shape == (64,)
  np.testing.assert_allclose(np.mean(features.status_F != 2), summary["sae/alive_fraction"])
  strings, f_TF = loaded.activations("In the beginning God created the heaven and the earth.")
  assert f_TF.shape == (len(strings), 64) and "".join(strings[1:]).startswith("In the beginning")
  x_BM = np.random.default_rng(0).exponential(size=(5, 48)).astype(np.float32)
  f_BF = loaded.sae.apply({"params": loaded.sae_params}, x_BM, method="encode")
  p = loaded.sae_params
  np.testing.assert_allclose(
      f_BF, np.maximum((x_BM - p["b_dec_M"]) @ p["W_enc_MF"] + p["b_enc_F"], 0), atol=1e-4)


def test_examples_in_the_tables_are_what_the_model_computes(finished):
  """The centre token's activation of a feature's best example, recomputed from its context."""
  workdir, _ = finished
  loaded = monojax.load(workdir)
  features = loaded.features
  feature = int(np.argmax(features.max_act_F))
  np.testing.assert_allclose(features.example_acts_FEW[feature, 0, 4], features.max_act_F[feature])
  tokens = runs.open_tokens(runs.Run(workdir), "train")
  from monojax.analysis.fidelity import make_encode
  encode = make_encode(loaded.subject, loaded.sae, loaded.reads)
  width = loaded.subject.config.n_context
  best, analysed_C = 0.0, tokens.choose(width, 20_000, 0)  # TINY's analysis.n_tokens, and its seed
  for first in range(0, len(analysed_C), 64):
    index_B = analysed_C[first:first + 64]
    f_NF, _ = encode(loaded.subject_params, loaded.sae_params, tokens.context(index_B, width))
    best = max(best, float(np.max(f_NF[:, feature])))
  np.testing.assert_allclose(features.max_act_F[feature], best, atol=1e-4)


def test_dictionaries_beside_the_run_share_a_table_and_load(finished, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(finished[0], workdir)
  before = contents(workdir)
  flags = tiny("sae") + ["--sae.n_steps=30", "--sae.resample_every_steps=0"]
  for script, more in (("sweep", ["--sweep.name=l1", "--sweep.sparsities=0.01,0.05"]),
                       ("train_sae", ["--name=four", "--sae.recipe=topk", "--sae.k=4"])):
    result = run(script, workdir, *flags, *more)
    assert result.returncode == 0, result.stderr[-3000:]
  points = json.loads((workdir / "sweeps" / "all.json").read_text())
  assert [point["recipe"] for point in points] == ["tm2023", "tm2023", "topk"] and points[2]["l0"] <= 4
  assert points[0]["l0"] < points[1]["l0"] and all(0 < point["train_seconds"] < 300 for point in points)
  assert (workdir / "sweeps" / "all.csv").read_text().count("\n") == 4
  for picture in ("frontier.png", "l1/curves.png", "four/curves.png"):
    assert (workdir / "sweeps" / picture).stat().st_size > 10_000
  loaded = monojax.load(workdir, dictionary=f"sweeps/four/dictionaries/{points[2]['name']}")
  _, f_TF = loaded.activations("In the beginning God created the heaven and the earth.")
  assert f_TF.shape[1] == 64 and 0 < (f_TF > 0).sum(1).max() <= 4
  with pytest.raises(InputError, match="no analysis"):
    _ = loaded.features
  with pytest.raises(InputError, match="sweeps/five"):
    monojax.load(workdir, dictionary="sweeps/five")
  assert {name: digest for name, digest in contents(workdir).items() if not name.startswith("sweeps")} == before


def bad_inputs(finished, tmp_path):
  workdir, _ = finished
  empty, binary = tmp_path / "empty.jsonl", tmp_path / "wrong.jsonl"
  empty.write_text("")
  binary.write_text('{"body": "x"}\n' * 10)
  return {
      "missing path": (["--text.paths=/no/such.jsonl", f"--workdir={tmp_path}/a"], "/no/such.jsonl"),
      "empty corpus": ([f"--text.paths={empty}", f"--workdir={tmp_path}/b"], "empty.jsonl"),
      "no such field": ([f"--text.paths={binary}", f"--workdir={tmp_path}/c"], "text"),
      "wrong preset": (["--preset=huge", f"--workdir={tmp_path}/d"], "demo, small, paper"),
      "no workdir": ([], "workdir"),
      "unknown flag": (["--sae.n_feature=3", f"--workdir={tmp_path}/e"], "sae.n_feature"),
      "bad value": (["--sae.n_features=-3", f"--workdir={tmp_path}/f"], "sae.n_features=-3"),
      "changed config": ([f"--workdir={workdir}", *TINY, "--subject.learning_rate=0.5"],
                         "subject.*learning_rate: 0.004 -> 0.5"),
      "vocabulary too big": ([f"--workdir={tmp_path}/g", "--text.max_bytes=20000", "--text.vocab_size=60000"],
                             "vocab_size"),
      "stray argument": (["demo", f"--workdir={tmp_path}/h"], "demo"),
      "no such site": ([f"--workdir={tmp_path}/copy", *TINY, "--activations.site=layer.7.mlp.hidden"],
                       "layer.0.mlp.hidden"),
      "site behind a LayerNorm": ([f"--workdir={tmp_path}/copy", *TINY, "--activations.site=layer.0.mlp.in"],
                                  "activations.site"),
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
  assert result.returncode == 0 and result.stdout.count("already done") == len(runs.INPUTS)


def test_a_refused_setting_can_be_corrected(tmp_path):
  flags = ["--text.max_bytes=20000", "--text.val_fraction=0.2"]
  assert run("prepare_text", tmp_path / "run", *flags, "--text.vocab_size=60000").returncode == 2
  result = run("prepare_text", tmp_path / "run", *flags, "--text.vocab_size=300")
  assert result.returncode == 0, result.stderr[-3000:]


def test_every_script_explains_itself():
  scripts = [path for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text()]
  assert len(scripts) >= 11
  for script in scripts:
    result = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True,
                            timeout=60)
    assert "python experiments/" in result.stdout and "--" in result.stdout, (script, result.stderr)


def test_a_stream_does_as_well_as_a_store(finished, streamed):
  stored, found = (json.loads((workdir / "summary.json").read_text()) for workdir in (finished[0], streamed))
  assert not (streamed / "activations" / "sites").exists()
  assert 0 <= stored["activations/rows"] - found["activations/rows"] < 8 * 32  # fewer than 8 contexts are left out
  for name, tolerance in (("activations/mean_norm", 0.01), ("sae/explained_variance", 0.03),
                          ("sae/ce_recovered_zero", 0.05), ("sae/l0", 1.0)):
    assert found[name] == pytest.approx(stored[name], abs=tolerance), name
  assert monojax.load(streamed).mean_O == pytest.approx(monojax.load(finished[0]).mean_O, abs=0.02)


def kill_at_random_and_finish(workdir, seed, n_kills, *flags):
  """Runs the pipeline, killing it at random up to `n_kills` times and at least once, then lets it end."""
  rng = random.Random(seed)
  n_killed, delay = 0, rng.uniform(2.0, 25.0)
  while n_killed < n_kills:
    process = subprocess.Popen(command("monosemanticity", workdir, *TINY, *flags), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True, env=ENVIRONMENT)
    try:
      assert process.wait(delay) == 0
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      n_killed, delay = n_killed + 1, rng.uniform(2.0, 25.0)
      continue
    if n_killed:
      break
    shutil.rmtree(workdir)  # it ended before it could be killed: once more, and sooner
    delay /= 2
  result = run("monosemanticity", workdir, *TINY, *flags)
  assert result.returncode == 0, (seed, result.stderr[-3000:])


def test_killed_once_it_ends_with_the_same_bits(finished, tmp_path):
  kill_at_random_and_finish(tmp_path / "killed", 0, 1)
  assert contents(tmp_path / "killed") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_anywhere_it_ends_with_the_same_bits(finished, tmp_path, seed):
  kill_at_random_and_finish(tmp_path / "killed", seed, 2)
  assert contents(tmp_path / "killed") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_anywhere_a_streamed_run_ends_with_the_same_bits(streamed, tmp_path, seed):
  kill_at_random_and_finish(tmp_path / "killed", seed, 2, "--source=stream")
  assert contents(tmp_path / "killed") == contents(streamed)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
  """The environment in which s3:// is a server on this machine, with a bucket called "bucket"."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  endpoint = f"http://127.0.0.1:{port}"
  try:
    for _ in range(600):
      try:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
        break
      except urllib.error.URLError:
        assert server.poll() is None, "the server has ended"
        time.sleep(0.1)
    yield {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
           "AWS_EC2_METADATA_DISABLED": "true"}
  finally:
    server.kill()
    server.wait()


def test_an_object_store_holds_what_a_disk_would(finished, s3, tmp_path, monkeypatch):
  """Harvested to, killed, gone on with, trained from, killed, gone on with, damaged, repaired."""
  from monojax import checkpoint
  from monojax.activations.folder import Folder
  for name, value in s3.items():
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(ENVIRONMENT, name, value)
  workdir, url = tmp_path / "run", "s3://bucket/some/where"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  harvest = ["harvest", workdir, *tiny("activations"), f"--activations.url={url}"]
  train = ["train_sae", workdir, *tiny("sae")]
  folder, n_killed = Folder(url), 0

  def killed_when(arguments, condition):
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True, env=ENVIRONMENT)
    while process.poll() is None and not condition():
      time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    return process.wait() == -signal.SIGKILL

  for n_shards in (1, 3):
    n_killed += killed_when(harvest, lambda: len(folder.names("sums")) >= n_shards)
  result = run(*harvest)
  assert result.returncode == 0, result.stderr[-3000:]
  steps = lambda: [path.name for path in (workdir / "sae" / "checkpoints").glob("*") if path.name.isdigit()]
  for step in ("30", "60"):
    n_killed += killed_when(train, lambda: step in steps())
  result = run(*train)
  assert result.returncode == 0, result.stderr[-3000:]
  assert n_killed >= 2
  local = finished[0] / "activations"
  assert not (workdir / "activations" / "sites").exists()
  for part in ("sites", "places", "sums"):
    names = folder.names(part)
    assert sorted(names) == sorted(path.relative_to(local / part).as_posix() for path in (local / part).rglob("*")
                                   if path.is_file())
    assert all(folder.read(f"{part}/{name}") == (local / part / name).read_bytes() for name in names)
  found, wanted = (checkpoint.load_params(path / "sae" / "dictionary")[0] for path in (workdir, finished[0]))
  assert _digests(found) == _digests(wanted)

  name = "sites/layer.0.mlp.hidden/c/1/0"
  whole = folder.read(name)
  folder.write(name, whole[:1000] + b"?" + whole[1001:])
  result = run("check_store", workdir)
  assert result.returncode == 1 and "1 damaged shards" in result.stdout, result.stderr[-2000:]
  result = run("check_store", workdir, "--repair")
  assert result.returncode == 0 and folder.read(name) == whole, result.stderr[-2000:]


def test_bad_places_are_named(finished, tmp_path):
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  for url, message in (("ftp://a/b", "give a folder, s3://BUCKET/PATH"), ("s3://", "give a folder, s3://BUCKET/PATH"),
                       ("/proc/nothing", "cannot write /proc/nothing/")):
    result = run("harvest", workdir, *tiny("activations"), f"--activations.url={url}")
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_a_full_disk_loses_nothing(finished, tmp_path):
  """Files may grow to 500 KB: the first shard fails with a message; once they may be larger the harvest goes on."""
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1)); " \
            "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
  result = subprocess.run([sys.executable, "-c", limited, *command("harvest", workdir, *tiny("activations"))[1:]],
                          capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
  assert result.returncode == 2, result.stderr[-3000:]
  assert "cannot write shard" in result.stderr and "it continues there" in result.stderr
  result = run("harvest", workdir, *tiny("activations"))
  assert result.returncode == 0, result.stderr[-3000:]
  store = lambda path: {name: value for name, value in contents(path).items() if name.startswith("activations/")}
  assert store(workdir) == store(finished[0])


def test_transcoders_and_crosscoders_read_the_sites_that_are_stored(finished, tmp_path):
  """Several sites in one store; a transcoder of the MLP, and a crosscoder of two sites."""
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  more = "--activations.more_sites=layer.0.mlp.in,layer.0.mlp.out,layer.0.resid"
  result = run("harvest", workdir, *tiny("activations"), more)
  assert result.returncode == 0, result.stderr[-3000:]
  for name, wiring in (("transcoder", ("--sae.reads=layer.0.mlp.in", "--sae.writes=layer.0.mlp.out")),
                       ("crosscoder", ("--sae.reads=layer.0.mlp.out,layer.0.resid",))):
    result = run("train_sae", workdir, *tiny("sae"), f"--name={name}", "--sae.recipe=topk", "--sae.k=8", *wiring)
    assert result.returncode == 0, result.stderr[-3000:]
    figures = runs.Run(workdir).stage(f"sweeps/{name}")["figures"]
    scores = {key.rpartition("/")[2]: value for key, value in figures.items()}
    assert 0 < scores["l0"] <= 8 and scores["explained_variance"] > 0.1, (name, scores)
    (member,) = (workdir / "sweeps" / name / "dictionaries").iterdir()
    loaded = monojax.load(workdir, member.relative_to(workdir).as_posix())
    assert loaded.activations("the")[1].shape[1] == 64
    assert loaded.writes == (("layer.0.mlp.out",) if name == "transcoder" else loaded.reads)
  result = run("train_sae", workdir, *tiny("sae"), "--name=missing", "--sae.reads=layer.0.attn.out")
  assert result.returncode == 2 and "layer.0.attn.out" in result.stderr and "layer.0.mlp.in" in result.stderr
