"""The installed package: what a wheel holds, and that it works outside of a checkout."""

import os
import pathlib
import subprocess
import sys
import textwrap
import venv
import zipfile

import pytest
from tiny_run import ENVIRONMENT, TINY

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The path of a wheel built from the checkout."""
  folder = tmp_path_factory.mktemp("wheel")
  result = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder),
                           str(ROOT)], capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stderr[-3000:]
  (path,) = folder.glob("monojax-*.whl")
  return path


def test_the_wheel_holds_what_the_package_needs_and_nothing_else(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    (commands,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
  in_checkout = {path.relative_to(ROOT).as_posix() for folder in ("text/sample", "browser/static")
                 for path in (ROOT / "monojax" / folder).iterdir()}
  in_checkout |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "monojax").rglob("*.py")}
  assert in_checkout | {"monojax/py.typed"} <= names
  assert all(name.split("/")[0] in ("monojax", wheel.name.rsplit("-", 3)[0] + ".dist-info") for name in names), names
  assert "monojax = monojax.__main__:main" in commands
  for field in ("Author: The monojax authors", "Project-URL: Documentation", "Keywords: sparse auto", "Classifier: "):
    assert field in metadata, field


def test_the_installed_command_makes_a_run_in_an_empty_folder(wheel, tmp_path):
  """Installed beside this environment's other packages, so that the test takes seconds; it is the wheel that runs."""
  installed, folder = tmp_path / "installed", tmp_path / "empty"
  folder.mkdir()
  result = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed),
                           str(wheel)], capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stderr[-3000:]
  environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
  run = lambda *arguments: subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, timeout=300,
                                          capture_output=True, text=True)
  assert str(installed) in run("-c", "import monojax; print(monojax.__file__)").stdout
  listing = run("-m", "monojax", "--help")
  assert listing.returncode == 0 and "train_sae" in listing.stdout and "demo" in listing.stdout
  explained = run("-m", "monojax", "harvest", "--help")
  assert "monojax harvest --workdir=runs/mine" in explained.stdout and "--activations.site" in explained.stdout
  unknown = run("-m", "monojax", "trian_sae")
  assert unknown.returncode == 2 and "train_sae" in unknown.stderr and "Traceback" not in unknown.stderr
  demo = run("-m", "monojax", "demo", *TINY)
  assert demo.returncode == 0, demo.stderr[-3000:]
  assert (folder / "runs" / "demo" / "browser" / "site" / "index.html").is_file()
  assert "runs/demo/browser/site/index.html" in demo.stdout


SIX_LINES = textwrap.dedent("""
    import numpy as np
    rng = np.random.default_rng(0)
    direction_GM = rng.standard_normal((512, 256))
    direction_GM /= np.linalg.norm(direction_GM, axis=1, keepdims=True)
    strength_NG = rng.random((200_000, 512), np.float32) * (rng.random((200_000, 512), np.float32) < 20 / 512)
    x = (strength_NG @ direction_GM).astype(np.float32)

    import monojax
    sae = monojax.train(x, recipe="batchtopk", n_features=4096, k=32, workdir="runs/mine")
    f = sae.encode(x[:5000]); y = sae.decode(f); measured = sae.metrics(x[:5000])
    sae.save("my_sae"); sae = monojax.SAE.load("my_sae")

    W = np.asarray(sae.params["W_dec_FO"])
    best = (W / np.linalg.norm(W, axis=1, keepdims=True) @ direction_GM.T).max(0)
    print("found", (best > 0.9).mean(), {name: value for name, value in measured.items() if name != "density_F"})
    assert (best > 0.9).mean() >= 0.95
""")


@pytest.mark.slow
def test_in_a_fresh_environment_the_library_finds_directions_and_the_demo_ends_in_its_pages(wheel, tmp_path):
  """Everything as a user has it: a new environment, the dependencies from the registry, an empty folder."""
  venv.create(tmp_path / "environment", with_pip=True)
  python, folder = tmp_path / "environment" / "bin" / "python", tmp_path / "empty"
  folder.mkdir()
  environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAX_PLATFORMS")}
  run = lambda *command: subprocess.run(list(map(str, command)), cwd=folder, env=environment, timeout=3000,
                                        capture_output=True, text=True)
  installed = run(python, "-m", "pip", "install", "--quiet", wheel)
  assert installed.returncode == 0, installed.stderr[-3000:]
  found = run(python, "-c", SIX_LINES)
  assert found.returncode == 0, found.stdout[-1000:] + found.stderr[-3000:]
  print(found.stdout)
  demo = run(python.parent / "monojax", "demo", "--workdir=runs/demo")
  assert demo.returncode == 0, demo.stderr[-3000:]
  assert (folder / "runs" / "demo" / "browser" / "site" / "index.html").is_file()
