"""How commands end: interrupted, on a full disk, where nothing can be written, without a package they need."""

import csv
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import ENVIRONMENT, EXPERIMENTS, TINY, command, contents, run, tiny

from monojax import ending, files, metrics
from monojax.config import InputError
from monojax.metrics import MetricsConfig, MetricsLog
from monojax.pipeline import folder
from monojax.pipeline.checks import look_ahead
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder
from monojax.pipeline.stages import dictionaries

INTERRUPTED = "error: interrupted; the same command goes on from the last checkpoint\n"
# Says that Python itself is up, whose own start no program can guard, and does what the script does.
BEGUN = ("import sys; sys.argv = sys.argv[1:]; from monojax.__main__ import script; print('up', flush=True); "
         "script('monosemanticity')")


def interrupt(workdir, when, *flags):
  """Sends SIGINT to the whole run when `when()` returns: (exit status, seconds until it ended, standard error)."""
  process = subprocess.Popen([sys.executable, "-c", BEGUN, *command("monosemanticity", workdir, *TINY, *flags)[1:]],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
  assert process.stdout.readline() == "up\n"
  when(process)
  process.send_signal(signal.SIGINT)
  started = time.monotonic()
  _, errors = process.communicate(timeout=60)
  return process.returncode, time.monotonic() - started, errors


def require_interrupted(code, seconds, errors):
  assert (code, "Traceback" in errors) == (130, False), errors[-3000:]
  assert errors.endswith(INTERRUPTED) and errors.count("error:") == 1 and seconds < 5, (seconds, errors[-3000:])


# Not at once: where both processes wait for one core, the signal would come before the first line after BEGUN's print.
@pytest.mark.parametrize("delay", [0.01, 0.03, 0.1, 0.3])
def test_ctrl_c_works_in_the_first_second(tmp_path, delay):
  require_interrupted(*interrupt(tmp_path / "run", lambda _: time.sleep(delay)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_ctrl_c_works_at_any_moment_and_the_run_ends_with_the_same_bits(finished, tmp_path, seed):
  rng = random.Random(seed)
  for _ in range(3):
    code, seconds, errors = interrupt(tmp_path / "run", lambda _: time.sleep(rng.uniform(0, 20)))
    if code:
      require_interrupted(code, seconds, errors)
  assert run("monosemanticity", tmp_path / "run", *TINY).returncode == 0
  assert contents(tmp_path / "run") == contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["subject", "sae", "frontier"])
def test_ctrl_c_works_while_a_checkpoint_is_written(finished, tmp_path, stage):
  workdir = tmp_path / "run"

  def written(process):
    while process.poll() is None and not [*(workdir / stage).glob("checkpoints/*-tmp*")]:
      time.sleep(0.002)
  for before in folder.STAGES:
    if before == stage:
      break
    shutil.copytree(finished[0] / before, workdir / before)
  workdir.mkdir(exist_ok=True)
  shutil.copy(finished[0] / "run.json", workdir)
  require_interrupted(*interrupt(workdir, written))
  assert run("monosemanticity", workdir, *TINY).returncode == 0
  assert contents(workdir) == contents(finished[0])


def test_what_hangs_in_a_library_is_ended_as_well():
  """The main thread is in a call that no signal ends."""
  script = ("import ctypes; from monojax import ending; ending.watch(); library = ctypes.CDLL(None); "
            "lock = (ctypes.c_char * 64)(); library.pthread_mutex_lock(lock); print('up', flush=True); "
            "library.pthread_mutex_lock(lock)")
  process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "up\n"
  time.sleep(0.5)  # until it is in the call
  signal_at = time.monotonic()
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  require_interrupted(process.returncode, time.monotonic() - signal_at, errors)


def small_disk():
  """Whether a file system of a given size can be had."""
  tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
  return tried.returncode == 0


def on_small_disk(tmp_path, n_bytes, begun, *arguments):
  """Does a command on a disk of so many bytes, then again where there is room.

  Args:
    n_bytes: the size of the disk beyond what `begun` takes.
    begun: the folder of the run that goes on.
    arguments: of `tiny_run.command`, the run's folder left out.

  Returns:
    (exit status and standard error on the small disk, the same with room, the run's folder afterwards).
  """
  disk, result = tmp_path / "disk", tmp_path / "result"
  disk.mkdir()
  size = int(subprocess.run(["du", "-sk", begun], capture_output=True, text=True).stdout.split()[0]) * 1024 + n_bytes
  words = command(arguments[0], disk / "run", *arguments[1:])
  script = """mount -t tmpfs -o size=$1 tmpfs "$2" && cp -r "$3/." "$2/run" && from="$4" && shift 4
    "$@" > "$from/out1" 2> "$from/err1"; echo $? > "$from/code1"; mount -o remount,size=4g "$0"
    "$@" > "$from/out2" 2> "$from/err2"; echo $? > "$from/code2"; cp -r "$0/run" "$from/result" """
  subprocess.run(["unshare", "-rm", "sh", "-c", script, disk, str(size), disk, begun, tmp_path, *words], check=True,
                 timeout=900, env=ENVIRONMENT)
  said = [(int((tmp_path / f"code{i}").read_text()), (tmp_path / f"err{i}").read_text()) for i in (1, 2)]
  return *said, result


def require_full(code, errors):
  """One line that names a file and what is wrong; progress bars end before it."""
  last = errors.splitlines()[-1]
  assert code == 1 and "Traceback" not in errors and errors.count("error:") == 1, errors[-3000:]
  assert last.startswith("error: ") and "/run/" in last and "No space left on device" in last, last
  assert "again" in last, last


@pytest.mark.skipif("not small_disk()")
@pytest.mark.parametrize("n_bytes", [60_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_a_full_disk_while_a_subject_trains(finished, tmp_path, n_bytes):
  (tmp_path / "begun").mkdir()
  shutil.copytree(finished[0] / "tokens", tmp_path / "begun" / "tokens")
  (code, errors), again, result = on_small_disk(tmp_path, n_bytes, tmp_path / "begun", "train_subject",
                                                *tiny("subject"))
  require_full(code, errors)
  assert again[0] == 0, again[1][-3000:]
  alike = lambda path: {name: value for name, value in contents(path).items() if name.startswith("subject/")}
  assert alike(result) == alike(finished[0])


@pytest.mark.slow
@pytest.mark.skipif("not small_disk()")
@pytest.mark.parametrize("seed", range(30))
def test_a_full_disk_anywhere_is_one_line_and_loses_nothing(finished, tmp_path, seed):
  (tmp_path / "begun").mkdir()
  whole = int(subprocess.run(["du", "-sk", finished[0]], capture_output=True, text=True).stdout.split()[0]) * 1024
  (code, errors), again, result = on_small_disk(tmp_path, int(whole * (seed + 0.5) / 31), tmp_path / "begun",
                                                "monosemanticity", *TINY)
  require_full(code, errors)
  assert again[0] == 0, again[1][-3000:]
  assert contents(result) == contents(finished[0])


@pytest.mark.parametrize("error, said", [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device: make room"),
    (OSError(errno.EFBIG, "File too large", b"/a/b"), "/a/b: File too large: raise the limit"),
    (OSError(errno.EROFS, "Read-only file system", pathlib.Path("/a")), "/a: Read-only file system: use a disk"),
    (OSError(errno.EACCES, "Permission denied", "a\nb"), r"a\nb: Permission denied: make that"),
    (OSError("cannot write shard 3\nof x"), "cannot write shard 3 of x"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file or directory")])
def test_an_error_of_the_system_is_one_line(error, said):
  found = ending.described(error)
  assert found.startswith(said) and "\n" not in found


@pytest.mark.parametrize("fails", ["write", "flush", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_whatever_fails_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, fails, code):
  path = tmp_path / "file.json"
  files.write_json(path, "old")

  def fail(*_):
    raise OSError(code, os.strerror(code))
  if fails in ("fsync", "replace"):
    monkeypatch.setattr(os, fails, fail)
  with pytest.raises(OSError) as found, files.replacing(path) as file:
    file.write(b"new")
    if fails in ("write", "flush"):
      fail()
  assert found.value.errno == code and found.value.filename == str(path) and files.read_json(path) == "old"


DICTIONARY = [*tiny("sae"), "--sae.n_steps=30", "--sae.resample_every_steps=0"]


@pytest.mark.parametrize("commands", [
    [("monosemanticity", *TINY), ("check_store",)],
    pytest.param([("harvest",), ("analyze",), ("train_sae", "--name=four", *DICTIONARY),
                  ("sweep", "--sweep.name=l1", "--sweep.sparsities=0.01,0.05", *DICTIONARY)], marks=pytest.mark.slow)])
def test_a_finished_run_that_cannot_be_written_is_done(finished, tmp_path, commands):
  """No file is opened for writing, made, moved or deleted below the run's folder."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  guard = tmp_path / "guard.py"
  guard.write_text("""import os, runpy, sys
place, sys.argv = sys.argv[1], sys.argv[2:]
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def check(event, args):
  wrote = (event == "open" and isinstance(args[2], int) and args[2] & writing) or event in (
      "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime")
  if wrote and isinstance(args[0], (str, bytes)) and os.fsdecode(args[0]).startswith(place):
    raise OSError(30, "Read-only file system", args[0])
sys.addaudithook(check)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
""")
  for script, *more in commands:
    assert run(script, workdir, *more).returncode == 0
  before = contents(workdir)
  for script, *more in commands:
    result = subprocess.run([sys.executable, str(guard), str(workdir), *command(script, workdir, *more)[1:]],
                            capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode == 0, (script, result.stderr[-3000:])
  assert contents(workdir) == before


@pytest.mark.parametrize("field, package", [("tensorboard", "tensorboardX"), ("wandb_project", "wandb")])
def test_a_package_that_a_flag_needs_is_looked_for_first(tmp_path, monkeypatch, field, package):
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  config = RunConfig(metrics=MetricsConfig(**{field: True if field == "tensorboard" else "x"}))
  for stages in (folder.STAGES, ["subject"], ["sae"], ["sweeps/a"], ["dictionaries/a"]):
    with pytest.raises(InputError, match=rf"--metrics\.{field} needs .*pip install 'monojax\["):
      look_ahead(RunFolder(tmp_path / "run"), config, stages)
  look_ahead(RunFolder(tmp_path / "run"), config, ["tokens", "analysis", "browser"])
  assert not (tmp_path / "run").exists() and package


def test_weights_and_biases_gets_the_settings(tmp_path, monkeypatch):
  (tmp_path / "wandb.py").write_text("""import json, pathlib
class Run:
  def __init__(self, place): self.place = pathlib.Path(place) / "logged.txt"
  def log(self, values, step): self.place.open("a").write(json.dumps([step, values]) + "\\n")
  def finish(self): self.place.open("a").write("finished\\n")
def init(**given):
  (pathlib.Path(given["dir"]) / "given.json").write_text(json.dumps(given))
  return Run(given["dir"])
""")
  monkeypatch.syspath_prepend(tmp_path)
  ids = []
  for first in (1, 2):  # the second is a training that is resumed
    log = MetricsLog(tmp_path / "sae" / "metrics.jsonl", MetricsConfig(wandb_project="mine"), first, {"sae": {"k": 7}})
    log.write(first, {"loss": 0.5})
    log.close()
    given = json.loads((tmp_path / "sae" / "given.json").read_text())
    assert given["config"] == {"sae": {"k": 7}} and given["project"] == "mine" and given["resume"] == "allow"
    ids.append(given["id"])
  assert ids[0] == ids[1]
  assert (tmp_path / "sae" / "logged.txt").read_text().splitlines() == [
      '[1, {"loss": 0.5}]', "finished", '[2, {"loss": 0.5}]', "finished"]


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(names, min_size=1, max_size=5))
def test_tables_are_read_back_as_they_were_and_hold_no_formulas(tmp_path_factory, found):
  path = tmp_path_factory.mktemp("table") / "all.v1"
  points = [{"name": name, "recipe": "topk", "l0": 1.5, "train_seconds": None} for name in found]
  assert dictionaries._write_points(path, points)
  with open(path.with_name("all.v1.csv"), newline="") as file:
    header, *lines = csv.reader(file)
  assert header == ["name", "recipe", "l0", "train_seconds"]
  for name, line in zip(found, lines, strict=True):
    assert line in ([name, "topk", "1.5", ""], [f"'{name}", "topk", "1.5", ""])
    assert not line[0].startswith(("=", "+", "-", "@", "\t"))
  assert files.read_json(path.with_name("all.v1.json")) == points
  assert not dictionaries._write_points(path, points), "what is the same is not written again"


def test_every_script_begins_where_ctrl_c_is_understood():
  from monojax.commands import COMMANDS
  for name in COMMANDS:
    path = EXPERIMENTS / f"{name}.py"
    assert not path.exists() or f'script("{name}")' in path.read_text(), name
