"""Two dictionaries compared: tables of similarities by hand, planted matches, effects by brute force, the commands."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run, tiny

import monojax
from monojax.activations.kept import Kept
from monojax.analysis import comparison, matching
from monojax.analysis.codes import Codes
from monojax.analysis.config import CompareConfig
from monojax.config import InputError
from monojax.pipeline import stages
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.subjects.config import TransformerConfig
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer
from monojax.text.tokens import Tokens

SITE = "layer.0.mlp.hidden"


def codes_of(f_NF, n_rows=None):
  """The sparse activations of a dense array, a column for each feature."""
  rows = [np.flatnonzero(f_N) for f_N in f_NF.T]
  return Codes(n_rows or len(f_NF), np.concatenate([[0], np.cumsum([len(row_P) for row_P in rows])]),
               np.concatenate(rows).astype(np.int32),
               np.concatenate([f_N[row_P] for f_N, row_P in zip(f_NF.T, rows, strict=True)]).astype(np.float32))


def sparse(n_rows, n_features, seed):
  """Activations of which a tenth is not 0; the last feature never fires."""
  rng = np.random.default_rng(seed)
  f_NF = rng.exponential(size=(n_rows, n_features)) * (rng.random((n_rows, n_features)) < 0.1)
  f_NF[:, -1] = 0
  return f_NF.astype(np.float32)


def table(blocks):
  """All rows of a table of similarities, which come in order."""
  parts = list(blocks)
  assert [first for first, _ in parts] == np.cumsum([0] + [len(part) for _, part in parts[:-1]]).tolist()
  return np.concatenate([part for _, part in parts])


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(matching, "_BLOCK_NUMBERS", 100)


def test_correlations_are_numpys(small_blocks):
  a_NF, b_NF = sparse(400, 23, 0), sparse(400, 31, 1)
  b_NF[:, 3] = 2 * a_NF[:, 5]
  a_NF[:, 7], b_NF[:, [7, 8]] = 0.1, (0.7, 1 / 3)  # of constants none is defined, whatever rounding leaves of them
  found = table(matching.correlation_blocks(codes_of(a_NF), codes_of(b_NF)))
  with np.errstate(invalid="ignore"):
    expected = np.corrcoef(a_NF.T.astype(np.float64), b_NF.T.astype(np.float64))[:23, 23:]
  expected[7], expected[:, [7, 8]] = np.nan, np.nan
  assert np.isnan(found[-1]).all() and np.isnan(found[:, -1]).all() and found[5, 3] == pytest.approx(1)
  np.testing.assert_allclose(found, expected, atol=1e-9)


def test_rows_on_which_nothing_may_fire_count_only_if_they_are_told_to():
  """Of 400 rows 300 count: features are 0 on the others, which do not enter the means."""
  a_NF, b_NF = sparse(400, 4, 0), sparse(400, 5, 1)
  a_NF[::4], b_NF[::4] = 0, 0
  found = table(matching.correlation_blocks(codes_of(a_NF, 300), codes_of(b_NF, 300)))
  counts_N = np.arange(400) % 4 > 0
  expected = np.corrcoef(a_NF[counts_N, :3].T, b_NF[counts_N, :4].T)[:3, 3:]
  np.testing.assert_allclose(found[:3, :4], expected, atol=1e-6)


def test_masked_cosine_is_the_loops(small_blocks):
  a_NF, b_NF = sparse(300, 9, 2), sparse(300, 12, 3)
  b_NF[:, 0] = a_NF[:, 1] * (np.arange(300) < 150)  # a part of what feature 1 fires on
  found = table(matching.masked_cosine_blocks(codes_of(a_NF), codes_of(b_NF)))
  for i in range(8):
    for j in range(11):
      cosines = []
      for mask_N in (a_NF[:, i] > 0, b_NF[:, j] > 0):
        x_N, y_N = a_NF[mask_N, i].astype(np.float64), b_NF[mask_N, j].astype(np.float64)
        length = np.linalg.norm(x_N) * np.linalg.norm(y_N)
        cosines.append(x_N @ y_N / length if length else 0.0)
      assert found[i, j] == pytest.approx(max(cosines), abs=1e-6), (i, j)
  assert found[1, 0] == pytest.approx(1) and np.isnan(found[-1]).all() and np.isnan(found[:, -1]).all()


def test_correlations_of_neurons_are_numpys_whatever_their_mean():
  rng = np.random.default_rng(0)
  a_NM = (rng.normal(size=(4, 200, 6)) + 3000).astype(np.float32)
  b_NM = (rng.normal(size=(4, 200, 5)) - a_NM[..., :5]).astype(np.float32)
  a_NM[..., -1] = 0.1  # a constant
  counts_N = rng.random((4, 200)) < 0.8
  found = matching.dense_correlation(map(jnp.asarray, batch) for batch in zip(a_NM, b_NM, counts_N, strict=True))
  expected = np.corrcoef(a_NM[counts_N].T.astype(np.float64)[:5], b_NM[counts_N].T.astype(np.float64))[:5, 5:]
  np.testing.assert_allclose(found[:5], expected, atol=1e-4)
  assert np.isnan(found[5]).all()


def test_a_permuted_and_noised_dictionary_is_matched_back(small_blocks):
  rng = np.random.default_rng(0)
  a_FO = rng.normal(size=(60, 40))
  order_F = rng.permutation(60)[:50]
  own_FO = rng.normal(size=(20, 40))
  b_FO = np.concatenate([a_FO[order_F] * rng.uniform(0.5, 2, (50, 1)) + 0.1 * rng.normal(size=(50, 40)), own_FO])
  use_a_F, use_b_F = np.ones(60, bool), np.ones(70, bool)
  use_a_F[order_F[0]] = False  # a feature that never fires, say
  found = matching.matched(matching.cosine_blocks(a_FO, b_FO), use_a_F, use_b_F, edges_above=0.9)
  assert found.best_a_F[order_F[1:50]].tolist() == list(range(1, 50))
  assert found.best_b_F[1:50].tolist() == order_F[1:].tolist()
  assert found.best_a_F[order_F[0]] == -1 and np.isnan(found.value_a_F[order_F[0]])
  figures = found.figures(0.9)
  assert (figures["shared_a"], figures["own_a"], figures["shared_b"], figures["own_b"]) == (49, 10, 49, 21)
  # The means by hand, of the whole table at once.
  unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  cosine_FF = (unit(a_FO) @ unit(b_FO).T)[use_a_F]
  assert figures["mean_a"] == pytest.approx(cosine_FF.max(1).mean(), abs=1e-5)
  assert figures["median_b"] == pytest.approx(np.median(cosine_FF.max(0)), abs=1e-5)
  planted = {(int(i), j) for j, i in enumerate(order_F) if j}
  assert set(map(tuple, found.edges_P2.tolist())) == planted
  pairs_P2, value_P = matching.one_to_one(matching.cosine_blocks(a_FO, b_FO), use_a_F, use_b_F)
  assert len(pairs_P2) == 59 == len(np.unique(pairs_P2[:, 0])) == len(np.unique(pairs_P2[:, 1]))
  assert planted <= set(map(tuple, pairs_P2.tolist())) and (value_P > 0.9).sum() == 49
  assert planted <= set(map(tuple, found.mutual().tolist()))


def test_one_to_one_gives_up_a_best_match_where_the_sum_gains():
  similarity_FF = np.array([[0.9, 0.8], [0.85, 0.1], [np.nan, np.nan]])
  everyone = np.ones(3, bool), np.ones(2, bool)
  pairs_P2, value_P = matching.one_to_one(matching.table_blocks(similarity_FF), *everyone)
  assert pairs_P2.tolist() == [[0, 1], [1, 0]] and value_P == pytest.approx([0.8, 0.85])
  found = matching.matched(matching.table_blocks(similarity_FF), *everyone)
  assert found.best_a_F.tolist() == [0, 0, -1] and found.mutual().tolist() == [[0, 0]]


def test_nothing_to_match_is_no_error():
  found = matching.matched(matching.table_blocks(np.full((2, 3), np.nan)), np.ones(2, bool), np.ones(3, bool), 0.4)
  assert found.figures(0.7) == {"mean_a": None, "median_a": None, "shared_a": 0, "own_a": 0,
                                "mean_b": None, "median_b": None, "shared_b": 0, "own_b": 0}
  assert matching.one_to_one(matching.table_blocks(np.zeros((2, 3))), np.zeros(2, bool), np.ones(3, bool))[1].size == 0


def dictionary(width, n_features, seed, order_F=None, sites=(SITE,)):
  """An SAE with random weights; `order_F` permutes its features."""
  config = SAEConfig(recipe="tm2023", n_features=n_features).resolved()
  model = make_recipe(config, Wiring((width,), (0,), (0,)), jnp.float32).model
  params = model.init(jax.random.key(seed), jnp.zeros((1, width)))["params"]
  params = {**params, "b_enc_F": params["b_enc_F"] - 0.02}
  if order_F is not None:
    axis = lambda name: name.split("_")[-1].index("F") if "F" in name.split("_")[-1] else None
    params = {name: value if axis(name) is None else jnp.take(value, order_F, axis=axis(name))
              for name, value in params.items()}
  return SAE(config, model, params, sites)


def subject(seed):
  """A small transformer with random weights, and its context of 8 tokens."""
  config = TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=24, vocab_size=40)
  model = Transformer(config, jnp.float32)
  return LoadedSubject(model, model.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"], 8)


def some_tokens(n_tokens=2000):
  token_N = np.random.default_rng(0).integers(0, 38, n_tokens).astype(np.uint16)  # two of the vocabulary never occur
  return Tokens("train", token_N, np.array([0]), np.array([-1], np.int32), (), 40, 0, 0)


CONFIG = CompareConfig(n_tokens=0, min_fires=5, batch_contexts=13)


@pytest.fixture(scope="module")
def twins():
  """A dictionary and the same one with its features in another order, of one subject: (order, comparison)."""
  order_F = np.random.default_rng(1).permutation(30)
  one = subject(0)
  sides = comparison.Side(dictionary(24, 30, 0), one), comparison.Side(dictionary(24, 30, 0, order_F), one)
  return order_F, comparison.compare(CONFIG, *sides, some_tokens())


def test_a_dictionary_in_another_order_is_found_by_every_similarity(twins):
  order_F, found = twins
  assert len(found.pairs) > 20
  for row in found.pairs:
    assert order_F[row["match"]] == order_F[row["cosine_match"]] == order_F[row["partner"]] == row["feature"]
    values = [row[name] for name in ("correlation", "cosine", "partner_similarity", "logit_similarity",
                                     "attribution_similarity")]
    assert values == pytest.approx([1] * 5, abs=1e-5)
  figures = found.figures
  assert figures["cosine/shared_a"] == figures["cosine/shared_b"] == len(found.pairs)
  assert figures["l0_a"] == figures["l0_b"] and figures["one_to_one/pairs"] == len(found.pairs)
  assert figures["correlation_random/median_a"] < 0.9 and figures["cosine_random/mean_a"] < 0.8
  assert "correlation_neurons" not in found.matches, "they are the same neurons"


@pytest.fixture(scope="module")
def strangers():
  """Dictionaries of two subjects, of which the first position does not count: (sides, tokens, comparison)."""
  kept = Kept(first_position=1)
  sides = (comparison.Side(dictionary(24, 30, 0), subject(0), kept),
           comparison.Side(dictionary(24, 26, 5), subject(7), Kept()))
  return sides, some_tokens(), comparison.compare(CONFIG, *sides, some_tokens())


def by_hand(side, tokens_CT):
  """(activations, neurons) at all positions but the first, of a side's subject on contexts."""
  _, sites = side.subject.model.apply({"params": side.subject.params}, tokens_CT)
  x_NM = np.asarray(sites[SITE])[:, 1:].reshape(-1, 24)
  return np.asarray(side.sae.encode(x_NM), np.float64), x_NM.astype(np.float64)


def test_two_subjects_are_compared_as_by_brute_force(strangers):
  sides, tokens, found = strangers
  tokens_CU = tokens.context(np.arange(2000 // 9), 9)
  (a_NF, x_NM), (b_NF, y_NM) = (by_hand(side, tokens_CU[:, :-1]) for side in sides)
  assert found.figures["tokens"] == len(a_NF) == 222 * 7
  often_a_F, often_b_F = ((f_NF > 0).sum(0) >= 5 for f_NF in (a_NF, b_NF))
  with np.errstate(invalid="ignore"):
    r_FF = np.corrcoef(a_NF.T, b_NF.T)[:30, 30:]
    r_MM = np.nan_to_num(np.corrcoef(x_NM.T, y_NM.T)[:24, 24:], nan=-1)
  r_FF[:, ~often_b_F] = -1
  assert [row["feature"] for row in found.pairs] == np.flatnonzero(often_a_F).tolist()
  np.testing.assert_allclose([row["correlation"] for row in found.pairs], r_FF[often_a_F].max(1), atol=1e-4)
  np.testing.assert_allclose(found.matches["correlation_neurons"].value_a_F, r_MM.max(1), atol=1e-3)
  assert "cosine" not in found.matches and found.pairs[0]["cosine"] is None
  assert found.figures["one_to_one/by"] == "correlation"


def test_effects_of_matches_are_as_by_brute_force(strangers):
  sides, tokens, found = strangers
  tokens_CU = tokens.context(np.arange(2000 // 9), 9)
  next_N = tokens_CU[:, 2:].reshape(-1)
  used_V = np.bincount(tokens.tokens_N, minlength=40) >= 10
  assert used_V.sum() == 38
  logits, activations = [], []
  for side in sides:
    path = side.subject.model.logit_path(side.subject.params, SITE)
    added_FD = side.sae.direction_FO @ np.asarray(path.to_residual_MD)
    added_FD = added_FD - added_FD.mean(1, keepdims=True)
    logit_FV = (added_FD * np.asarray(path.gain_D) @ np.asarray(path.W_unembed_DV)).astype(np.float64)
    logits.append(logit_FV - np.median(logit_FV[:, used_V], axis=1, keepdims=True))
    activations.append(by_hand(side, tokens_CU[:, :-1])[0])
  for row in found.pairs:
    i, j = row["feature"], row["match"]
    v_V, w_V = logits[0][i], logits[1][j]
    assert row["logit_similarity"] == pytest.approx(np.corrcoef(v_V[used_V], w_V[used_V])[0, 1], abs=1e-4)
    a_N, b_N = activations[0][:, i] * v_V[next_N], activations[1][:, j] * w_V[next_N]
    assert row["attribution_similarity"] == pytest.approx(np.corrcoef(a_N, b_N)[0, 1], abs=1e-4)


def test_rows_without_a_subject_are_compared():
  order_F = np.random.default_rng(1).permutation(30)
  x_NM = np.maximum(np.random.default_rng(0).normal(size=(3000, 24)), 0).astype(np.float32)
  found = comparison.compare_rows(CONFIG, dictionary(24, 30, 0), dictionary(24, 30, 0, order_F), x_NM, x_NM)
  assert found.figures["tokens"] == 3000 and found.figures["cosine/mean_a"] == pytest.approx(1)
  assert all(order_F[row["match"]] == row["feature"] and row["logit_similarity"] is None for row in found.pairs)
  apart = comparison.compare_rows(CONFIG, dictionary(24, 30, 0), dictionary(24, 30, 0), x_NM, x_NM, same=False)
  assert "cosine" not in apart.matches and apart.figures["correlation_neurons/median_a"] == pytest.approx(1)
  with pytest.raises(InputError, match="same tokens"):
    comparison.compare_rows(CONFIG, dictionary(24, 30, 0), dictionary(24, 30, 0), x_NM, x_NM[1:])


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
  """(the folder of a copy of a finished run, the name of a second dictionary in it, which the frontier has)."""
  workdir = tmp_path_factory.mktemp("compared") / "mine"
  shutil.copytree(finished[0], workdir)
  (member,) = [name for name in RunFolder(workdir).dictionaries() if name.startswith("frontier/")]
  return workdir, member


QUICK = CompareConfig(n_tokens=4000)


def test_two_dictionaries_of_a_run_are_compared_by_a_command(copied):
  workdir, member = copied
  result = run("compare", workdir, f"--other_dictionary={member}", "--n_tokens=4000")
  assert result.returncode == 0, result.stderr[-3000:]
  home = workdir / "comparisons" / member.replace("/", ".")
  record = json.loads((home / "comparison.json").read_text())
  figures = record["figures"]
  assert record["a"]["l0"] == RunFolder(workdir).stage("sae")["figures"]["sae/l0"]
  assert record["b"]["l0"] == json.loads((RunFolder(workdir).dictionary(member).weights / "figures.json").read_text())[
      "sae/l0"]
  assert f"{figures['cosine/mean_a']:.3f}" in result.stdout and f"{record['b']['l0']:.3f}" in result.stdout
  pairs = json.loads((home / "pairs.json").read_text())
  assert len(pairs) == figures["matched_a"] > 10 and (home / "edges.csv").exists()
  # By hand: the frontier's dictionary started from the run's own, and its directions have moved little.
  a, b = (monojax.load(workdir, name).sae.direction_FO for name in ("sae", member))
  unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  cosine_FF = unit(a) @ unit(b).T
  for pair in pairs:
    assert pair["cosine"] == pytest.approx(cosine_FF[pair["feature"], pair["cosine_match"]], abs=1e-5)


def test_a_dictionary_of_other_files_is_compared_in_the_runs_subject(copied, tmp_path, capsys):
  from monojax import interop
  workdir, _ = copied
  interop.write(monojax.load(workdir).sae, tmp_path / "theirs", "sae_lens", "")
  found = stages.compare(RunFolder(workdir), QUICK, other=str(tmp_path / "theirs"))
  assert found.figures["cosine/mean_a"] == pytest.approx(1) and found.figures["correlation/mean_a"] == pytest.approx(1)
  assert all(pair["feature"] == pair["match"] for pair in found.pairs)
  assert "theirs" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_that_were_given_their_activations_are_compared(tmp_path):
  np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4000, 12)).astype(np.float32))
  mine, other = tmp_path / "mine", tmp_path / "other"
  monojax.train(str(tmp_path / "x.npy"), "topk", workdir=mine, n_features=24, k=3, n_steps=20, batch_rows=128,
                start_rows=512)
  shutil.copytree(mine, other)
  found = stages.compare(RunFolder(mine), QUICK, other=str(other))
  assert found.figures["cosine/mean_a"] == pytest.approx(1)
  dictionary(12, 30, 0, sites=("x",)).save(tmp_path / "theirs")
  found = stages.compare(RunFolder(mine), QUICK, other=str(tmp_path / "theirs"))
  assert found.figures["tokens"] == 4000 and found.figures["l0_a"] == pytest.approx(3, abs=0.1)
  assert "cosine" in found.matches and found.pairs[0]["logit_similarity"] is None


def test_what_cannot_be_compared_is_refused(copied, tmp_path):
  workdir, member = copied
  mine = RunFolder(workdir)
  for message, call in (
      ("would be compared with", lambda: stages.compare(mine, QUICK)),
      ("finished dictionaries of", lambda: stages.compare(mine, QUICK, other_dictionary="nothing")),
      ("same subject", lambda: stages.universality(mine, QUICK, "sae", str(workdir), member)),
      ("another seed", lambda: stages.universality(mine, QUICK, "sae", "")),
      ("lacks", lambda: stages.compare(mine, QUICK, other=saved(tmp_path / "b", ("layer.3.resid",)))),
      ("there are 48", lambda: stages.compare(mine, QUICK, other=saved(tmp_path / "a", (SITE,))))):
    with pytest.raises(InputError, match=message):
      call()


def saved(path, sites):
  """The folder of a dictionary of the wrong width, as text."""
  dictionary(20, 8, 0, sites=sites).save(path)
  return str(path)


@pytest.mark.slow
def test_universality_of_two_trained_subjects(copied, tmp_path):
  workdir, _ = copied
  other = tmp_path / "other"
  shutil.copytree(workdir / "tokens", other / "tokens")
  for script, sections in (("train_subject", ("subject",)), ("harvest", ("activations",)), ("train_sae", ("sae",))):
    result = run(script, other, *tiny(*sections), *(["--subject.seed=1"] if script == "train_subject" else []))
    assert result.returncode == 0, result.stderr[-3000:]
  result = run("universality", workdir, f"--other={other}", "--n_tokens=8000")
  assert result.returncode == 0, result.stderr[-3000:]
  assert "0.720" in result.stdout and "0.460" in result.stdout
  figures = json.loads((workdir / "comparisons" / "other.sae" / "comparison.json").read_text())["figures"]
  assert "cosine/mean_a" not in figures
  assert 0 < figures["correlation_random/median_a"] < 1 and 0 < figures["correlation_neurons/median_a"] < 1
  assert figures["attribution_similarity/median"] is not None
