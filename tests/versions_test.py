"""What earlier versions wrote, this version reads: tiny finished runs, one for each format of a run's folder.

`tests/data/run-0.1` was made by version 0.1; `run-format-2` by a version whose records have "version": 2, which had no
checksums. The .json beside each holds what that version computed from it: features on a text, digests of the feature
tables. Where a format changes, a run in the old one is added.
"""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from tiny_run import run

import monojax
from monojax import config as configs
from monojax import files
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import STAGES, VERSION, RunFolder
from monojax.pipeline.settings import remembered
from monojax.pipeline.stages import analyze

DATA = pathlib.Path(__file__).parent / "data"
RUNS = {name: json.loads((DATA / f"{name}.json").read_text("utf-8")) for name in ("run-0.1", "run-format-2")}
DICTIONARIES = [(name, key) for name, expected in RUNS.items() for key in expected if "/" in key]


@pytest.fixture(params=RUNS)
def old(request, tmp_path):
  """A copy of a run that an earlier version made."""
  return shutil.copytree(DATA / request.param, tmp_path / request.param)


@pytest.mark.parametrize("name, dictionary", DICTIONARIES)
def test_every_dictionary_gives_the_same_features(name, dictionary):
  expected, loaded = RUNS[name], monojax.load(DATA / name, dictionary)
  tokens, f_TF = loaded.encode(expected["text"])
  assert tokens == expected[dictionary]["tokens"]
  np.testing.assert_allclose(f_TF, expected[dictionary]["f_TF"], atol=2e-6)
  assert loaded.reads == loaded.writes == ("layer.0.mlp.hidden",)


def test_the_tables_are_the_same_to_the_bit(old):
  loaded, expected = monojax.load(old), RUNS[old.name]
  np.testing.assert_allclose(loaded.mean_O, expected["mean_O"], atol=1e-6)
  digests = {name: hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()
             for name, column in loaded.features.columns.items()}
  assert digests == expected["features"]


def test_the_analysis_made_again_is_the_same(old):
  """From the old tokens, checkpoints and dictionary, with the settings in the old records."""
  before = dict(files.read_npz(old / "analysis" / "features.npz"))
  record = files.read_json(old / "analysis" / "stage.json")
  shutil.rmtree(old / "analysis")
  folder = RunFolder(old)
  settings = remembered(folder)
  analysis = configs.from_dict(type(settings.config.analysis), record["config"])
  config = configs.from_dict(RunConfig, configs.to_dict(settings.config) | {"analysis": configs.to_dict(analysis)})
  analyze(folder, config)
  after = files.read_npz(old / "analysis" / "features.npz")
  assert set(after) >= set(before)
  for name, column in before.items():
    if name.startswith("example_"):  # two places whose activations differ by rounding may change places
      top = slice(20)  # the others are chosen in another way since 0.2, without repeats
      assert np.isclose(after[name][:, top], column[:, top], rtol=1e-4, atol=1e-5).mean() > 0.99, name
    elif name == "act_counts_FH":  # an activation that differs by rounding may fall on the other side of an edge
      np.testing.assert_array_equal(after[name].sum(1), column.sum(1), err_msg=name)
      assert np.abs(np.cumsum(after[name] - column, axis=1)).max() <= 1
    else:
      np.testing.assert_allclose(after[name], column, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_whole_run_counts_as_done_and_a_change_is_named_by_its_flag(old):
  result = run("monosemanticity", old)
  assert result.returncode == 0, result.stderr[-3000:]
  assert result.stdout.count("already done") == len(STAGES)
  result = run("train_subject", old, "--subject.n_context=32")
  assert result.returncode == 2 and "config.n_context: 16 -> 32" in result.stderr


def test_its_dictionary_is_trained_further(tmp_path):
  """`begin_test.py` does so with the checkpoints of version 0.1."""
  old = shutil.copytree(DATA / "run-format-2", tmp_path / "run")
  result = run("train_sae", old, "--extend", "--sae.n_steps=80")
  assert result.returncode == 0, result.stderr[-3000:]
  sae = monojax.load(old).sae
  assert sae.config.n_steps == 80 and RunFolder(old).stage("sae")["version"] == VERSION


def test_a_setting_of_a_later_version_is_named(old):
  path = old / "analysis" / "stage.json"
  record = files.read_json(path)
  files.write_json(path, {**record, "config": {**record["config"], "n_moods": 3}})
  with pytest.raises(monojax.InputError, match="n_moods.*later"):
    remembered(RunFolder(old))


def test_a_later_version_of_a_record_is_named(old):
  path = old / "analysis" / "stage.json"
  files.write_record(path, {**files.read_json(path), "version": VERSION + 1})
  loaded = monojax.load(old)
  with pytest.raises(monojax.InputError, match=f"has version {VERSION + 1}, this version of monojax reads up to"):
    _ = loaded.features
