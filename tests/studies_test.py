"""The studies through their scripts, in small: figures, pages, and going on."""

import csv
import json

import browser_fixture
import numpy as np
import pytest
from report_test import assert_drawn
from tiny_run import run

from monojax.studies.synthetic import study as synthetic
from monojax.studies.toy.study import SUPERPOSED

SMALL_GRID = ["--recipes=tm2023,batchtopk", "--levels=2,4", "--sizes=1,2", "--grid_features=32", "--grid_width=16",
              "--grid_steps=200", "--planted.n_features=32", "--planted.width=24", "--planted.mean_active=2",
              "--planted.decay=0.95", "--planted.min_strength=0.3", "--sae.n_features=32", "--sae.k=2",
              "--sae.batch_rows=512", "--sae.n_steps=1500"]


def opened(page, n_pictures):
  """The page in a browser, where there is one."""
  if browser_fixture.missing_browser():
    return
  with browser_fixture.chromium() as driver:
    assert_drawn(driver, page, n_pictures)


@pytest.mark.slow
def test_synthetic_activations(tmp_path):
  result = run("synthetic", tmp_path, *SMALL_GRID)
  assert result.returncode == 0, result.stderr[-3000:]
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["synthetic/explained_variance"] > 0.9 and summary["synthetic/mcc"] > 0.9
  assert abs(summary["synthetic/l0"] - summary["synthetic/true_l0"]) < 0.5
  assert "synthetic/mcc" in result.stdout and str(tmp_path / "report" / "index.html") in result.stdout
  for name in ("level_2", "level_4", "trees"):
    points = json.loads((tmp_path / name / "points.json").read_text())
    assert len(points) == 2 * (len(synthetic.PENALTIES["tm2023"]) + 1)
    chosen = synthetic.nearest_in_sparsity(points)
    assert set(chosen) == {(recipe, size) for recipe in ("tm2023", "batchtopk") for size in (32, 64)}
    assert all(("absorption" in point) == (name == "trees") for point in points)
  opened(tmp_path / "report" / "index.html", 8)
  again = run("synthetic", tmp_path, *SMALL_GRID)
  assert again.stdout.count("already done") == 4
  refused = run("synthetic", tmp_path, *SMALL_GRID[:-1], "--sae.n_steps=100")
  assert refused.returncode == 2 and "n_steps: 1500 -> 100" in refused.stderr


def test_synthetic_settings_are_checked(tmp_path):
  for flag, message in (("--recipes=tm2024", "recipes"), ("--levels=200", "levels"), ("--planted.decay=2", "decay")):
    result = run("synthetic", tmp_path, flag)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.slow
def test_toy_models_of_superposition(tmp_path):
  settings = ["--effort=0.2", "--levels=5", "--phase_points=6", "--restarts=3"]
  result = run("toy_superposition", tmp_path, *settings, timeout=900)
  assert result.returncode == 0, result.stderr[-3000:]
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["toy/linear_20_kept_sparse"] == 5 < summary["toy/relu_20_kept_sparse"]
  assert summary["toy/phase_agreement"] > 0.8 and summary["toy/phase_within_bound"] > 0.9
  assert summary["toy/sticky_error_half"] < 0.1 and summary["toy/vulnerability_ratio"] > 1.5
  assert summary["toy/correlated_cosine_dense"] > 0.9 and summary["toy/anticorrelated_cosine_sparse"] < -0.9
  with np.load(tmp_path / "phase" / "models.npz") as phase:
    assert SUPERPOSED in phase["phase_2_L"] and phase["theory_2_L"].shape == (36,)
  opened(tmp_path / "report" / "index.html", 19)
  assert run("toy_superposition", tmp_path, *settings).stdout.count("already done") == 9


SMALL_INDEX = ["--mlp.n_steps=600", "--mlp.batch_rows=256", "--sae.n_features=256", "--sae.n_steps=300",
               "--sae.batch_rows=512", "--sae.k=16"]
SMALL_SWEEP = ["--sweep_recipes=topk,tm2023", "--sweep_sizes=64,128"]


@pytest.mark.slow
def test_index_arithmetic(tmp_path):
  """In a minute most of what there is to see: pointers are told, and patching moves predictions."""
  result = run("index_arithmetic", tmp_path, *SMALL_INDEX, *SMALL_SWEEP)
  assert result.returncode == 0, result.stderr[-3000:]
  summary = json.loads((tmp_path / "summary.json").read_text())
  for name in ("test_accuracy", "spliced_accuracy", "l0", "dead_fraction", "min_variable_auroc", "causal_agreement",
               "seconds"):
    assert np.isfinite(summary[f"index_arithmetic/{name}"]) and f"index_arithmetic/{name}" in result.stdout
  assert summary["index_arithmetic/test_accuracy"] > 0.7 > 0.2 > summary["index_arithmetic/ablated_accuracy"]
  assert 10 < summary["index_arithmetic/l0"] < 22 < summary["index_arithmetic/neurons_l0"]
  assert summary["index_arithmetic/p1_auroc"] > 0.9 and summary["index_arithmetic/min_variable_auroc"] > 0.7
  assert summary["index_arithmetic/causal_agreement"] > 0.6
  points = json.loads((tmp_path / "sweep" / "points.json").read_text())
  assert sorted((point["recipe"], point["n_features"]) for point in points) == [
      ("tm2023", 64), ("tm2023", 64), ("tm2023", 128), ("tm2023", 128), ("topk", 64), ("topk", 128)]
  with (tmp_path / "report" / "trace.csv").open(newline="") as file:
    header, *lines = csv.reader(file)
  assert len(lines) == 500 and header[:10] == ["c1[0]", "c1[1]", "c1[2]", "c1[3]", "p1", "c2[0]", "c2[1]", "c2[2]",
                                               "c2[3]", "p2"]
  openpyxl = pytest.importorskip("openpyxl")
  sheet = openpyxl.load_workbook(tmp_path / "report" / "trace.xlsx", read_only=True).active
  assert [["" if cell is None else str(cell) for cell in row][:14] for row in sheet.values] == [
      line[:14] for line in [header, *lines]]
  opened(tmp_path / "report" / "index.html", 8)
  probed = run("index_arithmetic", tmp_path, *SMALL_INDEX, *SMALL_SWEEP, "--probe=8,9,5,1,3,2,9,4,7,1")
  assert probed.stdout.count("already done") == 5 and "c1[3] = 1, c2[1] = 9, answer 8" in probed.stdout
  assert "features fire" in probed.stdout
  refused = run("index_arithmetic", tmp_path, *SMALL_INDEX, "--sae.n_steps=100")
  assert refused.returncode == 2 and "n_steps: 300 -> 100" in refused.stderr


def test_index_arithmetic_settings_are_checked(tmp_path):
  for flag, message in (("--probe=1,2", "--probe"), ("--mlp.n_inputs=9", "three hidden layers"),
                        ("--mlp.noise=1", "mlp.noise"), ("--sweep_recipes=relu", "sweep_recipes"),
                        ("--variable_features=9", "variable_features"), ("--readout_features=0", "readout_features")):
    result = run("index_arithmetic", tmp_path, flag)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr
