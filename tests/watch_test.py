"""The page of a run in progress, in a real browser."""

import json
import shutil

import numpy as np
import pytest
from browser_fixture import texts, visit, wait

import monojax
from monojax.activations.store import ActivationStore
from monojax.config import InputError
from monojax.pipeline import watch
from monojax.pipeline.folder import RunFolder


def test_a_page_follows_a_run(finished, tmp_path, driver):
  workdir = tmp_path / "<b>run"
  for stage in ("tokens", "activations", "sae"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  (workdir / "subject").mkdir()
  shutil.copy(finished[0] / "subject" / "stage.json", workdir / "subject")
  lines = (finished[0] / "sae" / "metrics.jsonl").read_text().splitlines(keepends=True)
  (workdir / "sae" / "metrics.jsonl").write_text(lines[0] + lines[1][:20])  # the second is being written
  run = RunFolder(workdir)
  page = watch.write_page(run)
  driver.get_log("browser")
  visit(driver, page.as_uri())
  assert texts(driver, "h1") == ["<b>run"]
  states = dict(zip(texts(driver, "th"), texts(driver, "td:nth-child(2)"), strict=True))
  assert states["sae"] == "done" and states["analysis"] == "waiting"
  first, last = json.loads(lines[0]), json.loads(lines[-1])
  assert texts(driver, "[data-log=sae] h2")[0].startswith(f"sae: step {first['step']} of ")
  resampled = json.dumps({"step": last["step"], "resampled": 3}) + "\n"
  (workdir / "sae" / "metrics.jsonl").write_text("".join(lines) + resampled)
  found = watch.write_progress(run)
  wait(driver, lambda: texts(driver, "[data-log=sae] h2")[0].startswith(f"sae: step {last['step']} of "))
  assert len(driver.find_elements("css selector", "[data-log=sae] path.joined")) == len(found["logs"][0]["curves"])
  features = found["logs"][0]["features"]
  run_of_rows = ActivationStore.open(workdir / "activations")
  f_NF = monojax.load(finished[0]).sae.encode(run_of_rows.rows(0, 8192).astype(np.float32))
  assert features["step"] == 90 and features["silent"] == (f_NF.max(0) == 0).sum()
  assert sum(features["densities"]["counts"]) + features["silent"] == 64
  feature, tokens = features["examples"][0]
  strings = monojax.load(finished[0]).tokenizer.token_strings()
  assert tokens[0] == strings[run_of_rows.places(0, 8192)[f_NF[:, feature].argmax(), 0]]
  wait(driver, lambda: texts(driver, "[data-features] .boxed")[0] == tokens[0])
  assert watch.progress_of(run, found)["logs"][0]["features"] is features
  assert found["logs"][0]["curves"]["l0"][-1] == [last["step"], last["l0"]]
  assert len(found["logs"][0]["curves"]["l0"]) <= 401 and driver.get_log("browser") == []
  with pytest.raises(InputError, match="no such folder"):
    watch.write_page(RunFolder(tmp_path / "none"))
