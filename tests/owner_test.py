"""One owner for a folder: two processes that write the same one cannot meet, and a dead one holds nobody up."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny_run import ENVIRONMENT, TINY, command, contents, tiny

import monojax
from monojax import files
from monojax.activations import owner
from monojax.activations.folder import Folder
from monojax.activations.owner import owned
from monojax.config import InputError

HOLD = """
import sys, time
from monojax.activations.owner import owned
with owned(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def holder(place):
  """A process that owns a folder until it is killed."""
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True,
                             env=ENVIRONMENT)
  assert process.stdout.readline() == "held\n"
  return process


def refused_until(place, signal_):
  """Asserts that a folder which another process owns cannot be owned; that process, which a signal has ended."""
  process = holder(place)
  try:
    with pytest.raises(InputError, match=rf"is in use by process {process.pid} on .* since \d{{4}}-\d\d-\d\d .*: wait"):
      with owned(place):
        pass
  finally:
    process.send_signal(signal_)
  return process


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_another_process_is_named_and_a_dead_one_holds_nobody_up(tmp_path, signal_):
  process = refused_until(tmp_path, signal_)
  time.sleep(0.5)  # it is not waited for: a zombie is dead, too
  with owned(tmp_path):
    assert json.loads((tmp_path / files.LOCK).read_text())["holder"]["pid"] == os.getpid()
  assert list(tmp_path.iterdir()) == []
  process.wait()


def test_who_owns_a_folder_can_own_it_again_and_leftovers_go(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "sub" / f"half{files.PARTIAL}").write_text("x")
  with owned(tmp_path):
    with owned(tmp_path):
      assert (tmp_path / files.LOCK).exists()
    assert (tmp_path / files.LOCK).exists()
    assert list((tmp_path / "sub").iterdir()) == []
  assert not (tmp_path / files.LOCK).exists()


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(owner, "SILENT_SECONDS", 1.0)
  monkeypatch.setattr(owner, "_ASKED_SECONDS", 0.1)


def lock_of(machine, renewals=0):
  holder = owner.this_process()._replace(host="elsewhere", machine=machine, pid=7)
  return owner._Lock(holder, renewals).to_bytes()


def test_a_silent_process_of_another_machine_is_waited_for_and_taken_over(tmp_path, impatient, capsys):
  (tmp_path / files.LOCK).write_bytes(lock_of("another"))
  start = time.monotonic()
  with owned(tmp_path):
    assert 1 <= time.monotonic() - start < 10
  assert "was in use by process 7 on elsewhere" in capsys.readouterr().err


def test_a_living_process_of_another_machine_is_not(tmp_path, impatient):
  (tmp_path / files.LOCK).write_bytes(lock_of("another"))
  threading.Timer(0.4, lambda: (tmp_path / files.LOCK).write_bytes(lock_of("another", 1))).start()
  with pytest.raises(InputError, match="in use by process 7 on elsewhere"):
    with owned(tmp_path):
      pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"holder": 1}', b'{"holder": {}, "renewals": 0}', b"\xff"])
def test_what_is_no_lock_is_taken_over(tmp_path, content):
  (tmp_path / files.LOCK).write_bytes(content)
  with owned(tmp_path):
    pass


def test_a_lock_is_renewed_and_a_process_that_lost_it_ends(tmp_path):
  script = HOLD.replace("import sys, time", "import sys, time\nimport monojax.activations.owner as o\n"
                        "o.RENEWED_SECONDS = 0.2")
  process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
  assert process.stdout.readline() == "held\n"
  seen = set()
  for _ in range(100):
    seen.add(json.loads((tmp_path / files.LOCK).read_text())["renewals"])
    if len(seen) > 2:
      break
    time.sleep(0.05)
  assert len(seen) > 2
  folder = Folder(tmp_path)
  content, generation = folder.read_generation(files.LOCK)
  while not folder.swap(files.LOCK, content, generation):  # as if the answer to a renewal had been lost
    content, generation = folder.read_generation(files.LOCK)
  time.sleep(1.0)
  assert process.poll() is None
  while not folder.swap(files.LOCK, lock_of("another"), folder.read_generation(files.LOCK)[1]):
    pass
  assert process.wait(10) == 1 and "taken over by another process" in process.stderr.read()


def test_of_many_that_try_at_once_one_gets_it(tmp_path):
  """Also where all of them find the lock of a dead process."""
  script = "import sys\n" + HOLD.replace("time.sleep(600)", "time.sleep(3)").replace(
      "with owned", "time.sleep(max(0, float(sys.argv[2]) - time.time()))\nwith owned")
  dead = holder(tmp_path)
  dead.kill()
  dead.wait()
  together = str(time.time() + 4)
  processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), together], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(6)]
  got = ["held" in process.communicate()[0] for process in processes]
  assert sum(got) == 1


def test_two_writers_of_a_store_cannot_meet(tmp_path):
  place = tmp_path / "store"
  process = holder(place)
  try:
    with pytest.raises(InputError, match="is in use by process"):
      monojax.StoreWriter(place, widths={"x": 4})
  finally:
    process.kill()
    process.wait()
  with monojax.StoreWriter(place, widths={"x": 4}) as writer:
    writer.add({"x": np.ones((100, 4), np.float32)})
  assert not (place / files.LOCK).exists()


def pair(first, second, seconds):
  """Two commands, the second so many seconds after the first: (exit status, output, errors) of each."""
  start = lambda arguments: subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                             env=ENVIRONMENT)
  processes = [start(first)]
  time.sleep(seconds)
  processes.append(start(second))
  outputs = [process.communicate(timeout=600) for process in processes]
  return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def one_finishes(results):
  """Asserts that of two equal commands one did the work and the other was refused in a line, or found it done."""
  statuses = sorted(status for status, _, _ in results)
  assert statuses in ([0, 2], [0, 0]), results
  for status, _, errors in results:
    if status == 2:
      lines = [line for line in errors.splitlines() if line.startswith("error:")]
      assert len(lines) == 1 and "is in use by process" in lines[0] and "Traceback" not in errors, errors
  if statuses == [0, 0]:
    assert any("already done" in output for _, output, _ in results), results
  return statuses == [0, 2]


def test_two_equal_commands(tmp_path):
  arguments = command("prepare_text", tmp_path / "run", *tiny("tokens"))
  one_finishes(pair(arguments, arguments, 0.5))
  assert not list((tmp_path / "run").rglob(f"*{files.PARTIAL}"))


# Each stage with the stages that it reads, so that a pair of commands begins with it.
BEFORE = {"prepare_text": (), "train_subject": ("tokens",), "harvest": ("tokens", "subject"),
          "train_sae": ("tokens", "subject", "activations"),
          "train_frontier": ("tokens", "subject", "activations", "sae"),
          "analyze": ("tokens", "subject", "activations", "sae"),
          "build_browser": ("tokens", "subject", "activations", "sae", "frontier", "analysis"), "monosemanticity": ()}
FLAGS = {"prepare_text": ("tokens",), "train_subject": ("subject",), "harvest": ("activations",), "train_sae": ("sae",),
         "train_frontier": ("frontier",), "analyze": ("analysis",), "build_browser": ()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_pairs_of_equal_commands(finished, tmp_path, seed):
  name, rng = list(BEFORE)[seed % len(BEFORE)], random.Random(seed)
  for stage in BEFORE[name]:
    shutil.copytree(finished[0] / stage, tmp_path / "run" / stage)
  if (finished[0] / "run.json").exists():
    (tmp_path / "run").mkdir(exist_ok=True)
    shutil.copy(finished[0] / "run.json", tmp_path / "run" / "run.json")
  arguments = command(name, tmp_path / "run", *(tiny(*FLAGS[name]) if name in FLAGS else TINY))
  refused = one_finishes(pair(arguments, arguments, rng.uniform(0, 3)))
  print(f"{name}: " + ("one finished, one was refused" if refused else "the second found it done"))
  made, expected = contents(tmp_path / "run"), contents(finished[0])
  assert made and {key: value for key, value in expected.items() if key in made} == made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_repair_killed_at_any_moment_can_be_repeated(finished, tmp_path, seed):
  workdir, rng = shutil.copytree(finished[0], tmp_path / "run"), random.Random(seed)
  for shard in rng.sample(sorted((workdir / "activations" / "sites").glob("*/c/*/0")), 2):
    content = bytearray(shard.read_bytes())
    content[rng.randrange(len(content) // 2)] ^= 4
    shard.write_bytes(content)
  repair = command("check_store", workdir, "--repair")
  for _ in range(2):
    process = subprocess.Popen(repair, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
                               start_new_session=True)
    try:
      process.wait(rng.uniform(0.5, 8))
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
      process.wait()
  result = subprocess.run(repair, capture_output=True, text=True, env=ENVIRONMENT)
  assert result.returncode == 0, result.stderr
  assert contents(pathlib.Path(workdir)) == contents(finished[0])
