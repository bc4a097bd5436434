"""What version 0.1 wrote, this version reads: a tiny finished run that version 0.1 made, tests/data/run-0.1.

tests/data/run-0.1.json holds what version 0.1 computed from it: features on a text, digests of the feature tables.
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
from monojax.pipeline.folder import STAGES, RunFolder
from monojax.pipeline.settings import remembered
from monojax.pipeline.stages import analyze

DATA = pathlib.Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "run-0.1.json").read_text("utf-8"))
DICTIONARIES = [name for name in EXPECTED if "/" in name]


@pytest.fixture
def old(tmp_path):
  """A copy of the run that version 0.1 made."""
  return shutil.copytree(DATA / "run-0.1", tmp_path / "run")


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_dictionary_gives_the_same_features(name):
  loaded = monojax.load(DATA / "run-0.1", name)
  tokens, f_TF = loaded.encode(EXPECTED["text"])
  assert tokens == EXPECTED[name]["tokens"]
  np.testing.assert_allclose(f_TF, EXPECTED[name]["f_TF"], atol=2e-6)
  assert loaded.reads == loaded.writes == ("layer.0.mlp.hidden",)


def test_the_tables_are_the_same_to_the_bit():
  loaded = monojax.load(DATA / "run-0.1")
  np.testing.assert_allclose(loaded.mean_O, EXPECTED["mean_O"], atol=1e-6)
  digests = {name: hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()
             for name, column in loaded.features.columns.items()}
  assert digests == EXPECTED["features"]


def test_the_analysis_made_again_is_the_same(old):
  """From tokens, checkpoints and dictionary of version 0.1, with the settings in its records."""
  before = dict(files.read_npz(old / "analysis" / "features.npz"))
  shutil.rmtree(old / "analysis")
  folder = RunFolder(old)
  settings = remembered(folder)
  analysis = configs.from_dict(type(settings.config.analysis),
                               files.read_json(DATA / "run-0.1" / "analysis" / "stage.json")["config"])
  config = configs.from_dict(RunConfig, configs.to_dict(settings.config) | {"analysis": configs.to_dict(analysis)})
  analyze(folder, config)
  after = files.read_npz(old / "analysis" / "features.npz")
  assert set(after) >= set(before)
  for name, column in before.items():
    if name.startswith("example_"):  # two places whose activations differ by rounding may change places
      assert np.isclose(after[name], column, rtol=1e-4, atol=1e-5).mean() > 0.99, name
    else:
      np.testing.assert_allclose(after[name], column, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_whole_run_counts_as_done_and_a_change_is_named_by_its_flag(old):
  result = run("monosemanticity", old)
  assert result.returncode == 0, result.stderr[-3000:]
  assert result.stdout.count("already done") == len(STAGES)
  result = run("train_subject", old, "--subject.n_context=32")
  assert result.returncode == 2 and "config.n_context: 16 -> 32" in result.stderr


def test_a_setting_of_a_later_version_is_named(old):
  path = old / "analysis" / "stage.json"
  record = files.read_json(path)
  files.write_json(path, {**record, "config": {**record["config"], "n_moods": 3}})
  with pytest.raises(monojax.InputError, match="n_moods.*later"):
    remembered(RunFolder(old))
