"""The paper's figures beside a run's: computed anew from plain arrays, and printed for several runs."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

import monojax
from monojax import files
from monojax.analysis import claims
from monojax.analysis.config import ClaimsConfig
from monojax.analysis.tables import DEAD, REGULAR, ULTRALOW
from monojax.config import InputError
from monojax.pipeline import stages
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
  return shutil.copytree(finished[0], tmp_path_factory.mktemp("claims") / "mine")


def test_figures_are_those_of_the_tables(workdir):
  run = monojax.load(workdir)
  tables, summary = run.features, json.loads((workdir / "summary.json").read_text())
  found = {(claim.section, claim.name): claim.value for claim in stages.claims(RunFolder(workdir), ClaimsConfig())[0]}
  of = lambda name: next(value for (_, known), value in found.items() if known == name)
  real = [i for i in range(tables.n_features) if tables.status_F[i] not in (DEAD, ULTRALOW)]
  assert of("cross-entropy recovered, of zero-ablation") == summary["sae/ce_recovered_zero"]
  assert of("features that fire on a token (L0)") == summary["sae/l0"]
  assert of("dead features") == np.mean([status == DEAD for status in tables.status_F])
  assert of("density of the others, median") == np.median([tables.density_F[i] for i in real])
  largest = [np.abs(d).max() / np.sqrt((d ** 2).sum()) for d in run.sae.direction_FO[real]]
  assert of("largest part of a direction of length 1, median") == pytest.approx(np.median(largest), rel=1e-6)
  same, rises = [], []
  for i in real:
    top = run.examples(i, 20)
    if len(top) == 20:
      tokens = {example.tokens[int(example.activations.argmax())] for example in top}
      same.append(len(tokens) == 1)
    for place, example in enumerate(top):
      before = int((tables.example_tokens_FEW[i, place, :4] < 0).sum())  # tokens that the window lacks
      if example.effects is not None and 5 - before < len(example.tokens):
        rises.append(float(example.effects[5 - before]))
  assert of("features of a single token, of those with 20 examples") == pytest.approx(np.mean(same), abs=0.02)
  assert of("rise of the next loss without it, 20 top examples, mean") == pytest.approx(
      np.mean(rises), rel=0.05)


def test_planted_tables_give_planted_figures():
  acts_FEW = np.zeros((4, 45, 9), np.float32)
  tokens_FEW = np.full((4, 45, 9), 7)
  acts_FEW[:, :, 4] = 1
  tokens_FEW[1, 3, 4] = 8            # one example of another token
  acts_FEW[2, 19, 4] = 0             # only 19 examples
  effects_FEW = np.zeros((4, 45, 9), np.float32)
  effects_FEW[:, :20, 5] = np.asarray([1, 3, -1, 100])[:, None]
  effects_FEW[:, 20:] = 1000
  effects_FEW[2] = np.nan
  tokens_FEW[1, 0, 5] = -1           # the context ends there
  columns = {"status_F": np.asarray([REGULAR, REGULAR, REGULAR, DEAD], np.int8), "example_acts_FEW": acts_FEW,
             "example_tokens_FEW": tokens_FEW, "example_effects_FEW": effects_FEW}

  class Tables:
    def __getattr__(self, name):
      return columns[name]
  assert claims.single_token_share(Tables()) == 0.5
  effect_P = claims.next_token_effects(Tables())
  assert sorted(effect_P.tolist()) == [1.0] * 20 + [3.0] * 19


def test_what_other_commands_left_is_beside_it(workdir, tmp_path, capsys):
  other = shutil.copytree(workdir, tmp_path / "other")
  record = files.read_record(other / "subject" / "stage.json")
  files.write_record(other / "subject" / "stage.json", {**record, "output": "of another seed"})
  home = workdir / "comparisons" / "other.sae"
  figures = {"correlation/median_a": 0.61, "correlation_neurons/median_a": 0.4, "correlation_random/median_a": 0.2}
  files.write_record(home / "comparison.json", {"a": {"run": str(workdir)}, "b": {"run": str(other)},
                                                "figures": figures})
  files.write_record(workdir / "automata" / "automata.json", {"figures": {"best_1": 1.5, "best_1_shuffled": 0.9}})
  group = {"score": [0.6, 0.5, 0.7], "score_others": None, "logits": [0.7, 0.6, 0.8]}
  files.write_record(other / "labels" / "rules" / "comparison.json", {"groups": {"features": group}})
  mine, theirs = stages.claims(RunFolder(workdir), ClaimsConfig(runs=(str(other),), control=str(other)))
  printed = capsys.readouterr().out
  value = lambda found, name: next(claim.value for claim in found if claim.name == name)
  assert value(mine, "best correlation of features, median") == 0.61
  assert value(theirs, "best correlation of features, median") is None
  assert value(mine, "strongest feature that leads to itself") == 1.5
  assert value(theirs, "features: score (Spearman), median") == 0.6
  assert value(mine, "features with random weights: score (Spearman), median") == 0.6
  assert value(theirs, "best correlation of neurons, median") is None and "0.600 (0.500 to 0.700)" in printed
  assert "`universality` (another seed)" in printed and "0.790" not in printed and "79.0%" in printed
  rows = json.loads((workdir / "claims" / "claims.json").read_text())
  assert len(rows) == len(mine) and {str(workdir), str(other), "published"} <= set(rows[0])
  shuffled = shutil.copytree(workdir, tmp_path / "shuffled")
  record = files.read_record(shuffled / "subject" / "stage.json")
  files.write_record(shuffled / "subject" / "stage.json",
                     {**record, "config": {**record["config"], "shuffled_of": str(other)}})
  files.write_record(workdir / "comparisons" / "another.sae" / "comparison.json",
                     {"a": {"run": str(workdir)}, "b": {"run": str(shuffled)},
                      "figures": {name: 0.01 for name in figures}})
  same = shutil.copytree(workdir, tmp_path / "same")  # as a run of another layer of the same subject
  files.write_record(workdir / "comparisons" / "a_layer.sae" / "comparison.json",
                     {"a": {"run": str(workdir)}, "b": {"run": str(same)},
                      "figures": {name: 0.02 for name in figures}})
  again, named = stages.claims(RunFolder(workdir), ClaimsConfig(others=(OWN_DICTIONARY,)))
  assert named == again and OWN_DICTIONARY in json.loads((workdir / "claims" / "claims.json").read_text())[0]
  with pytest.raises(InputError, match="must be different ones"):
    stages.claims(RunFolder(workdir), ClaimsConfig(others=(OWN_DICTIONARY, OWN_DICTIONARY)))
  assert value(again, "best correlation of features, median") == 0.61  # not that with random weights


def test_detectors_and_the_mean_over_runs(workdir, tmp_path, capsys):
  others = [shutil.copytree(workdir, tmp_path / name) for name in ("b", "c")]
  for directory, best in zip((workdir, *others), (1.0, 2.5, 3.0), strict=True):
    files.write_record(directory / "automata" / "automata.json", {"figures": {"best_1": best}})
  files.write_record(others[1] / "automata" / "automata.json", {"figures": {"best_1": 3.0, "best_2": 0.5}})
  rows = monojax.load(workdir).features.summary["detectors"]
  found = stages.claims(RunFolder(workdir), ClaimsConfig(runs=tuple(map(str, others))))
  value = {claim.name: claim.value for claim in found[0]}
  assert rows
  for row in rows:
    assert value[f"{row['class']}: feature less neuron"] == row["feature_f1"] - row["neuron_f1"]
  kept = {row["name"]: row for row in json.loads((workdir / "claims" / "claims.json").read_text())}
  low, high = stats.t.interval(0.95, 2, np.mean([1, 2.5, 3]), stats.sem([1, 2.5, 3]))
  of_loops = kept["strongest feature that leads to itself"]
  mean, half = of_loops["mean_of_runs"], of_loops["mean_error"]
  assert (mean - half, mean + half) == pytest.approx((low, high))
  assert kept["strongest loop of 2 features"]["mean_of_runs"] is None, "one run alone has it"
  printed = capsys.readouterr().out
  assert "mean ± 95 %" in printed and f"{np.mean([1, 2.5, 3]):.3f} ± {(high - low) / 2:.3f}" in printed
