"""The benchmark of recipes: its comparison at equal sparsity, its scores, and the command on a small run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score
from tiny_run import run

from monojax.analysis.codes import Codes
from monojax.analysis.sampling import CHOOSING, SCORING
from monojax.config import InputError
from monojax.pipeline.config import BenchmarkConfig
from monojax.pipeline.presets import DEMO
from monojax.sae.recipes import RECIPES
from monojax.studies.recipes.scores import SCORES, _shared, at_l0, detector_f1
from monojax.studies.recipes.study import grid_of


def row(seed, l0, value):
  return {"seed": seed, "l0": l0, "score": value}


def test_scores_are_interpolated_in_the_logarithm_of_l0_and_averaged_over_seeds():
  rows = [row(0, 4, 0.2), row(0, 16, 0.6), row(1, 2, 0.3), row(1, 8, 0.5), row(1, 32, 0.9), row(2, 8, 0.7),
          row(2, 32, 0.8)]
  values = [0.4, 0.5, 0.7]  # 8 is halfway between 4 and 16
  mean, half = at_l0(rows, 8, "score")
  assert mean == pytest.approx(np.mean(values))
  low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
  assert (mean - half, mean + half) == pytest.approx((low, high))
  assert at_l0(rows, 4, "score") is None, "seed 2 has nothing as sparse"
  assert at_l0(rows[:2], 8, "score") == (pytest.approx(0.4), None), "one seed has no interval"
  assert at_l0([row(0, 4, None), row(0, 16, None)], 8, "score") is None


class Halves:
  """What `detector_f1` asks of a text: two halves, domains and classes."""

  def __init__(self, rng, n):
    self.half_N, self.domain_N = rng.choice([CHOOSING, SCORING], n), rng.integers(0, 3, n)
    self.classes = {"first": [0], "others": [1, 2]}

  def domains_of(self, half):
    return self.half_N == half, self.domain_N[self.half_N == half]


def test_detectors_are_chosen_on_one_half_and_scored_on_the_other():
  rng = np.random.default_rng(0)
  text = Halves(rng, 400)
  f_NF = np.where(rng.random((400, 6)) < 0.4, rng.random((400, 6)), 0).astype(np.float32)
  f_NF[:, 2] += (text.domain_N == 0) * (rng.random(400) < 0.7)
  at = [np.flatnonzero(column) for column in f_NF.T]
  codes = Codes(400, np.cumsum([0, *map(len, at)]), np.concatenate(at).astype(np.int32),
                np.concatenate([f_NF[rows, i] for i, rows in enumerate(at)]))
  choose_N, test_N = (text.half_N == half for half in (CHOOSING, SCORING))
  expected = []
  for indices in text.classes.values():
    truth_N = np.isin(text.domain_N, indices)
    tried = [(f1_score(truth_N[choose_N], f_NF[choose_N, i] >= level), i, level)
             for i in range(6) for level in np.unique(f_NF[choose_N, i]) if level > 0]
    _, i, level = max(tried)
    expected.append(f1_score(truth_N[test_N], f_NF[test_N, i] >= level))
  assert detector_f1(text, codes) == pytest.approx(np.mean(expected))


def test_shared_features_have_a_like_direction_among_those_in_use():
  rng = np.random.default_rng(1)
  a_FO = rng.standard_normal((5, 8)).astype(np.float32)
  b_FO = np.concatenate([2 * a_FO[:3], rng.standard_normal((1, 8))]).astype(np.float32)
  use_a, use_b = np.array([1, 1, 1, 1, 0], bool), np.array([1, 1, 0, 1], bool)
  cosine = (a_FO / np.linalg.norm(a_FO, axis=1)[:, None]) @ (b_FO / np.linalg.norm(b_FO, axis=1)[:, None]).T
  expected = (cosine[use_a][:, use_b].max(1) >= 0.9).mean()
  assert expected == 0.5 and _shared(a_FO, b_FO, use_a, use_b, 0.9) == pytest.approx(expected)
  assert _shared(a_FO, b_FO, ~use_a & False, use_b, 0.9) == 0


@pytest.mark.parametrize("wrong", [{"recipes": ("topk", "nosuch")}, {"seeds": ()}, {"l0": (8.0, 8.0)}, {"l0": ()}])
def test_settings_that_make_no_sense_are_refused(wrong):
  with pytest.raises(InputError, match=f"benchmark.{next(iter(wrong))}"):
    BenchmarkConfig(**wrong)


def test_every_recipe_has_the_same_steps_and_nothing_of_the_preset():
  config = dataclasses.replace(DEMO, sae=dataclasses.replace(DEMO.sae, n_steps=70, n_features=256))
  for recipe in RECIPES.values():
    grid = grid_of(config, "demo", recipe.name, (128, 256))
    assert grid.sae.recipe == recipe.name and grid.sae.n_steps == 70 and grid.sae.group_sizes == ()
    assert bool(grid.sae.resample_steps) == (recipe.name == "tm2023")
    members = grid.sweep.configs(grid.sae)
    assert len(members) == len(recipe.grid) * 2 * 3 and {member.n_features for member in members} == {128, 256}
    assert all(getattr(members[0], name) == value for name, value in recipe.quick.items() if name != recipe.knob)


def test_k_is_never_more_than_the_features_of_the_smallest_dictionary():
  config = dataclasses.replace(DEMO, sae=dataclasses.replace(DEMO.sae, n_features=256, k=4))
  assert grid_of(config, "demo", "topk", (16, 256)).sweep.sparsities == (6, 12)
  with pytest.raises(InputError, match="benchmark.n_features=4.*topk's grid"):
    grid_of(config, "demo", "topk", (4, 256))


def test_the_command_trains_and_scores_and_does_nothing_twice(finished, tmp_path):
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject", "activations"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  flags = ["--sae.n_features=48", "--sae.n_steps=30", "--sae.checkpoint_every_steps=30", "--sae.batch_rows=256",
           "--sae.buffer_rows=4096", "--sae.val_tokens=4096", "--benchmark.recipes=topk",
           "--benchmark.n_features=48", "--benchmark.seeds=0,1", "--benchmark.n_tokens=8192", "--benchmark.l0=8,10",
           "--benchmark.n_labelled=8", "--nobenchmark.planted"]
  result = run("benchmark", workdir, *flags)
  assert result.returncode == 0, result.stderr[-3000:]
  table = lambda name: json.loads((workdir / "benchmark" / f"{name}.json").read_text())
  points = table("points")
  assert len(points) == 4 * 2 and {point["seed"] for point in points} == {0, 1}
  assert {6, 12} <= {round(point["l0"]) for point in points}  # of 48 features, not all can be above 0 for k = 24
  assert all(point[score] is not None for point in points for score in ("explained_variance", "detector_f1", "shared"))
  compared = table("at_l0")
  assert [row["l0"] for row in compared] == [8, 10]
  for row in compared:
    assert (row["explained_variance"], row["explained_variance_error"]) == pytest.approx(
        at_l0(points, row["l0"], "explained_variance"))
  assert set(SCORES) <= set(compared[0]) and (workdir / "benchmark" / "benchmark.png").exists()
  assert not (workdir / "run.json").exists(), "the run's own dictionary would take the benchmark's steps"
  again = run("benchmark", workdir, *flags)
  assert again.returncode == 0 and "scoring" not in again.stdout and "already done" in again.stdout
  assert table("points") == points
