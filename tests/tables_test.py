"""The tables of an analysis: what they accept, what they say is missing, and files that another version wrote."""

import copy
import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import browser_fixture
import numpy as np
import pytest
from browser_fixture import without

import monojax.analysis.tables
from monojax import files
from monojax.analysis.columns import COLUMNS, Cell, Column, Entry, Kind, axes_of
from monojax.analysis.tables import FeatureTables
from monojax.config import InputError

OLD = pathlib.Path(__file__).parent / "data" / "run-0.1" / "analysis"
BY_NAME = {column.name: column for column in COLUMNS}


@pytest.fixture
def tables():
  return browser_fixture.make_tables(20)


def changed(tables, **columns):
  return FeatureTables({**tables.columns, **columns}, tables.token_strings, tables.domains, tables.summary)


def test_the_axes_are_in_the_name():
  assert axes_of("example_tokens_FEW") == ("F", "E", "W") and axes_of("logit_range_F2") == ("F", "2")
  assert axes_of("x_F16") == ("F", "16") and axes_of("density") == axes_of("F") == axes_of("Density_F") == ()


def test_analysis_of_version_0_1_loads():
  with np.load(OLD / "features.npz") as arrays:
    written = dict(arrays)
  loaded = FeatureTables.load(OLD)
  assert set(loaded.columns) == set(written) <= set(BY_NAME) and loaded.n_features == 8
  for name, array in written.items():
    assert getattr(loaded, name).dtype == array.dtype == BY_NAME[name].dtype
    np.testing.assert_array_equal(getattr(loaded, name), array)
  fields = json.loads((OLD / "features.json").read_text())
  assert fields == {"token_strings": loaded.token_strings, "domains": loaded.domains, "summary": loaded.summary}


def test_an_unknown_column_is_kept_and_named(tables, tmp_path):
  score_F = np.arange(20, dtype=np.float16)
  changed(tables, score_F=score_F, of_another_version=np.arange(3)).save(tmp_path / "a")
  fields = files.read_record(tmp_path / "a" / "features.json")
  files.write_record(tmp_path / "a" / "features.json", {**fields, "language": "en"})
  with pytest.warns(UserWarning) as warned:
    loaded = FeatureTables.load(tmp_path / "a")
  assert [str(warning.message).partition(" in ")[2].partition(" has ")[2] for warning in warned] == [
      "columns that this version of monojax does not know: of_another_version, score_F; they are kept as they are",
      "fields that this version of monojax does not know: language; they are left out"]
  np.testing.assert_array_equal(loaded.score_F, score_F)
  loaded.save(tmp_path / "b")
  with np.load(tmp_path / "b" / "features.npz") as arrays:
    np.testing.assert_array_equal(arrays["of_another_version"], np.arange(3))
  assert "score_F" in dir(loaded)


@pytest.mark.parametrize("written", ([], "e9", {"x": "e9"}, {"1": "no"}, {"1": 233}, {"1": None}))
def test_bytes_of_tokens_that_are_none_are_named(tables, tmp_path, written):
  tables.save(tmp_path)
  fields = files.read_record(tmp_path / "features.json")
  files.write_record(tmp_path / "features.json", {**fields, "token_bytes": written})
  with pytest.raises(InputError, match="token_bytes must be hexadecimal digits"):
    FeatureTables.load(tmp_path)


def test_bytes_of_tokens_are_kept_or_read_from_their_strings(tables, tmp_path):
  strings = [*tables.token_strings, r"\xeb\x81", r"\x8a"]
  made = dataclasses.replace(tables, token_strings=strings, token_bytes={3: b"\xff"})
  made.save(tmp_path / "new")
  assert FeatureTables.load(tmp_path / "new").partial_tokens == {3: b"\xff"}
  dataclasses.replace(made, token_bytes=None).save(tmp_path / "old")  # as version 0.1 saved it
  assert "token_bytes" not in files.read_json(tmp_path / "old" / "features.json")
  loaded = FeatureTables.load(tmp_path / "old")
  n = len(tables.token_strings)
  assert {i: value for i, value in loaded.partial_tokens.items() if i >= n} == {n: b"\xeb\x81", n + 1: b"\x8a"}
  assert [piece.text for piece in loaded.pieces(np.array([-1, n, n + 1, n]))] == ["끊", r"\xeb\x81"]


def test_an_absent_column_says_why(tables):
  lacking = without(tables, "logit_", "top_logit", "bottom_logit")
  assert tables.has("top_logit_ids_FK") and not lacking.has("top_logit_ids_FK")
  with pytest.raises(AttributeError, match="this analysis has no top_logit_ids_FK: .* the run has no subject"):
    lacking.top_logit_ids_FK  # noqa: B018
  with pytest.raises(AttributeError, match="no feature column densities_F; this analysis has status_F, density_F"):
    tables.densities_F  # noqa: B018
  assert not hasattr(lacking, "logit_range_F2")


def test_an_older_analysis_lacks_a_column_that_came_since(tables, monkeypatch):
  mood = Column("mood_F", "float32", "The feature's mood.", absent_where="it rains", since="0.3")
  monkeypatch.setattr(monojax.analysis.tables, "COLUMNS", (*COLUMNS, mood))
  with pytest.raises(AttributeError, match="lacks it where it rains, or where monojax before 0.3 made it$"):
    changed(tables).mood_F  # noqa: B018
  monkeypatch.setattr(monojax.analysis.tables, "COLUMNS", (*COLUMNS, dataclasses.replace(mood, absent_where="")))
  with pytest.raises(AttributeError, match="lacks it where monojax before 0.3 made it$"):
    changed(tables).mood_F  # noqa: B018


def test_tables_can_be_copied_and_sent(tables):
  for other in (copy.copy(tables), copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
    np.testing.assert_array_equal(other.max_act_F, tables.max_act_F)


@pytest.mark.parametrize("change, message", [
    ({"density_F": np.zeros(20)}, "density_F.dtype='float64': must be float32"),
    ({"density_F": np.zeros(19, np.float32)}, "axis F must have length 20, as status_F has"),
    ({"density_F": np.zeros((20, 1), np.float32)}, "must have the 1 axes of its name"),
    ({"logit_range_F2": np.zeros((20, 3), np.float32)}, "axis 2 must have length 2, as its name has"),
    ({"domain_share_FD": np.zeros((20, 5), np.float32)}, "axis D must have length 6, as the list of domains has"),
    ({"example_acts_FEW": np.zeros((20, 95, 8), np.float32)}, "axis W must have length 9, as example_tokens_FEW has"),
    ({"score_FK": np.zeros((20, 9), np.float16)}, "axis K must have length 10, as top_logit_ids_FK has"),
])
def test_what_contradicts_itself_is_refused(tables, change, message):
  with pytest.raises(InputError) as error:
    changed(tables, **change)
  assert message in str(error.value)


def test_what_every_analysis_has_must_be_there(tables):
  with pytest.raises(InputError, match="max_act_F, mean_act_F are missing"):
    without(tables, "max_act_F", "mean_act_F")
  with pytest.raises(InputError, match="top_logit_ids_FK needs top_logit_values_FK"):
    without(tables, "top_logit_values")


def test_a_folder_without_an_analysis_is_named(tmp_path):
  with pytest.raises(InputError, match="holds no analysis"):
    FeatureTables.load(tmp_path)


@pytest.mark.parametrize("made, message", [
    (lambda: Column("density", "float32", "."), "must end in its axes"),
    (lambda: Column("x_FK", "float32", ".", entry=Entry("P", "x", Kind.NUMBER)), "one number a feature"),
    (lambda: Column("x_FK", "int32", ".", cells=(Cell("x", Kind.NEURONS),)), "the list draws activation, label, log"),
    (lambda: Column("x_FK", "int32", ".", cells=(Cell("x", Kind.WEIGHTED_TOKENS),)), "weighted_tokens draws 1 more"),
])
def test_a_column_that_cannot_be_drawn_is_refused(made, message):
  with pytest.raises(InputError, match=message):
    made()


def test_each_column_is_described():
  assert len(BY_NAME) == len(COLUMNS)
  for column in COLUMNS:
    assert column.what[0].isupper() and column.what.endswith("."), column.name
    assert set(column.beside) <= set(BY_NAME), column.name
    assert not column.absent_where.endswith("."), column.name


def test_tables_need_no_jax():
  code = "import sys, monojax.analysis.tables, monojax.browser.build; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
