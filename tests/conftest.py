"""Every test sees eight CPU devices and strict ranks, and takes programs that another has compiled.

XLA compiles in its quickest way, without optimising, unless XLA_FLAGS says otherwise: most of the time of most tests
goes into compiling programs that then run for milliseconds. Tests marked `bits` are skipped then; `make test` runs them
by themselves, and they, `make newest` and `make slow` take XLA as it is.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import tempfile

# Read when jax is imported and when it first looks for devices. The processes that pytest-xdist starts inherit all of
# this, and share what has been compiled.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (os.environ.get("JAX_COMPILATION_CACHE_DIR")
                                           or tempfile.mkdtemp(prefix="monojax-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import browser_fixture
import jax
import made_store
import pytest
from tiny_run import TINY, run

# In the background of a shell Ctrl-C is ignored, by what a test starts there as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure(config):
  compiled = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  if compiled.name.startswith("monojax-tests-") and "PYTEST_XDIST_WORKER" not in os.environ:
    shutil.rmtree(compiled, ignore_errors=True)


# The files that take longest, which are begun first, so that no process is left with one of them at the end.
_LONGEST = ("pipeline", "docs", "library", "faults", "live", "accessibility", "end_to_end", "transformer", "damage",
            "object_store", "wheel", "recipes_train", "interop_run", "probes", "store", "ends", "owner")


def pytest_collection_modifyitems(items):
  places = {f"{name}_test.py": place for place, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_runtest_setup(item):
  if item.get_closest_marker("bits") and os.environ["XLA_FLAGS"]:
    pytest.skip("compares bits of programs as XLA makes them for users: run it with XLA_FLAGS= in the environment")


@pytest.fixture(scope="module")
def driver():
  """A browser without a window, for the tests of one file; they are skipped where there is none."""
  browser_fixture.require_browser()
  with browser_fixture.chromium() as driver:
    yield driver


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """A finished float16 store nobody changes."""
  directory = tmp_path_factory.mktemp("whole") / "activations"
  made_store.write_store(directory, made_store.made_rows())
  return directory


@contextlib.contextmanager
def _made_once(tmp_path_factory, name):
  """A folder that the first process of the tests makes; the others wait for it."""
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    shared = shared.parent
  with open(shared / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield shared / name


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """A run made in one call by the main script, and what that printed."""
  with _made_once(tmp_path_factory, "tiny") as workdir:
    printed = workdir.with_name("tiny.txt")
    if not printed.exists():
      result = run("monosemanticity", workdir, *TINY)
      assert result.returncode == 0, result.stderr[-3000:]
      printed.write_text(result.stdout)
    return workdir, printed.read_text()


@pytest.fixture(scope="session")
def streamed(finished, tmp_path_factory):
  """The same run, but for activations that are computed where they are used."""
  with _made_once(tmp_path_factory, "streamed") as workdir:
    if not (workdir / "browser").exists():
      for stage in ("tokens", "subject"):
        shutil.copytree(finished[0] / stage, workdir / stage)
      result = run("monosemanticity", workdir, *TINY, "--source=stream")
      assert result.returncode == 0, result.stderr[-3000:]
    return workdir
