"""The benchmark of an accelerator runs with nothing but this repository, here at toy size."""

import json
import os
import subprocess
import sys

import pytest
from tiny_run import EXPERIMENTS


def bench(out, *flags):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(EXPERIMENTS.parent)}
  return subprocess.run([sys.executable, str(EXPERIMENTS / "bench_accelerator.py"), f"--out={out}", "--toy", *flags],
                        env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_every_part_has_figures(tmp_path):
  done = bench(tmp_path / "out")
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads((tmp_path / "out" / "figures.json").read_text())
  assert list(found) == ["rates", "step_small", "profile", "step_middle", "step_large", "sweep", "subject", "feeds"]
  for name, figures in found.items():
    assert not {"failed", "stopped", "left out"} & set(figures), (name, figures)
    assert any(isinstance(value, float) and value > 0 for value in figures.values())
  page = (tmp_path / "out" / "index.html").read_text()
  assert all(f"<h2>{name}</h2>" in page for name in found)
  assert list((tmp_path / "out" / "profile").rglob("*.xplane.pb"))


def test_what_has_no_time_left_is_said(tmp_path):
  done = bench(tmp_path / "out", "--minutes=0.1", "--parts=rates,feeds")
  assert done.returncode == 0 and "6 s were left" in done.stdout
  found = json.loads((tmp_path / "out" / "figures.json").read_text())
  assert list(found) == ["rates", "feeds"] and all("left out" in figures for figures in found.values())
  done = bench(tmp_path / "out", "--parts=speed")
  assert done.returncode == 2 and "choose from rates, step_small" in done.stderr
