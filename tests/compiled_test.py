"""Compiled programs are kept in the user's cache, and taken from there by the next process."""

import os
import subprocess
import sys
import time

from tiny_run import EXPERIMENTS, command, tiny

from monojax import compiled

PROGRAM = """
import sys
if "early" in sys.argv:
  import jax
from monojax import compiled
compiled.keep_compiled_programs()
import jax, jax.numpy as jnp
from jax import monitoring
found = []
monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((64, 64))).block_until_ready()
print(sum("cache_hits" in event for event in found))
"""


def in_a_process(cache, *arguments, **more):
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                  "JAX_PLATFORMS": "cpu", **more}
  done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True,
                        check=True)
  return int(done.stdout)


def test_the_next_process_does_not_compile_again(tmp_path):
  assert in_a_process(tmp_path) == 0
  assert in_a_process(tmp_path) > 0
  assert in_a_process(tmp_path, "early") > 0  # jax was imported before
  (kept,) = (tmp_path / "monojax" / "compiled").iterdir()
  n_kept = len(list(kept.iterdir()))
  assert n_kept > 0
  assert in_a_process(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0") == 0
  assert in_a_process(tmp_path / "no", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "named")) == 0
  assert list((tmp_path / "named").iterdir()) and not (tmp_path / "no").exists()
  (tmp_path / "file").write_text("a cache that is no folder")
  assert in_a_process(tmp_path / "file") == 0


def test_commands_keep_what_they_compile(tmp_path):
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu",
                  "PYTHONPATH": str(EXPERIMENTS.parent),
                  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  for script, *flags in (("prepare_text", *tiny("tokens")), ("train_subject", *tiny("subject"))):
    subprocess.run(command(script, tmp_path / "run", *flags), env=environment, capture_output=True, check=True)
  (kept,) = (tmp_path / "cache" / "monojax" / "compiled").iterdir()
  assert [path for path in kept.iterdir() if "scan_steps" in path.name]


def test_what_is_old_is_deleted(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  where = compiled.folder()
  where.mkdir(parents=True)
  old, new = where / "old-cache", where / "new-cache"
  for path, days in ((old, 31), (new, 29)):
    path.write_bytes(b"program")
    os.utime(path, (time.time() - days * 86_400,) * 2)
  in_a_process(tmp_path)
  assert new.exists() and not old.exists()
