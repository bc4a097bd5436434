"""The whole pipeline through its scripts, on little text: every stage, bad input, kill and go on."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_run import EXPERIMENTS, TINY, contents, run, tiny

import monojax
from monojax.analysis.pictures import draw_frontier
from monojax.config import InputError
from monojax.pipeline import folder, load, stages
from monojax.pipeline.folder import RunFolder
from monojax.sae.recipes import RECIPES

STAGES = [("prepare_text", "tokens"), ("train_subject", "subject"), ("harvest", "activations"),
          ("train_sae", "sae"), ("train_frontier", "frontier"), ("analyze", "analysis"),
          ("build_browser", "browser")]


def test_summary_holds_every_figure(finished):
  workdir, printed = finished
  summary = json.loads((workdir / "summary.json").read_text())
  for name in ("subject/val_loss", "subject/unigram_loss", "subject/bigram_loss", "sae/l0",
               "sae/explained_variance", "sae/ce_recovered_zero", "sae/ce_recovered_mean",
               "sae/alive_fraction", "sae/ultralow_fraction", "sae/n_features"):
    assert np.isfinite(summary[name]), name
    assert name in printed
  assert all(summary[f"{stage}/seconds"] >= 0 for stage in folder.STAGES)
  assert summary["sae/n_features"] == 64 and summary["subject/val_loss"] < summary["subject/unigram_loss"]
  assert (workdir / "browser" / "site" / "index.html").exists()
  assert (workdir / "frontier" / "frontier.csv").read_text().count("\n") == 3
  assert (workdir / "subject" / "samples.txt").stat().st_size > 0


def test_the_frontier_of_the_pages_names_the_setting_that_its_recipe_has():
  for recipe in RECIPES.values():
    points = [{"recipe": recipe.name, "sparsity": value} for value in recipe.grid]
    assert [point["knob"] for point in stages.pages._with_knobs(points)] == [recipe.knob] * len(points)
  assert stages.pages._with_knobs([{"recipe": "someone.else", "sparsity": 1}, {"sparsity": 2}]) == [
      {"recipe": "someone.else", "sparsity": 1}, {"sparsity": 2}]


def test_a_finished_run_is_not_done_again(finished):
  workdir, _ = finished
  before = contents(workdir)
  started = time.time()
  result = run("monosemanticity", workdir, *TINY)
  assert result.returncode == 0 and result.stdout.count("already done") == len(folder.STAGES)
  assert contents(workdir) == before
  assert not [p for p in workdir.rglob("*") if p.is_file() and p.stat().st_mtime > started
              and p.name != "summary.json"]


def test_stage_scripts_make_the_same_run(finished, tmp_path):
  workdir, _ = finished
  for script, field in STAGES:
    flags = [flag for flag in TINY if flag.startswith(f"--{field}.")]
    result = run(script, tmp_path / "tiny", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
  assert contents(tmp_path / "tiny") == contents(workdir)


def test_load_gives_everything_for_a_notebook(finished):
  workdir, _ = finished
  loaded = monojax.load(workdir)
  summary = json.loads((workdir / "summary.json").read_text())
  features = loaded.features
  assert features.density_F.shape == (64,)
  np.testing.assert_allclose(np.mean(features.status_F != 2), summary["sae/alive_fraction"])
  strings, f_TF = loaded.encode("In the beginning God created the heaven and the earth.")
  assert f_TF.shape == (len(strings), 64) and "".join(strings[1:]).startswith("In the beginning")
  x_BM = np.random.default_rng(0).exponential(size=(5, 48)).astype(np.float32)
  f_BF = loaded.sae.encode(x_BM)
  p = {name: np.asarray(value) for name, value in loaded.sae.params.items()}
  np.testing.assert_allclose(
      f_BF, np.maximum((x_BM - p["b_dec_O"]) @ p["W_enc_MF"] + p["b_enc_F"], 0), atol=1e-4)


def test_examples_in_the_tables_are_what_the_model_computes(finished):
  """The centre token's activation of a feature's best example, recomputed from its context."""
  workdir, _ = finished
  loaded = monojax.load(workdir)
  features = loaded.features
  feature = int(np.argmax(features.max_act_F))
  np.testing.assert_allclose(features.example_acts_FEW[feature, 0, 4], features.max_act_F[feature])
  tokens = load.open_tokens(RunFolder(workdir), "train")
  from monojax.analysis.fidelity import make_encode
  encode = make_encode(loaded.subject, loaded.sae.model, loaded.reads)
  width = loaded.n_context
  best, analysed_C = 0.0, tokens.choose(width, 20_000, 0)  # TINY's analysis.n_tokens, and its seed
  for first in range(0, len(analysed_C), 64):
    index_B = analysed_C[first:first + 64]
    f_NF, _ = encode(loaded.subject_params, loaded.sae.params, tokens.context(index_B, width))
    best = max(best, float(np.max(f_NF[:, feature])))
  np.testing.assert_allclose(features.max_act_F[feature], best, atol=1e-4)


def test_a_picture_leaves_matplotlib_as_it_is(monkeypatch, tmp_path):
  matplotlib = pytest.importorskip("matplotlib")
  monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
  point = {"sweep": "a", "recipe": "topk", "n_features": 8, "l0": 2.0, "ce_recovered_zero": 0.5,
           "explained_variance": 0.6}
  assert draw_frontier([point], tmp_path / "frontier.png") and matplotlib.rcParams["backend"] == "svg"
  assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_dictionaries_beside_the_run_share_a_table_and_load(finished, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(finished[0], workdir)
  before = contents(workdir)
  flags = tiny("sae") + ["--sae.n_steps=30", "--sae.resample_every_steps=0"]
  for script, more in (("sweep", ["--sweep.name=l1", "--sweep.sparsities=0.01,0.05"]),
                       ("train_sae", ["--name=four", "--sae.recipe=topk", "--sae.k=4"])):
    result = run(script, workdir, *flags, *more)
    assert result.returncode == 0, result.stderr[-3000:]
  points = json.loads((workdir / "sweeps" / "all.json").read_text())
  assert [point["recipe"] for point in points] == ["tm2023", "tm2023", "topk"] and points[2]["l0"] <= 4
  assert points[0]["l0"] < points[1]["l0"] and all(0 < point["train_seconds"] < 300 for point in points)
  assert (workdir / "sweeps" / "all.csv").read_text().count("\n") == 4
  for picture in ("frontier.png", "l1/curves.png", "../dictionaries/four/curves.png"):
    assert (workdir / "sweeps" / picture).stat().st_size > 10_000
  loaded = monojax.load(workdir, dictionary="four")
  _, f_TF = loaded.encode("In the beginning God created the heaven and the earth.")
  assert f_TF.shape[1] == 64 and 0 < (f_TF > 0).sum(1).max() <= 4
  member = f"sweeps/l1/dictionaries/{points[0]['name']}"
  assert monojax.load(workdir, member).sae.n_features == monojax.load(workdir, points[0]["name"]).sae.n_features == 64
  with pytest.raises(InputError, match="monojax analyze .*--dictionary=dictionaries/four"):
    _ = loaded.features
  with pytest.raises(InputError, match="sweeps/five.*dictionaries/four"):
    monojax.load(workdir, dictionary="sweeps/five")
  for dictionary in ("four", member):
    analysed(workdir, dictionary, pages=dictionary == "four")
    loaded = monojax.load(workdir, dictionary)
    assert loaded.features.n_fires_F.sum() > 0 and len(loaded.examples(int(loaded.features.max_act_F.argmax()), 3)) == 3
    assert (workdir / loaded.dictionary / "browser" / "site" / "index.html").exists() == (dictionary == "four")
  result = run("build_browser", workdir, "--all")
  assert result.returncode == 0 and str(workdir / "pages" / "index.html") in result.stdout, result.stderr[-3000:]
  folders = ("sae", "dictionaries-four", member.replace("/", "-"))
  for place, name in zip(folders, ("sae", "four", member), strict=True):
    script = (workdir / "pages" / place / "data" / "index.js").read_text()
    told = json.loads(script.removeprefix("data.registerIndex(").rstrip(";\n)"))["dictionaries"]
    assert told["own"] == place and [one["folder"] for one in told["all"]] == list(folders)
    direction_FO = monojax.load(workdir, name).sae.direction_FO
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    for other, of in (pair for pair in zip(folders, ("sae", "four", member), strict=True) if pair[0] != place):
      cosine_FF = unit(direction_FO) @ unit(monojax.load(workdir, of).sae.direction_FO).T
      alive_F, other_alive_F = (monojax.load(workdir, one).features.n_fires_F > 0 for one in (name, of))
      best_F = np.where(other_alive_F[None], cosine_FF, -2).argmax(1)
      assert told["matches"][other][0] == np.where(alive_F, best_F, -1).tolist()
      np.testing.assert_allclose(told["matches"][other][1],
                                 np.where(alive_F, cosine_FF[np.arange(64), best_F], 0), atol=1e-3)
  beside = ("sweeps", "dictionaries", "pages")
  assert {name: digest for name, digest in contents(workdir).items() if not name.startswith(beside)} == before


def analysed(workdir, dictionary, pages):
  """Makes the tables of one of a run's dictionaries, and its pages if they are wanted."""
  for script in ("analyze", "build_browser") if pages else ("analyze",):
    result = run(script, workdir, f"--dictionary={dictionary}")
    assert result.returncode == 0, result.stderr[-3000:]


# Prints the help of each script that is named, in a process of its own which has loaded what they share.
HELP = """
import os, runpy, sys
import monojax.commands
for script in sys.argv[1:]:
  print("HELP OF", script, flush=True)
  if not os.fork():
    sys.argv = [script, "--help"]
    runpy.run_path(script, run_name="__main__")
  os.wait()
"""


def test_every_script_explains_itself():
  scripts = [str(path) for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text()]
  assert len(scripts) >= 11
  result = subprocess.run([sys.executable, "-c", HELP, *scripts], capture_output=True, text=True, timeout=120)
  helps = dict(part.split("\n", 1) for part in result.stdout.split("HELP OF ")[1:])
  assert sorted(helps) == scripts, result.stderr
  for script, text in helps.items():
    assert "python experiments/" in text and "--" in text, (script, text, result.stderr)
  alone = subprocess.run([sys.executable, scripts[0], "--help"], capture_output=True, text=True, timeout=60)
  assert alone.stdout == helps[scripts[0]]


def test_a_stream_does_as_well_as_a_store(finished, streamed):
  stored, found = (json.loads((workdir / "summary.json").read_text()) for workdir in (finished[0], streamed))
  assert not (streamed / "activations" / "sites").exists()
  assert 0 <= stored["activations/rows"] - found["activations/rows"] < 8 * 32  # fewer than 8 contexts are left out
  for name, tolerance in (("activations/mean_norm", 0.01), ("sae/explained_variance", 0.03),
                          ("sae/ce_recovered_zero", 0.05), ("sae/l0", 1.0)):
    assert found[name] == pytest.approx(stored[name], abs=tolerance), name
  assert monojax.load(streamed).mean_O == pytest.approx(monojax.load(finished[0]).mean_O, abs=0.02)


@pytest.mark.slow
def test_transcoders_and_crosscoders_read_the_sites_that_are_stored(finished, tmp_path):
  """Several sites in one store; a transcoder of the MLP, and a crosscoder of two sites."""
  workdir = tmp_path / "run"
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, workdir / stage)
  more = "--activations.more_sites=layer.0.mlp.in,layer.0.mlp.out,layer.0.resid"
  result = run("harvest", workdir, *tiny("activations"), more)
  assert result.returncode == 0, result.stderr[-3000:]
  for name, wiring in (("transcoder", ("--sae.reads=layer.0.mlp.in", "--sae.writes=layer.0.mlp.out")),
                       ("crosscoder", ("--sae.reads=layer.0.mlp.out,layer.0.resid",))):
    result = run("train_sae", workdir, *tiny("sae"), f"--name={name}", "--sae.recipe=topk", "--sae.k=8", *wiring)
    assert result.returncode == 0, result.stderr[-3000:]
    scores = {key.removeprefix("sae/"): value for key, value in
              RunFolder(workdir).stage(f"dictionaries/{name}")["figures"].items()}
    assert 0 < scores["l0"] <= 8 and scores["explained_variance"] > 0.1, (name, scores)
    loaded = monojax.load(workdir, name)
    assert loaded.encode("the").f_TF.shape[1] == 64
    assert loaded.writes == (("layer.0.mlp.out",) if name == "transcoder" else loaded.reads)
    analysed(workdir, name, pages=name == "transcoder")
    assert loaded.features.has("top_logit_ids_FK")
    assert loaded.features.has("encoder_decoder_cosine_F") == (name == "crosscoder")
  result = run("train_sae", workdir, *tiny("sae"), "--name=missing", "--sae.reads=layer.0.attn.out")
  assert result.returncode == 2 and "layer.0.attn.out" in result.stderr and "layer.0.mlp.in" in result.stderr
