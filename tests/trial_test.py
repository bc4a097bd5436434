"""A tokenizer of another's is tried before work depends on it: what it loses is told, what breaks it ends in a line."""

import copy
import json
import random
import time

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from monojax.config import InputError
from monojax.text import prepare, tokenizer, trial
from monojax.text.config import TextConfig

TEXT = "Once upon a time there was a cat, Grüße aus Köln, שלום 字. " * 20


@pytest.fixture(scope="module")
def good():
  """The settings of a tokenizer that can be used, as the dict that its tokenizer.json holds."""
  return json.loads(tokenizer.train([TEXT.encode()], 280).backend.to_str())


def letters(known, **settings):
  """The path of a tokenizer that knows only some letters, to be saved."""
  vocabulary = {"</s>": 0, "<unk>": 1} | {letter: i + 2 for i, letter in enumerate(known)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], **settings))
  backend.decoder = decoders.Fuse()
  backend.add_special_tokens(["</s>"])
  return backend


@pytest.mark.parametrize("unknown", [{}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}])
@pytest.mark.parametrize("n_lost", [0, 1, 4])
def test_the_loss_is_that_of_the_characters_left_out(tmp_path, unknown, n_lost):
  known = "abcdefgh"[n_lost:] + " "
  letters(known, **unknown).save(str(tmp_path / "t.json"))
  text = " ".join("abcdefgh" for _ in range(100))
  loss = trial.loss_of(tokenizer.load(tmp_path / "t.json"), [text, text])
  assert (loss.n_characters, loss.n_lost, set(loss.most_lost)) == (1600, 200 * n_lost, set("abcdefgh"[:n_lost]))


def test_what_is_written_otherwise_is_not_lost(tmp_path, good):
  (tmp_path / "t.json").write_text(json.dumps(good))
  exact = tokenizer.load(tmp_path / "t.json")
  assert trial.loss_of(exact, [TEXT, "ﬁ ½ \t\n\x00 👩‍👧"]).n_lost == 0
  exact.backend.normalizer = normalizers.NFKC()
  assert trial.loss_of(exact, [TEXT, "ﬁ ½ ー Å"]).n_lost == 0
  exact.backend.normalizer = normalizers.Lowercase()
  assert trial.loss_of(exact, ["One Two"]).most_lost == ("O", "T")


def test_a_light_loss_is_warned_of_and_a_heavy_one_refused(tmp_path, capsys):
  (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"abcd {i}bcd"}) + "\n" for i in range(30)))
  letters("bcd 0123456789").save(str(tmp_path / "light.json"))
  letters("a").save(str(tmp_path / "heavy.json"))
  config = lambda name: TextConfig(paths=(str(tmp_path / "x.jsonl"),), tokenizer=str(tmp_path / name), val_fraction=0.5)
  prepare.prepare(config("light.json"), tmp_path / "light", progress=False)
  assert "light.json loses 11.54% of the characters of a sample of the text (30 of 260; most often 'a')" in (
      capsys.readouterr().err)
  with pytest.raises(InputError, match=r"heavy.json' loses 88.46% of the characters.*leave --tokens.tokenizer out"):
    prepare.prepare(config("heavy.json"), tmp_path / "heavy", progress=False)
  assert list((tmp_path / "heavy").iterdir()) == []


def test_a_regular_expression_that_breaks_or_hangs_the_library_ends_in_a_line(tmp_path, good):
  splits = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
  for pattern in ("(a+)+$", "(a|aa)+$", "(a*)*$", "(?:a?){30}a{30}$"):
    (tmp_path / "t.json").write_text(json.dumps({**good, "pre_tokenizer": splits(pattern)}))
    start = time.perf_counter()
    try:
      trial.try_out(str(tmp_path / "t.json"), "", ["a" * 40 + "b"] * 3, seconds=20)
    except InputError as error:
      assert "\n" not in str(error) and "t.json' cannot be used" in str(error)
    assert time.perf_counter() - start < 40
  slow = {"type": "Replace", "pattern": {"Regex": r"(?=(x+))\1*y"}, "content": ""}
  (tmp_path / "t.json").write_text(json.dumps({**good, "normalizer": slow}))
  with pytest.raises(InputError, match="took more than 2 seconds|cannot"):
    trial.try_out(str(tmp_path / "t.json"), "", ["x" * 10_000] * 20, seconds=2)


def places(value, path=()):
  """The path of every value in nested dicts and lists, of large ones the first."""
  found = [path] if path else []
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  return found + [place for key, item in list(items)[:12] for place in places(item, (*path, key))]


def mutated(settings, rng):
  """Settings of a tokenizer of which a few values are others, or missing."""
  settings = copy.deepcopy(settings)
  values = [None, -1, 0, 2**31, 2**64, 1.5, "", "((", "(a+)+$", [], {}, True, "x" * 999, {"Regex": "("},
            {"type": "NFKC"}, {"type": "ByteLevel"}, {"type": "Sequence", "pretokenizers": []}]
  for _ in range(rng.choice([1, 2])):
    *path, last = rng.choice(places(settings))
    holder = settings
    for key in path:
      holder = holder[key]
    if rng.random() < 0.2:
      del holder[last]
    else:
      holder[last] = rng.choice(values)
  text = json.dumps(settings)
  return text[:rng.randrange(len(text))] if rng.random() < 0.1 else text


def require_used_or_refused(path, text):
  """Fails unless the tokenizer in a file gives sound ids, or is refused in one line."""
  try:
    trial.try_out(str(path), "", [text], seconds=60)
    loaded = tokenizer.load(path)
  except InputError as error:
    assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
    return
  assert loaded.encode_batch([text])[0].max(initial=0) < loaded.vocab_size < 2**24


@pytest.mark.parametrize("n", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_tokenizers_are_used_or_refused(tmp_path, good, n):
  bases = [good, json.loads(letters("abc").to_str())]
  unigram = tokenizers.Tokenizer(models.Unigram([("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0), ("a", -2.0)], 1))
  unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  unigram.add_special_tokens(["</s>"])
  bases.append(json.loads(unigram.to_str()))
  rng = random.Random(n)
  for _ in range(n):
    (tmp_path / "t.json").write_text(mutated(rng.choice(bases), rng))
    require_used_or_refused(tmp_path / "t.json", TEXT)
