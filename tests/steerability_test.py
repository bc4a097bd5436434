"""Steering judged by a classifier: planted features are chosen and counted, and real text is told apart."""

import json
import shutil

import numpy as np
import pytest

from monojax.analysis.config import SteerabilityConfig
from monojax.analysis.domain_classifier import DomainClassifier
from monojax.analysis.steerability import candidates, steerability
from monojax.config import InputError
from monojax.pipeline import load, stages
from monojax.pipeline.folder import RunFolder
from monojax.text.tokens import Tokens


class Tables:
  """Four features: two of domain 0, of which the second is the stronger one, one of domain 1, and a dead one."""
  domain_share_FD = np.asarray([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.0, 0.0]], np.float32)
  mean_act_F = np.asarray([1.0, 3.0, 2.0, 0.0])
  n_fires_F = np.asarray([10, 10, 10, 0])
  max_act_F = np.asarray([2.0, 6.0, 4.0, 0.0])
  domains = ("zero", "one")

  def has(self, name):
    return True


def test_candidates_are_those_most_active_in_the_domains():
  assert candidates(Tables(), [0], 5) == [1, 0] and candidates(Tables(), [0], 1) == [1]
  assert candidates(Tables(), [0, 1], 5) == [1, 2, 0] and candidates(Tables(), [1], 5) == [2]


def test_the_feature_is_chosen_on_texts_that_do_not_count():
  """Feature 0 writes domain 0 in three texts of four, feature 1 in none, feature 2 never writes domain 1."""
  config = SteerabilityConfig(n=8, n_choosing=4, seed=100)
  seen = []

  def write(features, seed):
    seen.append((dict(features), seed - 100))
    return "zero" if 0 in features and seed % 4 else "one" if not features else "zero"

  def classify(texts):
    return np.asarray([("zero", "one").index(text) for text in texts])
  zero, one, nothing = steerability(config, Tables(), {"A": [0], "B": [1], "C": []}, write, classify)
  assert zero.feature in (0, 1) and one.feature == 2 and nothing.feature is None and nothing.pinned is None
  assert zero.unpinned == 0 and one.unpinned == 1 and one.pinned == 0 and one.called == {"zero": 8}
  choosing = {seed for features, seed in seen if features == {1: 6.0} and seed >= 8}
  assert choosing == set(range(8, 12))
  assert all(value == Tables.max_act_F[f] for features, _ in seen for f, value in features.items())
  assert {seed for features, seed in seen if not features} == set(range(8))


class Letters:
  """A tokenizer of one letter a token."""
  def decode(self, ids):
    return "".join(chr(i) for i in ids)


def test_a_domain_of_short_documents_is_never_said():
  """Of it nothing could be learned, and what is not like anything that was must not be called it."""
  rng = np.random.default_rng(0)
  documents = [rng.integers(97, 123, 200), rng.integers(48, 58, 200), rng.integers(33, 47, 20)] * 30
  start_D = np.cumsum([0] + [len(one) for one in documents])[:-1]
  tokens = Tokens("train", np.concatenate(documents).astype(np.uint16), start_D, np.arange(90, dtype=np.int32) % 3,
                  ("letters", "digits", "tweets"), 128, 0, 0)
  judge = DomainClassifier(tokens, Letters(), 64, 300, 0)
  assert judge.known.tolist() == [0, 1]
  assert set(judge.predict(["!#%&" * 16, "\u4e2d" * 64, "", "abc" * 20, "123" * 20])) == {0, 1}
  assert judge.predict(["abc" * 20, "123" * 20]).tolist() == [0, 1]
  with pytest.raises(InputError, match="needs two domains.*there is none"):
    DomainClassifier(tokens, Letters(), 300, 300, 0)


def test_real_text_is_told_apart(finished):
  run = RunFolder(finished[0])
  train, val, tokenizer = load.open_tokens(run, "train"), load.open_tokens(run, "val"), load.load_tokenizer(run)
  judge = DomainClassifier(train, tokenizer, 32, 2000, 0)
  classes = {"Hebrew": [train.domains.index("he_bible")], "base64": [train.domains.index("base64")]}
  found = judge.found(val, classes, 500, 1)
  assert found["accuracy"] > 0.5 and all(row["recall"] is None or row["recall"] > 0.8 for row in
                                         found["classes"].values())
  assert all(row["false"] < 0.1 for row in found["classes"].values())
  assert train.domains[judge.predict(["בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ"])[0]] == "he_bible"


def test_the_command_prints_and_leaves_a_table(finished, tmp_path, capsys):
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  config = SteerabilityConfig(classes=("Hebrew=he_*", "HTML=html"), n=2, n_tokens=8, n_candidates=2, n_choosing=1)
  found = stages.steerability(RunFolder(workdir), config)
  assert [row.name for row in found] == ["Hebrew", "HTML"]
  rows = json.loads((workdir / "steerability" / "classes.json").read_text())
  assert rows[0]["unpinned"] == found[0].unpinned and {"recall", "false", "pinned", "random"} <= set(rows[0])
  kept = json.loads((workdir / "steerability" / "steerability.json").read_text())
  assert len(kept["classes"][0]["texts"]) == (2 if found[0].feature is not None else 0)
  assert "the classifier tells the domain of" in capsys.readouterr().out
  with pytest.raises(InputError, match="none has text here; the domains are"):
    stages.steerability(RunFolder(workdir), SteerabilityConfig(classes=("Klingon=tlh_*",)))
