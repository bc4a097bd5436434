"""Runs scripts in processes that begin with everything imported that scripts import, which takes most of a short one.

A server process imports it once and forks for each script. Nothing of jax has begun by then, so that a script finds
what it would find in a process of its own. `run` is as `subprocess.run`; this file is also the server.
"""

import atexit
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

_SHARED = ("matplotlib.backends.backend_agg", "matplotlib.figure", "monojax.analysis.analyze", "monojax.browser.build",
           "monojax.commands", "monojax.pipeline.loaded", "monojax.sae.train", "monojax.subjects.train",
           "monojax.text.prepare", "tokenizers")
_server: subprocess.Popen | None = None


def run(words: list[str], environment: dict[str, str], timeout: float,
        cwd: str | os.PathLike | None = None) -> subprocess.CompletedProcess:
  """What a script printed, and its exit status.

  Args:
    words: the script's path and its arguments.
    environment: the same for all calls.
    timeout: seconds after which it is killed.
    cwd: the folder that it runs in, by default this process's.

  Raises:
    subprocess.TimeoutExpired: it was.
  """
  global _server
  if _server is None or _server.poll() is not None:
    _server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                               env=environment)
    atexit.register(_server.stdin.close)
  with tempfile.TemporaryDirectory() as folder:
    out, err = pathlib.Path(folder, "out"), pathlib.Path(folder, "err")
    asked = {"words": words, "cwd": str(cwd or os.getcwd()), "out": str(out), "err": str(err)}
    _server.stdin.write(json.dumps(asked).encode() + b"\n")
    pid, ends = int(_server.stdout.readline()), time.monotonic() + timeout
    while not select.select([_server.stdout], [], [], 1)[0]:
      if time.monotonic() > ends:
        os.kill(pid, signal.SIGKILL)
        _server.stdout.readline()
        raise subprocess.TimeoutExpired(words, timeout)
    code = int(_server.stdout.readline())
    return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def _become(asked: dict) -> None:
  """Does a script in this process, which ends with it."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  for descriptor, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.chdir(asked["cwd"])
  sys.argv = asked["words"]
  sys.path[0] = os.path.dirname(sys.argv[0])
  code = 0
  try:
    runpy.run_path(sys.argv[0], run_name="__main__")
  except SystemExit as ending:
    code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    if not isinstance(ending.code, int | None):
      print(ending.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
    code = 1
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _serve() -> None:
  for name in _SHARED:
    importlib.import_module(name)
  for line in sys.stdin:
    pid = os.fork()
    if not pid:
      _become(json.loads(line))
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
  _serve()
