"""A store behind a URL: a server on this machine that speaks S3."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from owner_test import refused_until
from tiny_run import ENVIRONMENT, command, digests, run, tiny

from monojax import checkpoint, files
from monojax.activations.folder import Folder
from monojax.activations.owner import owned


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


@pytest.mark.slow
def test_an_object_store_holds_what_a_disk_would(finished, s3, tmp_path, monkeypatch):
  """Harvested to, killed, gone on with, trained from, killed, gone on with, damaged, repaired."""
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
  assert digests(found) == digests(wanted)

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


def test_an_object_store_has_one_owner(s3, monkeypatch):
  for name, value in s3.items():
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(ENVIRONMENT, name, value)
  url = "s3://bucket/owned"
  refused_until(url, signal.SIGKILL).wait()
  with owned(url):
    assert Folder(url).read(files.LOCK)
  assert Folder(url).read(files.LOCK) is None
