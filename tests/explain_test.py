"""Labels of a run: the analysis' own, the command with its controls, and a language model's, which is a stub here."""

import csv
import json
import shutil

import chat_stub
import numpy as np
import pytest
from tiny_run import run

import monojax
from monojax.activations.config import HarvestConfig
from monojax.analysis import chosen_codes, logit_tests
from monojax.analysis.config import ExplainConfig
from monojax.analysis.tables import FeatureTables
from monojax.config import InputError
from monojax.pipeline import load, stages
from monojax.pipeline.folder import RunFolder

QUICK = {"n_tokens": 8000, "n_compared": 6}


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("explained") / "mine"
  shutil.copytree(finished[0], workdir)
  return workdir


@pytest.fixture(scope="module")
def reader(finished):
  folder = RunFolder(finished[0])
  return chosen_codes.Reader(load.load_subject(folder), load.load_sae(folder), load.open_tokens(folder, "train"))


def test_the_analysis_of_a_run_has_labels_and_their_scores(finished):
  run = monojax.load(finished[0])
  tables = run.features
  alive_F = tables.n_fires_F > 0
  assert len(tables.labels) == 64 and all(np.array([bool(text) for text in tables.labels]) <= alive_F)
  assert tables.label_score_F.dtype == np.float32 and np.isfinite(tables.label_score_F).sum() > 30
  told, scored = tables.summary["labels"], tables.label_score_F[np.isfinite(tables.label_score_F)]
  assert told["scored"] == len(scored) and told["score"][0] == pytest.approx(np.median(scored), abs=1e-6)
  assert tables.summary["figures"]["label_score_median"] == told["score"][0] > 0.2
  feature = int(np.nanargmax(tables.label_score_F))
  assert run.label(feature)[:2] == (tables.labels[feature], tables.label_score_F[feature])
  with pytest.raises(InputError, match="the features 0 to 63"):
    run.label(64)


def test_labels_are_saved_and_tables_without_them_load(finished, tmp_path):
  tables = monojax.load(finished[0]).features
  tables.save(tmp_path)
  loaded = FeatureTables.load(tmp_path)
  assert loaded.labels == tables.labels
  np.testing.assert_array_equal(loaded.label_score_F, tables.label_score_F)
  for wrong in (["one"], "text", [3] * 64):
    with pytest.raises(InputError, match="labels"):
      FeatureTables(tables.columns, tables.token_strings, tables.domains, tables.summary, labels=wrong)


def test_the_command_compares_with_neurons_and_random_directions(workdir):
  result = run("explain", workdir, "--n_tokens=8000", "--n_compared=6", "--n_labelled=20")
  assert result.returncode == 0, result.stderr[-3000:]
  home = workdir / "labels" / "rules"
  rows, record = json.loads((home / "labels.json").read_text()), json.loads((home / "comparison.json").read_text())
  assert 20 <= len(rows) <= 26 and len(list(csv.reader((home / "labels.csv").open()))) == len(rows) + 1
  for name, shown in (("features", "features"), ("neurons", "neurons"), ("random", "random directions")):
    group = record["groups"][name]
    assert group["features"] == 6 and shown in result.stdout
    median, low, high = group["score"]
    assert 0.2 < group["logits"][0] < 1 and -1 <= low <= median <= high <= 1
    assert f"{median:.3f} [{low:.3f}, {high:.3f}]" in result.stdout
  loaded = monojax.load(workdir)
  row = next(row for row in rows if row["score"] is not None)
  assert loaded.label(row["feature"], by="rules")[:2] == (row["label"], row["score"])
  unlabelled = next(i for i in range(64) if i not in {row["feature"] for row in rows})
  assert loaded.label(unlabelled, by="rules").text == "" and np.isnan(loaded.label(unlabelled, by="rules").score)
  with pytest.raises(InputError, match="by='gpt': the dictionary has no such labels .there are rules"):
    loaded.label(0, by="gpt")


def test_a_language_model_labels_the_features_that_are_compared(workdir, capsys):
  stub = chat_stub.Server(chat_stub.model)
  with chat_stub.serving(stub) as url:
    found = stages.explain(RunFolder(workdir), ExplainConfig(url=url, model="a/stub", **QUICK))
  assert found["features"]["features"] == 6 and found["features"]["scored"] == 6
  rows = json.loads((workdir / "labels" / "a_stub" / "labels.json").read_text())
  assert len(rows) == 6 and all(row["label"].startswith("the token") for row in rows)
  assert len(stub.requests) == 1 + 3 * sum(group["features"] for group in found.values())
  assert monojax.load(workdir).label(rows[0]["feature"], by="a/stub").text == rows[0]["label"]
  assert "a_stub" in capsys.readouterr().out


def test_tokens_that_are_put_up_are_those_behind_the_ten_that_are_raised_most(reader, finished):
  tables, direction_FO = monojax.load(finished[0]).features, reader.sae.direction_FO
  made = logit_tests.put_up(direction_FO[[3, 5]], [3, 5], reader.subject, reader.sae, reader.tokens, seed=0)
  params = reader.subject.params
  for feature, tokens in made.items():
    # By hand: the subject of the tiny run has one layer, whose MLP writes to the residual stream before a LayerNorm.
    residual_D = direction_FO[feature] @ np.asarray(params["layer_0"]["W_out_MD"])
    gain_D = np.asarray(reader.subject.model.logit_path(params, reader.sae.writes[0]).gain_D)
    logit_V = (residual_D - residual_D.mean()) * gain_D @ np.asarray(params["W_unembed_DV"])
    raised, others = (set(tokens.token_K[tokens.raised_K == side].tolist()) for side in (True, False))
    assert len(raised) == len(others) == 50 and not raised & others
    assert not (raised | others) & set(tables.top_logit_ids_FK[feature].tolist())
    assert min(logit_V[list(raised)]) > max(logit_V[list(others)])
    assert min(logit_V[tables.top_logit_ids_FK[feature]]) >= max(logit_V[list(raised)])
  assert made[3].token_K.tolist() != made[5].token_K.tolist()


def test_a_server_that_is_not_there_is_named_before_any_work(finished, monkeypatch):
  monkeypatch.setattr(load, "load_subject", None)  # which would be the first long work
  with pytest.raises(InputError, match="--url='http://127.0.0.1:9/v1': cannot be reached .*: start the server"):
    stages.explain(RunFolder(finished[0]), ExplainConfig(url="http://127.0.0.1:9/v1", model="x"))


def test_neurons_and_random_directions_fire_as_they_should(reader):
  context_C = reader.tokens.choose(reader.subject.n_context, 4000, 0)
  x_NM = np.concatenate([np.asarray(reader.encode(tokens_BT)[1])[:n_used]
                         for tokens_BT, n_used in reader.batches(context_C)])
  numbers = [3, 48 + 3, 7]
  columns, direction_JM = chosen_codes.neurons_of(numbers, 48)
  codes = reader.codes(context_C, columns, "neurons")
  assert [(j, int(m), value) for j, m in zip(range(3), np.abs(direction_JM).argmax(1), strict=True)
          for value in [direction_JM[j].sum()]] == [(0, 3, 1), (1, 3, -1), (2, 7, 1)]
  for j, expected_N in enumerate((np.maximum(x_NM[:, 3], 0), np.maximum(-x_NM[:, 3], 0), np.maximum(x_NM[:, 7], 0))):
    row_P, value_P = codes.feature(j)
    np.testing.assert_array_equal(row_P, np.flatnonzero(expected_N))
    np.testing.assert_allclose(value_P, expected_N[row_P])
  density_J = np.array([0.0, 0.01, 0.2, 0.9])
  codes = reader.codes(context_C, chosen_codes.random_directions(reader, context_C, density_J, 0)[0], "random")
  np.testing.assert_allclose(np.diff(codes.start_F) / len(x_NM), density_J, atol=0.003)


def test_proxies_of_many_tokens_are_those_of_the_analysis(reader, finished):
  """In memory that does not grow with the text, and with the contexts in another order."""
  tables = monojax.load(finished[0]).features
  rows, asked = chosen_codes.measured_proxies(reader, tables.token_strings, 20_000)
  before = tables.summary["proxies"]
  assert len(rows) > 15
  for row, other in zip(rows, before, strict=True):
    for name in ("proxy", "kind", "tokens", "feature", "neuron"):
      assert row[name] == other[name]
    assert row["pearson"] == pytest.approx(other["pearson"], abs=1e-4)
    assert [bin["tokens"] for bin in row["bins"]] == [bin["tokens"] for bin in other["bins"]]
  assert "Thai" in asked.left_out


def test_a_run_without_a_subject_is_refused(finished, monkeypatch):
  monkeypatch.setattr(load, "activations_config", lambda run: HarvestConfig(source="given", url="x"))
  with pytest.raises(InputError, match="has no subject: `monojax analyze` labels its features"):
    stages.explain(RunFolder(finished[0]), ExplainConfig())
