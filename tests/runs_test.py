"""The bookkeeping of stages: skipping, refusing, going on, adding up time."""

import dataclasses
import time

import pytest

from monojax import files
from monojax.config import InputError
from monojax.pipeline import folder
from monojax.pipeline.folder import RunFolder
from monojax.text.config import TextConfig


def test_a_stage_is_done_once_and_its_figures_reach_the_summary(tmp_path):
  run, calls = RunFolder(tmp_path), []
  work = lambda directory, identity: calls.append(identity) or {"tokens/n": 3}
  first = run.execute("tokens", TextConfig(), work)
  assert run.execute("tokens", TextConfig(), work) == first and len(calls) == 1
  assert files.read_json(tmp_path / "summary.json") == {"tokens/seconds": first["seconds"], "tokens/n": 3}


def test_changed_settings_are_refused_by_name(tmp_path):
  run = RunFolder(tmp_path)
  run.execute("tokens", TextConfig(), lambda directory, identity: {})
  changed = dataclasses.replace(TextConfig(), vocab_size=999)
  with pytest.raises(InputError, match="vocab_size: 2048 -> 999"):
    run.execute("tokens", changed, lambda directory, identity: {})


def test_a_stage_needs_those_before_it_and_notices_when_they_change(tmp_path):
  run = RunFolder(tmp_path)
  with pytest.raises(InputError, match="tokens is not finished"):
    run.execute("subject", TextConfig(), lambda directory, identity: {})
  run.execute("tokens", TextConfig(), lambda directory, identity: {})
  run.execute("subject", TextConfig(), lambda directory, identity: {})
  (tmp_path / "tokens" / "stage.json").unlink()
  run.execute("tokens", TextConfig(seed=5), lambda directory, identity: {})
  with pytest.raises(InputError, match="inputs.tokens"):
    run.execute("subject", TextConfig(), lambda directory, identity: {})


def test_a_refused_stage_can_be_corrected_but_a_begun_one_is_kept(tmp_path):
  run = RunFolder(tmp_path)

  def refuse(directory, identity):
    raise InputError("no such thing")

  def begin(directory, identity):
    (directory / "half").write_text("made")
    raise InputError("disk full")

  with pytest.raises(InputError, match="no such thing"):
    run.execute("tokens", TextConfig(seed=1), refuse)
  with pytest.raises(InputError, match="disk full"):
    run.execute("tokens", TextConfig(seed=2), begin)
  with pytest.raises(InputError, match="seed: 2 -> 3"):
    run.execute("tokens", TextConfig(seed=3), lambda directory, identity: {})
  assert run.execute("tokens", TextConfig(seed=2), lambda directory, identity: {})["complete"]


def test_time_adds_up_over_restarts(tmp_path):
  run = RunFolder(tmp_path)
  path = tmp_path / "tokens" / "stage.json"

  def interrupted(directory, identity):
    (directory / "half").write_text("made")
    time.sleep(0.2)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run.execute("tokens", TextConfig(), interrupted)
  files.write_record(path, files.read_record(path, without=2) | {"seconds": 100.0})
  record = run.execute("tokens", TextConfig(), lambda directory, identity: time.sleep(0.1) or {})
  assert 100.1 <= record["seconds"] < 110


def test_the_clock_keeps_the_time_of_a_stage_that_will_be_killed(tmp_path):
  path = tmp_path / "stage.json"
  with folder._clock(path, {"complete": False}, 5.0, every_seconds=0.05):
    time.sleep(0.3)
    seen = files.read_json(path)["seconds"]
  assert 5.05 < seen < 6 and files.read_json(path)["complete"] is False
