"""The library: a dictionary from one's own activations in one call, and what a loaded run can be asked."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run, tiny

import monojax
from monojax import InputError
from monojax.analysis.recovery import cosines
from monojax.pipeline.folder import RunFolder

QUICK = {"n_steps": 60, "batch_rows": 128, "start_rows": 512}


def planted(n_rows=4000, width=16, n_features=24, n_active=2, seed=0):
  """(x_NM, direction_FM): rows that are sums of a few random directions with random strengths."""
  rng = np.random.default_rng(seed)
  direction_FM = rng.standard_normal((n_features, width))
  direction_FM /= np.linalg.norm(direction_FM, axis=1, keepdims=True)
  strength_NF = rng.uniform(0.3, 1, (n_rows, n_features)) * (rng.random((n_rows, n_features)) < n_active / n_features)
  return (strength_NF @ direction_FM).astype(np.float32), direction_FM


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(rows, planted directions, the SAE that finds them, its workdir)."""
  x_NM, direction_FM = planted()
  workdir = tmp_path_factory.mktemp("mine") / "run"
  sae = monojax.train(x_NM, "batchtopk", n_features=48, k=2, workdir=workdir, n_steps=600, batch_rows=512,
                      learning_rate=1e-2)
  return x_NM, direction_FM, sae, workdir


def test_it_finds_what_was_planted(trained):
  x_NM, direction_FM, sae, _ = trained
  assert (cosines(sae.params["W_dec_FO"], direction_FM).max(0) > 0.9).mean() >= 0.95
  held_out = planted(1000, seed=1)[0] @ np.zeros((16, 16)) + x_NM[:1000]
  assert sae.metrics(held_out)["explained_variance"] > 0.85


def test_metrics_are_what_numpy_says(trained):
  x_NM, _, sae, _ = trained
  f_NF = sae.encode(x_NM)
  y_NM = sae.decode(f_NF)
  assert isinstance(f_NF, np.ndarray) and f_NF.shape == (4000, 48) and y_NM.shape == x_NM.shape
  found = sae.metrics(x_NM)
  x, y = x_NM.astype(np.float64), y_NM.astype(np.float64)
  np.testing.assert_allclose(found["l0"], (f_NF > 0).sum(1).mean())
  np.testing.assert_allclose(found["density_F"], (f_NF > 0).mean(0))
  np.testing.assert_allclose(found["mse"], np.square(x - y).mean(), rtol=1e-6)
  np.testing.assert_allclose(found["explained_variance"], 1 - np.square(x - y).sum() / np.square(x - x.mean(0)).sum())
  assert found["dead_fraction"] == np.mean(~(f_NF > 0).any(0)) and found["n_rows"] == 4000


def test_chunks_and_libraries_agree(trained):
  x_NM, _, sae, _ = trained
  long_NM = np.tile(x_NM, (5, 1))  # more than two chunks, the last of which is filled up
  np.testing.assert_allclose(sae.encode(long_NM)[-4000:], sae.encode(x_NM), atol=1e-6)
  on_device = sae.encode(jnp.asarray(x_NM[:10]))
  assert isinstance(on_device, jax.Array)
  np.testing.assert_allclose(on_device, sae.encode(x_NM[:10]), atol=1e-6)
  gradient = jax.grad(lambda x_NM: sae.decode(sae.encode(x_NM)).sum())(jnp.asarray(x_NM[:3]))
  assert np.abs(gradient).max() > 0
  with pytest.raises(InputError, match=r"x.shape.*rows of 16 numbers"):
    sae.encode(x_NM[:, :5])


def test_a_saved_dictionary_is_the_same_and_can_be_replaced(trained, tmp_path):
  x_NM, _, sae, _ = trained
  sae.save(tmp_path / "mine")
  again = monojax.SAE.load(tmp_path / "mine")
  np.testing.assert_array_equal(again.encode(x_NM), sae.encode(x_NM))
  assert again.config == sae.config and again.sites == sae.sites
  other = monojax.train(x_NM, "topk", n_features=32, k=3, **QUICK)
  other.save(tmp_path / "mine")
  assert monojax.SAE.load(tmp_path / "mine").config.recipe == "topk"


def test_the_same_call_returns_at_once_and_another_is_refused(trained, capsys):
  x_NM, _, sae, workdir = trained
  settings = {"n_steps": 600, "batch_rows": 512, "learning_rate": 1e-2, "workdir": workdir}
  again = monojax.train(x_NM, "batchtopk", n_features=48, k=2, **settings)
  np.testing.assert_array_equal(again.params["W_enc_MF"], sae.params["W_enc_MF"])
  assert "sae: already done" in capsys.readouterr().out
  with pytest.raises(InputError, match="config.k: 2 -> 4"):
    monojax.train(x_NM, "batchtopk", n_features=48, k=4, **settings)
  with pytest.raises(InputError, match="inputs.rows"):
    monojax.train(x_NM + 1, "batchtopk", n_features=48, k=2, **settings)
  loaded = monojax.load(workdir)
  np.testing.assert_array_equal(loaded.sae.encode(x_NM[:5]), sae.encode(x_NM[:5]))
  with pytest.raises(InputError, match="subject"):
    loaded.encode("text")


def test_it_can_be_extended_and_started_from(trained, tmp_path):
  x_NM, _, _, _ = trained
  first = monojax.train(x_NM, "topk", n_features=32, k=3, workdir=tmp_path / "run", **QUICK)
  longer = {**QUICK, "n_steps": 120}
  with pytest.raises(InputError, match="n_steps: 60 -> 120"):
    monojax.train(x_NM, "topk", n_features=32, k=3, workdir=tmp_path / "run", **longer)
  more = monojax.train(x_NM, "topk", n_features=32, k=3, workdir=tmp_path / "run", extend=True, **longer)
  assert more.metrics(x_NM)["explained_variance"] > first.metrics(x_NM)["explained_variance"]
  steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "sae" / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(set(steps)) and steps[-1] == 120
  begun = monojax.train(x_NM, "batchtopk", n_features=32, k=3, start_from=str(tmp_path / "run" / "sae" / "dictionary"),
                        **{**QUICK, "n_steps": 1, "learning_rate": 1e-12, "warmup_steps": 0})
  np.testing.assert_allclose(begun.params["W_dec_FO"], more.params["W_dec_FO"], atol=1e-5)


def test_files_and_stores_train_the_same_as_the_array(trained, tmp_path):
  x_NM, _, _, _ = trained
  np.save(tmp_path / "x.npy", x_NM)
  from_array = monojax.train(x_NM, "topk", n_features=32, k=3, **QUICK)
  from_file = monojax.train(tmp_path / "x.npy", "topk", n_features=32, k=3, **QUICK)
  np.testing.assert_array_equal(from_array.params["W_dec_FO"], from_file.params["W_dec_FO"])


def test_wrong_settings_are_named(trained):
  x_NM = trained[0]
  with pytest.raises(InputError, match="no setting n_feature;"):
    monojax.train(x_NM, n_feature=3)
  with pytest.raises(InputError, match="recipe='topkk'.*batchtopk"):
    monojax.train(x_NM, "topkk")


@pytest.fixture(scope="module")
def own_store(tmp_path_factory):
  """A store that a loop around a model wrote: rows that depend on their token alone, of two kinds of documents."""
  rng = np.random.default_rng(0)
  table_VM = np.abs(rng.standard_normal((20, 16))).astype(np.float32) * (rng.random((20, 16)) < 0.3)
  path = tmp_path_factory.mktemp("own") / "acts"
  with monojax.StoreWriter(path, widths={"mine": 16}, dtype="float32", shard_rows=512, chunk_rows=64,
                           token_strings=[f"tok{i}" for i in range(20)], domains=("low", "high")) as writer:
    for document in range(40):
      tokens = rng.integers(0, 10, 50) + 10 * (document % 4 > 1)
      writer.add({"mine": table_VM[tokens]}, tokens=tokens, documents=np.full(50, document),
                 positions=np.arange(50), domains=np.full(50, int(document % 4 > 1)))
  return path


def test_a_store_of_ones_own_is_trained_on_analysed_and_browsed_without_a_subject(own_store, tmp_path):
  workdir = tmp_path / "run"
  flags = [f"--activations.url={own_store}", "--sae.recipe=topk", "--sae.k=3", "--sae.n_features=32",
           "--sae.n_steps=200", "--sae.batch_rows=128", "--sae.buffer_rows=512", "--sae.start_rows=512"]
  result = run("train_sae", workdir, *flags)
  assert result.returncode == 0, result.stderr[-3000:]
  assert "cross-entropy recovered needs the subject" in result.stdout and "sae/l0" in result.stdout
  result = run("train_sae", workdir, *flags)
  assert result.returncode == 0 and result.stdout.count("already done") == 2
  longer = [flag for flag in flags if "n_steps" not in flag] + ["--sae.n_steps=220"]
  result = run("train_sae", workdir, *longer)
  assert result.returncode == 2 and "n_steps: 200 -> 220" in result.stderr
  result = run("train_sae", workdir, "--extend", "--sae.k=4", "--sae.n_steps=220")
  assert result.returncode == 2 and "k: 3 -> 4" in result.stderr and "--sae.start_from" in result.stderr
  result = run("train_sae", workdir, "--extend", "--sae.n_steps=220")  # all other settings are the run's own
  assert result.returncode == 0, result.stderr[-3000:]
  assert re.search(r"sae/rows_seen +28,160\n", result.stdout)
  for script, more in (("analyze", ["--analysis.n_tokens=0", "--analysis.detectors=Low=low,High=high"]),
                       ("build_browser", [])):
    result = run(script, workdir, *more)
    assert result.returncode == 0, result.stderr[-3000:]
  assert (workdir / "browser" / "site" / "index.html").exists()
  loaded = monojax.load(workdir)
  tables = loaded.features
  assert not tables.has("top_logit_ids_FK") and tables.domains == ["low", "high"]
  feature = int(tables.n_fires_F.argmax())
  examples = loaded.examples(feature, 5)
  assert len(examples) == 5 and all(token.startswith("tok") for token in examples[0].tokens)
  # An example's neighbours are those of the document, and activations what the dictionary gives for them.
  from monojax.activations.store import ActivationStore
  store = ActivationStore.open(own_store)
  places_N4, f_NF = store.places(0, 2000), loaded.sae.encode(store.rows(0, 2000))
  where = {(int(document), int(position)): i for i, (_, document, position, _) in enumerate(places_N4)}
  np.testing.assert_allclose(tables.density_F, (f_NF > 0).mean(0), rtol=1e-6)
  fires_F = tables.n_fires_F > 0
  r = np.corrcoef(f_NF[:, fires_F], store.rows(0, 2000), rowvar=False)[:fires_F.sum(), fires_F.sum():]
  np.testing.assert_allclose(np.abs(tables.best_neuron_correlation_F[fires_F]), np.abs(r).max(1), atol=1e-4)
  tokens, acts, _, document, *_ = examples[0]
  ids = [int(token.removeprefix("tok")) for token in tokens]
  starts = [s for s in range(50 - len(ids) + 1)
            if [int(places_N4[where[document, s + j], 0]) for j in range(len(ids))] == ids]
  assert any(np.allclose([f_NF[where[document, s + j], feature] for j in range(len(ids))], acts, atol=1e-5)
             for s in starts)
  rows = {row["class"]: row for row in tables.summary["detectors"]}
  assert set(rows) == {"Low", "High"} and rows["Low"]["neuron_sign"] in (1, -1)


@pytest.fixture(scope="module")
def loaded(finished):
  return monojax.load(finished[0])


TEXT = "In the beginning God created the heaven and the earth."


def test_examples_of_whole_characters_read_like_the_text(loaded):
  """The tiny run's tokenizer has few tokens but single bytes for most scripts."""
  tables, token_bytes = loaded.features, loaded.tokenizer.token_bytes
  assert tables.partial_tokens == tables.token_bytes == loaded.tokenizer.partial_tokens()
  joined = 0
  for feature in np.flatnonzero(tables.n_fires_F).tolist():
    for plain, whole, ids_W in zip(loaded.examples(feature), loaded.examples(feature, whole_characters=True),
                                   tables.example_tokens_FEW[feature], strict=False):
      text = b"".join(token_bytes(int(token)) for token in ids_W if token >= 0).decode(errors="backslashreplace")
      assert "".join(whole.tokens) == text and plain[2:4] == whole[2:4]
      assert len(whole.tokens) == len(whole.activations) <= len(plain.tokens) == len(plain.activations)
      assert max(whole.activations) == max(plain.activations)
      joined += len(plain.tokens) - len(whole.tokens)
  assert joined > 0


def test_a_loaded_run_keeps_device_arrays_that_jit_takes(loaded):
  """Version 0.1 kept NumPy arrays, which a traced index breaks."""
  model, params = loaded.subject, loaded.subject_params
  logits = jax.jit(lambda tokens_BT: model.apply({"params": params}, tokens_BT)[0])(jnp.zeros((1, 4), jnp.int32))
  assert logits.shape == (1, 4, 448)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_top_features_and_examples(loaded):
  tokens, f_TF = loaded.encode(TEXT)
  found = loaded.top_features(TEXT, token=3, n=4)
  expected = sorted(((value, -i) for i, value in enumerate(f_TF[3]) if value > 0), reverse=True)[:4]
  assert [(one.activation, -one.feature) for one in found] == [(pytest.approx(v), i) for v, i in expected]
  with pytest.raises(InputError, match="token=99"):
    loaded.top_features(TEXT, token=99)
  feature = int(loaded.features.max_act_F.argmax())
  first = loaded.examples(feature, 1)[0]
  assert max(first.activations) == pytest.approx(loaded.features.max_act_F[feature], rel=1e-5)
  assert len(loaded.examples(feature, 3, "Bottom activations")) == 3
  with pytest.raises(InputError, match="feature=64"):
    loaded.examples(64)
  with pytest.raises(InputError, match="Interval 11"):
    loaded.examples(feature, group="Interval 11")


def by_hand(loaded, change):
  """Losses of TEXT's tokens with the MLP's activations x replaced by `change(x, f)`, step by step in NumPy."""
  ids = np.array([loaded.token_ids(TEXT)])
  site = loaded.reads[0]
  _, sites = loaded.subject.apply({"params": loaded.subject_params}, ids)
  x_TM = np.asarray(sites[site])[0]
  y_TM = change(x_TM, np.asarray(loaded.encode(TEXT).f_TF))
  logits, _ = loaded.subject.apply({"params": loaded.subject_params}, ids,
                                   {site: lambda x: jnp.asarray(y_TM, jnp.float32)[None]})
  z_TV = np.asarray(logits, np.float64)[0, :-1]
  log_p = z_TV - np.log(np.exp(z_TV).sum(-1, keepdims=True))
  return -log_p[np.arange(len(log_p)), ids[0, 1:]]


def test_splice_and_ablate_are_what_the_definitions_say(loaded):
  p = {name: np.asarray(value) for name, value in loaded.sae.params.items()}
  found = loaded.splice(TEXT)
  np.testing.assert_allclose(found.clean_T, by_hand(loaded, lambda x, f: x), atol=1e-4)
  np.testing.assert_allclose(found.spliced_T, by_hand(loaded, lambda x, f: f @ p["W_dec_FO"] + p["b_dec_O"]), atol=1e-4)
  np.testing.assert_allclose(found.ablated_T, by_hand(loaded, lambda x, f: np.broadcast_to(loaded.mean_O, x.shape)),
                             atol=1e-4)
  feature = int(loaded.encode(TEXT).f_TF.sum(0).argmax())
  ablated = loaded.ablate(TEXT, feature)
  without = by_hand(loaded, lambda x, f: x - f[:, feature, None] * p["W_dec_FO"][feature][None])
  np.testing.assert_allclose(ablated.effect_T, without - found.clean_T, atol=2e-4)
  np.testing.assert_allclose(ablated.activation_T, loaded.encode(TEXT).f_TF[:, feature])


def test_steering_holds_features_at_their_values(loaded):
  """A feature whose direction raises a token above all others makes the subject write that token."""
  tables = loaded.features
  readable_F = ~np.isin(tables.top_logit_ids_FK[:, 0], list(tables.partial_tokens))  # no bytes of a character
  feature = int(np.where(readable_F, tables.top_logit_values_FK[:, 0], -np.inf).argmax())
  token = tables.token_strings[int(tables.top_logit_ids_FK[feature, 0])]
  steered = loaded.steer("the", {feature: 1000.0}, n_tokens=8, temperature=0.1)
  assert steered.startswith("the") and token in steered.removeprefix("the")
  plain = loaded.steer("the", {}, n_tokens=8)
  assert plain == loaded.steer("the", {}, n_tokens=8) != loaded.steer("the", {}, n_tokens=8, seed=1)


@pytest.mark.parametrize("site", ["layer.0.resid", pytest.param("layer.0.mlp.in", marks=pytest.mark.slow)])
def test_sites_of_all_kinds_can_be_decomposed(finished, tmp_path, site):
  """A residual stream, whose numbers are of both signs; and a LayerNorm's output, from which nothing reaches logits."""
  for stage in ("tokens", "subject"):
    shutil.copytree(finished[0] / stage, tmp_path / stage)
  result = run("monosemanticity", tmp_path, *tiny("activations", "sae", "analysis"), f"--activations.site={site}",
               "--sae.n_steps=30", "--sae.resample_every_steps=0", "--frontier.sparsities=")
  assert result.returncode == 0, result.stderr[-3000:]
  tables = monojax.load(tmp_path).features
  assert tables.has("top_logit_ids_FK") == (site == "layer.0.resid")
  assert all(row["neuron_sign"] in (1, -1) and 0 <= row["neuron"] < 32 for row in tables.summary["detectors"])
  assert RunFolder(tmp_path).stage("browser")
