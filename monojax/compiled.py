"""Compiled programs kept for the next process: XLA takes seconds for each, and a repeated command needs the same ones.

They are in the user's cache, in a folder for each kind of processor, since what is compiled for one may not run on
another. jax itself writes and finds them, by what is compiled, its own version and the devices.
"""

import hashlib
import os
import pathlib
import platform
import sys
import time

_VARIABLE, _LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# A program that compiles sooner is not worth a file. jax's own default, a second, leaves out most of a CPU's.
_MIN_SECONDS = 0.1
_KEPT_DAYS = 30


def keep_compiled_programs() -> None:
  """Has jax keep what it compiles in `folder()`, and deletes there what is older than 30 days.

  Call this before anything is compiled. It does nothing where the variable JAX_COMPILATION_CACHE_DIR names another
  folder, and where no folder can be made. JAX_ENABLE_COMPILATION_CACHE=0 switches the cache off.
  """
  where = folder()
  if _VARIABLE in os.environ or not where.is_absolute():
    return
  try:
    where.mkdir(parents=True, exist_ok=True)
    _forget_old(where)
  except OSError:  # no home, or one that cannot be written: programs are compiled each time
    return
  # jax reads these variables when it is imported, and processes that this one starts inherit them.
  os.environ[_VARIABLE] = str(where)
  os.environ.setdefault(_LEAST, str(_MIN_SECONDS))
  if "jax" in sys.modules:
    import jax
    jax.config.update(_VARIABLE.lower(), os.environ[_VARIABLE])
    jax.config.update(_LEAST.lower(), float(os.environ[_LEAST]))


def folder() -> pathlib.Path:
  """The folder for this processor in the user's cache: $XDG_CACHE_HOME, or ~/.cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  kind = hashlib.sha256(_processor().encode()).hexdigest()[:8]
  return pathlib.Path(cache) / "monojax" / "compiled" / f"{platform.machine()}-{kind}"


def _processor() -> str:
  """What tells processors apart whose programs differ: on Linux the instructions that they have."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _forget_old(where: pathlib.Path) -> None:
  oldest = time.time() - _KEPT_DAYS * 86_400
  for path in where.iterdir():
    try:
      if path.stat().st_mtime < oldest:
        path.unlink()
    except OSError:  # another process was quicker
      continue
