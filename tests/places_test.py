"""Paths and names that a user gives, of every kind: they work, or are refused in one line before any work."""

import os
import pathlib

import made_store
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run

import monojax
from monojax import checkpoint, files, places
from monojax.activations.folder import Folder
from monojax.activations.store import ActivationStore
from monojax.config import InputError
from monojax.pipeline.folder import RunFolder

FINE = ["plain", "./dot", "trailing/", "with space", "../PARENT/up", "sub/../beside", "link/within", "link/../over",
        "~/home", "ünï ñ", "n" * 200, "a%20b", "a#b", "a?b*c", "a:b", "s3:/x", "new\nline", "-dash", "%s{x}$HOME'\""]
REFUSED = ["a[1]", "a]", "back\\slash", "[x]/y", "a\\/b", "name\udcff", "null\0", "deep/" * 800]


# The record of a finished stage, as version 0.1 wrote it: without checksums of what the stage made.
DONE = {"config": {}, "inputs": {}, "identity": "", "complete": True, "seconds": 0.0}


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for name in ("sub", "real", "elsewhere"):
    (tmp_path / name).mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  return tmp_path


@pytest.mark.parametrize("path", FINE)
def test_files_stores_and_checkpoints_can_be_kept_in_it(here, path):
  path = path.replace("PARENT", here.name)
  run = RunFolder(path)
  files.write_json(run.directory / "sae" / "stage.json", DONE)
  files.write_json(run.directory / "dictionaries" / "one" / "stage.json", DONE)
  checkpoint.save_params(run.directory / "dictionaries" / "one" / "dictionary", {"a": np.ones(3)}, {"x": 1})
  params, config, _ = checkpoint.load_params(pathlib.Path(path) / "dictionaries" / "one" / "dictionary")
  assert config == {"x": 1} and params["a"].tolist() == [1, 1, 1]
  assert set(RunFolder(path).dictionaries()) == {"sae", "dictionaries/one"}
  made_store.write_store(f"{path}/activations", made_store.made_rows())
  assert ActivationStore.open(f"{path}/activations").n_rows == len(made_store.made_rows())
  assert Folder(f"{path}/activations").names("sums")
  left = {entry.name for entry in here.iterdir()} - {"home", "sub", "real", "link", "elsewhere"}
  assert len(left) <= 1, f"all is in one folder, not in {left}"


@pytest.mark.parametrize("path", REFUSED)
def test_it_is_refused_before_anything_is_made(here, path):
  before = sorted(here.iterdir())
  for use in (RunFolder, lambda path: monojax.train(np.ones((9, 3), np.float32), workdir=path), monojax.load,
              lambda path: checkpoint.save_params(path, {"a": np.ones(3)}, {}), checkpoint.load_params):
    with pytest.raises(InputError) as found:
      use(path)
    assert str(found.value).isprintable(), "it is one line"
  assert sorted(here.iterdir()) == before


def test_commands_refuse_it_in_one_line(here):
  for path in ("a[1]", "back\\slash"):
    result = run("monosemanticity", path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and path[:4] in result.stderr, result.stderr
  assert {entry.name for entry in here.iterdir()} == {"sub", "real", "link", "elsewhere"}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_name_of_a_dictionary_is_a_folder_within_or_is_refused(name):
  try:
    found = places.name(name, "--name")
  except InputError as error:
    assert "\n" not in str(error)
    return
  inside = pathlib.PurePath("/run/dictionaries") / found
  assert os.path.normpath(inside) == str(inside) and inside.parent.name == "dictionaries"
  assert len(os.fsencode(found)) <= 200 and not set(found) & set("[]\\/")


def test_a_dictionary_is_looked_for_within_the_run_only(here):
  for name in ("dictionaries/one", "dictionaries/two"):
    files.write_json(here / "run" / name / "stage.json", DONE)
  (here / "run" / "dictionaries" / "one" / "dictionary").mkdir()
  (here / "run" / "dictionaries" / "two" / "dictionary").symlink_to(here / "elsewhere")
  (here / "other" / "dictionaries" / "three" / "dictionary").mkdir(parents=True)
  files.write_json(here / "other" / "dictionaries" / "three" / "stage.json", DONE)
  run = RunFolder(here / "run")
  assert set(run.dictionaries()) == {"dictionaries/one"}
  for name in ("../x", "../other/dictionaries/three", str(here / "other" / "dictionaries" / "three"), "two", "..", "/",
               "dictionaries/../../other/dictionaries/three", "", "dictionaries/two", "~/three"):
    with pytest.raises(InputError, match="the finished dictionaries of .* are dictionaries/one"):
      monojax.load(here / "run", name)


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link"])
def test_what_waits_under_partial_is_not_followed(here, kind):
  victim = here / "victim"
  victim.write_text("keep")
  aside = here / "out.json.partial"
  if kind == "hard link":
    aside.hardlink_to(victim)
  else:
    aside.symlink_to(victim if kind == "link" else here / "nothing")
  files.write_json(here / "out.json", 1)
  assert victim.read_text() == "keep" and not (here / "nothing").exists()
  assert files.read_json(here / "out.json") == 1 and not (here / "out.json").is_symlink()


def test_a_linked_folder_that_waits_under_partial_is_not_followed(here):
  (here / "kept").mkdir()
  (here / "kept" / "file").write_text("keep")
  for name in ("dictionary.partial", "dictionary.old"):
    (here / name).symlink_to(here / "kept")
  for value in (1, 2):
    checkpoint.save_params(here / "dictionary", {"a": np.full(3, value)}, {})
  assert [path.name for path in (here / "kept").iterdir()] == ["file"] and not (here / "dictionary").is_symlink()
  assert checkpoint.load_params(here / "dictionary")[0]["a"].tolist() == [2, 2, 2]
