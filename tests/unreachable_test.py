"""Object stores that cannot be reached: named within seconds, before any work."""

import contextlib
import os
import socket
import subprocess
import threading
import time

import pytest
from tiny_run import ENVIRONMENT, TINY, command

from monojax.activations import folder
from monojax.activations.folder import Folder
from monojax.activations.store import ActivationStore
from monojax.config import InputError

SILENT, CLOSED, HANGS_UP = "accepts and never answers", "a closed port", "accepts and hangs up"


@contextlib.contextmanager
def server(kind):
  """The address of a server that does not do its work."""
  with socket.socket() as listening:
    listening.bind(("127.0.0.1", 0))
    if kind != CLOSED:
      listening.listen(16)
    kept = []

    def serve():
      with contextlib.suppress(OSError):
        while True:
          connection, _ = listening.accept()
          kept.append(connection) if kind == SILENT else connection.close()
    if kind != CLOSED:
      threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    for connection in kept:
      connection.close()


@pytest.fixture
def account(monkeypatch):
  for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
    monkeypatch.delenv(name, raising=False)
  for name, value in (("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any"),
                      ("AWS_EC2_METADATA_DISABLED", "true")):
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(folder, "_CONNECT_SECONDS", 1.0)
  monkeypatch.setattr(folder, "_ANSWER_SECONDS", 1.0)
  return monkeypatch


@pytest.mark.parametrize("kind, message", [(SILENT, "does not answer within"), (HANGS_UP, "answer"),
                                           (CLOSED, "cannot be connected to")])
def test_a_server_that_does_not_serve_is_named_within_seconds(account, kind, message):
  with server(kind) as endpoint:
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    for use in (lambda url: Folder(url).reach(), ActivationStore.open):
      started = time.monotonic()
      with pytest.raises(InputError, match=message) as found:
        use("s3://bucket/some/where")
      assert time.monotonic() - started < 8
      text = str(found.value)
      assert endpoint in text and "AWS_ENDPOINT_URL" in text and "s3://bucket/some/where" in text and "\n" not in text


@pytest.mark.parametrize("endpoint, message", [
    ("http://no-such-host.invalid:9000", "cannot be connected to"),
    ("http://127.0.0.1:99999", "cannot be connected to"), ("nonsense", "is no address"), ("http://", "is no address")])
def test_an_address_that_is_none_is_named(account, endpoint, message):
  account.setenv("AWS_ENDPOINT_URL_S3", endpoint)
  with pytest.raises(InputError, match=message) as found:
    Folder("s3://bucket/some/where").reach()
  assert endpoint in str(found.value) and "AWS_ENDPOINT_URL" in str(found.value)


def test_a_whole_run_is_refused_before_it_prepares_text(account, tmp_path):
  with server(SILENT) as endpoint:
    environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "any",
                   "AWS_SECRET_ACCESS_KEY": "any", "AWS_EC2_METADATA_DISABLED": "true"}
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # without them, the library logs that it looked
      environment[name] = os.devnull
    started = time.monotonic()
    result = subprocess.run(command("monosemanticity", tmp_path / "run", *TINY, "--activations.url=s3://bucket/a"),
                            capture_output=True, text=True, timeout=120, env=environment)
    assert time.monotonic() - started < 60
  assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
  assert result.stderr.count("error:") == 1 and endpoint in result.stderr.splitlines()[-1], result.stderr
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_local_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  for place in ("/proc/nothing", tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(InputError, match=f"cannot write {place}/: "):
      Folder(place).reach(to_write=True)
