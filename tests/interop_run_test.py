"""A run and other tools' SAE files: its dictionary goes out, others come in, Neuronpedia's export."""

import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from foreign_saes import MAKERS
from tiny_run import ENVIRONMENT, EXPERIMENTS, run, tiny

import monojax
from monojax import InputError, files, interop
from monojax.sae.form import Form


def convert(*flags):
  return subprocess.run([sys.executable, str(EXPERIMENTS / "convert_sae.py"), *flags], capture_output=True, text=True,
                        timeout=120, env=ENVIRONMENT)


def test_the_command_converts_a_runs_dictionary(finished, tmp_path):
  work, _ = finished
  result = convert(f"--source={work}", f"--target={tmp_path / 'out'}", "--format=sae_lens",
               "--model_name=toy")
  assert result.returncode == 0, result.stderr[-2000:]
  said = json.loads((tmp_path / "out" / "cfg.json").read_text())
  assert said["metadata"]["hook_name"] == "blocks.0.mlp.hook_post" and said["metadata"]["model_name"] == "toy"
  assert said["metadata"]["context_size"] == 32 and said["metadata"]["prepend_bos"] is False
  sae = monojax.load(work).sae
  x = np.random.default_rng(0).standard_normal((16, sae.model.wiring.n_inputs)).astype(np.float32)
  np.testing.assert_allclose(interop.read(tmp_path / "out").encode(x), sae.encode(x), atol=1e-5)
  result = convert(f"--source={tmp_path / 'no'}", f"--target={tmp_path / 'out'}")
  assert result.returncode == 2 and result.stderr.count("\n") == 1 and "there is no such file" in result.stderr
  result = convert(f"--target={tmp_path / 'out'}")
  assert result.returncode == 2 and "--source=None: name the dictionary to read" in result.stderr


def test_a_run_adopts_a_dictionary_that_is_then_like_its_own(finished, tmp_path):
  """Its own dictionary by way of SAELens' files: the same figures, tables, pages and steering."""
  work = shutil.copytree(finished[0], tmp_path / "run")
  loaded = monojax.load(work)
  interop.write(loaded.sae, tmp_path / "theirs", "sae_lens")
  result = run("adopt_sae", work, "--name=theirs", f"--source={tmp_path / 'theirs'}")
  assert result.returncode == 0, result.stderr[-3000:]
  own_figures, figures = (files.read_json(work / stage / "stage.json")["figures"] for stage in
                          ("sae", "dictionaries/theirs"))
  for name in ("l0", "explained_variance", "ce_spliced", "heldout_dense_features"):
    assert figures[f"sae/{name}"] == pytest.approx(own_figures[f"sae/{name}"], rel=1e-5)
  assert figures["sae/rows_seen"] is None and figures["sae/sparsity"] is None
  for command in ("analyze", "build_browser"):
    result = run(command, work, "--dictionary=theirs", *tiny("analysis" if command == "analyze" else "browser"))
    assert result.returncode == 0, result.stderr[-3000:]
  theirs = monojax.load(work, "theirs")
  assert theirs.sae.form == Form("relu", pre_bias=True) and (theirs._place.home and (
      work / theirs._place.home / "browser" / "site" / "index.html").exists())
  np.testing.assert_allclose(theirs.features.density_F, loaded.features.density_F, atol=1e-4)
  i = int(np.argmax(loaded.features.n_fires_F))
  value = {i: float(loaded.features.max_act_F[i])}
  assert theirs.steer("the", value, 8, temperature=0.1) == loaded.steer("the", value, 8, temperature=0.1)
  result = run("adopt_sae", work, "--name=theirs", f"--source={tmp_path / 'theirs'}")
  assert "already done" in result.stdout
  wide = MAKERS["gemma_scope"](tmp_path / "wide")
  result = run("adopt_sae", work, "--name=wide", f"--source={wide.path}", "--sites=layer.0.mlp.hidden")
  assert result.returncode == 2 and "reads 12 numbers of layer.0.mlp.hidden, which in this run has 48" in result.stderr
  assert not (work / "dictionaries" / "wide").exists() or not list((work / "dictionaries" / "wide").glob("*.json"))


def test_neuronpedias_export_says_what_the_analysis_does(finished, tmp_path):
  loaded = monojax.load(finished[0])
  tables = loaded.features
  home = interop.export(loaded.sae, tables, tmp_path, "toy", "mlp-mine")
  assert home == tmp_path / "exports" / "toy" / "0-mlp-mine"
  lines = lambda path: [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]
  features = [record for path in sorted((home / "features").iterdir(), key=lambda p: int(p.stem.split("-")[1][:-6]))
              for record in lines(path)]
  assert [record["index"] for record in features] == [str(i) for i in range(loaded.sae.n_features)]
  i = int(np.argmax(tables.n_fires_F))
  record = features[i]
  assert record["maxActApprox"] == pytest.approx(float(tables.max_act_F[i]))
  assert record["hookName"] == "blocks.0.mlp.hook_post" and record["layer"] == "0-mlp-mine"
  assert sum(record["freq_hist_data_bar_heights"]) == tables.n_fires_F[i]
  np.testing.assert_allclose(record["vector"], loaded.sae.params["W_dec_FO"][i], rtol=1e-6)
  if tables.has("top_logit_ids_FK"):
    assert record["pos_str"][0] == tables.token_strings[tables.top_logit_ids_FK[i, 0]]
  activations = [record for record in lines(home / "activations" / f"batch-{i // 256}.jsonl.gz")
                 if record["index"] == str(i)]
  top = activations[0]
  assert top["maxValue"] == pytest.approx(float(tables.max_act_F[i])) and len({r["id"] for r in activations}) > 1
  assert top["tokens"][top["qualifyingTokenIndex"]] == tables.token_strings[tables.example_tokens_FEW[i, 0, 4]]
  assert top["values"][top["maxValueTokenIndex"]] == top["maxValue"] and top["binContains"] == -1
  for record in (one for path in (home / "activations").iterdir() for one in lines(path)):
    value = record["values"][record["qualifyingTokenIndex"]]
    assert record["binMax"] <= 0 or record["binMin"] <= value <= record["binMax"]
  assert json.loads((home / "source.jsonl").read_text())["nFeatures"] == loaded.sae.n_features
  with pytest.raises(InputError, match="set_name"):
    interop.export(loaded.sae, tables, tmp_path, "toy", "a/b")
