"""The control with random weights: a subject of another run whose matrices have lost their order."""

import numpy as np
import pytest
from tiny_run import run, tiny

from monojax.pipeline import load
from monojax.pipeline.folder import RunFolder


@pytest.fixture(scope="module")
def control(finished, tmp_path_factory):
  """A run of the same tokens with the control as its subject."""
  workdir = tmp_path_factory.mktemp("control") / "run"
  for script in ("prepare_text", "train_subject"):
    flags = tiny("tokens") if script == "prepare_text" else [f"--subject.shuffled_of={finished[0]}"]
    result = run(script, workdir, *flags)
    assert result.returncode == 0, result.stderr[-3000:]
  return workdir


def test_every_matrix_has_its_entries_and_not_their_order(finished, control):
  trained, mixed = (load.load_subject(RunFolder(workdir)).params for workdir in (finished[0], control))

  def compare(name, a, b):
    if isinstance(a, dict):
      assert set(a) == set(b)
      for key in a:
        compare(key, a[key], b[key])
    elif a.ndim < 2:
      np.testing.assert_array_equal(a, b, err_msg=name)
    else:
      parts = [np.split(np.asarray(x), 3 if name == "W_qkv_DE" else 1, axis=1) for x in (a, b)]
      for p, q in zip(*parts, strict=True):
        assert (p == q).mean() < 0.1, name
        np.testing.assert_array_equal(np.sort(p, axis=None), np.sort(q, axis=None), err_msg=name)
  compare("", trained, mixed)


def test_its_settings_are_the_other_runs_and_it_has_learnt_nothing(finished, control):
  theirs, ours = (RunFolder(workdir).require_stage("subject") for workdir in (finished[0], control))
  assert {**ours["config"], "shuffled_of": "", "seed": 0} == {**theirs["config"], "seed": 0}
  assert ours["figures"]["subject/val_loss"] > theirs["figures"]["subject/unigram_loss"]
  result = run("train_subject", control)
  assert result.returncode == 0 and "already done" in result.stdout


@pytest.mark.parametrize("flag, why", [
    ("--subject.shuffled_of=nowhere", "not the folder of a run that has a subject"),
    ("--subject.weights=gpt2", "cannot be given together")])
def test_what_cannot_be_taken_is_said_first(tmp_path, finished, flag, why):
  more = [f"--subject.shuffled_of={finished[0]}"] if "weights" in flag else []
  result = run("monosemanticity", tmp_path / "run", *tiny("tokens"), flag, *more)
  assert result.returncode == 2 and why in result.stderr and not (tmp_path / "run" / "tokens").exists()


def test_other_tokens_are_refused(tmp_path, finished):
  assert run("prepare_text", tmp_path / "run", *tiny("tokens"), "--tokens.vocab_size=300").returncode == 0
  result = run("train_subject", tmp_path / "run", f"--subject.shuffled_of={finished[0]}")
  assert result.returncode == 2 and "other tokens" in result.stderr
