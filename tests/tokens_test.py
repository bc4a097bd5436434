"""Token files: what is written, that a kill at any moment changes nothing, and how they are read."""

import collections
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from monojax import files
from monojax.config import InputError
from monojax.text import corpus, ngram, prepare, tokens
from monojax.text.config import TextConfig
from monojax.text.tokenizer import load

CONFIG = TextConfig(max_bytes=300_000, vocab_size=600, tokenizer_bytes=100_000, val_fraction=0.2)
SIZES = {"batch_bytes": 7_000, "journal_bytes": 40_000}

KILLED = """
import os, sys
from monojax import files
from monojax.text import prepare, tokens
from monojax.text.config import TextConfig
directory, moment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
left = [count]
def die_at(name):
  if name == moment:
    left[0] -= 1
    if not left[0]:
      os._exit(9)
write_json, append, sync, train = (files.write_json, prepare._Outputs.append, prepare._Outputs.sync,
                                   prepare.tokenizer.train)
def around(name, function):
  def call(*args):
    die_at("before " + name)
    result = function(*args)
    for file in getattr(args[0], "files", {}).values():
      file.flush()  # a killed process may have written any part of its buffers
    die_at("after " + name)
    return result
  return call
files.write_json = around("json", write_json)
prepare._Outputs.append = around("append", append)
prepare._Outputs.sync = around("sync", sync)
prepare.tokenizer.train = around("train", train)
prepare.prepare(TextConfig(max_bytes=300_000, vocab_size=600, tokenizer_bytes=100_000, val_fraction=0.2),
               directory, progress=False, batch_bytes=7_000, journal_bytes=40_000)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  directory = tmp_path_factory.mktemp("run") / "tokens"
  prepare.prepare(CONFIG, directory, progress=False, **SIZES)
  return directory


@pytest.fixture(scope="module")
def documents():
  return list(corpus.documents(CONFIG, corpus.Problems()))


def contents(directory):
  return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def made(tokens_N, starts=(0,), domains=(0,), split="train", vocab_size=1000):
  return tokens.Tokens(split, np.asarray(tokens_N, np.uint16), np.asarray(starts, np.int64),
                       np.asarray(domains, np.int32), ("a", "b"), vocab_size, 0, 1)


def test_files_hold_every_document_once(prepared, documents):
  encoder = load(prepared / "tokenizer.json")
  meta = files.read_json(prepared / "meta.json")
  found = collections.Counter()
  for split in tokens.SPLITS:
    data = tokens.Tokens.open(prepared, split)
    ends = [*data.start_D[1:], data.n_tokens]
    for start, end, domain in zip(data.start_D, ends, data.domain_D, strict=True):
      assert data.tokens_N[start] == meta["eot_id"]
      found[encoder.decode(data.tokens_N[start + 1:end]), data.domains[domain]] += 1
    assert data.n_tokens == meta["n_tokens"][split] > 0
    assert len(data.start_D) == meta["n_documents"][split] > 0
  assert found == collections.Counter(documents)
  assert sum(meta["text_bytes"].values()) == sum(len(d.text.encode()) for d in documents)
  assert meta["complete"] and meta["dtype"] == "uint16" and meta["vocab_size"] == 600
  assert not (prepared / "journal.json").exists()
  held_out = meta["n_documents"]["val"] / len(documents)
  assert abs(held_out - 0.2) < 4 * (0.2 * 0.8 / len(documents)) ** 0.5


def test_batch_sizes_and_repetition_change_nothing(tmp_path, prepared):
  prepare.prepare(CONFIG, tmp_path, progress=False)
  assert contents(tmp_path) == contents(prepared)


@pytest.mark.parametrize("moments", [
    ["before train 1", "after train 1", "after append 1"], ["after json 1", "after json 2"],
    ["before json 2", "after append 9", "after json 4"], ["after sync 3", "after append 2", "before sync 2"],
    ["before json 9", "before json 1"]])
def test_a_killed_call_goes_on_to_the_same_bytes(tmp_path, prepared, moments):
  for moment in moments:
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path, *moment.rsplit(" ", 1)],
                             capture_output=True, text=True)
    assert process.returncode == 9, process.stderr
  journal = files.read_json(tmp_path / "journal.json")
  if journal["documents"]:  # what the journal vouches for is skipped: damage beyond it does not matter
    with open(tmp_path / "train.bin", "ab") as file:
      file.write(b"garbage")
  prepare.prepare(CONFIG, tmp_path, progress=False, **SIZES)
  left = contents(tmp_path)
  assert not {name for name in left if name.endswith(".partial")} - {"tokenizer.json.partial"}
  assert left == contents(prepared)


def test_resuming_encodes_only_what_is_missing(tmp_path, monkeypatch, documents):
  subprocess.run([sys.executable, "-c", KILLED, tmp_path, "after json", "5"], check=False)
  done = files.read_json(tmp_path / "journal.json")["documents"]
  assert 0 < done < len(documents)
  encoded = []
  encode_batch = prepare.tokenizer.Tokenizer.encode_batch
  monkeypatch.setattr(prepare.tokenizer.Tokenizer, "encode_batch",
                      lambda self, texts: encoded.extend(texts) or encode_batch(self, texts))
  monkeypatch.setattr(prepare.tokenizer, "train", None)
  prepare.prepare(CONFIG, tmp_path, progress=False, **SIZES)
  assert encoded == [d.text for d in documents[done:]]


def test_a_finished_folder_is_returned_and_another_configuration_refused(tmp_path, prepared, monkeypatch):
  monkeypatch.setattr(corpus, "documents", None)
  assert prepare.prepare(CONFIG, prepared, progress=False) == files.read_json(prepared / "meta.json")
  with pytest.raises(InputError, match=r"tokens.seed: 0 -> 1"):
    prepare.prepare(TextConfig(**{**CONFIG.__dict__, "seed": 1}), prepared, progress=False)


def test_a_failed_attempt_does_not_bind_the_folder(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"text": "one two"}\n')
  config = TextConfig(paths=(str(tmp_path / "x.jsonl"),))
  with pytest.raises(InputError, match="tokens.vocab_size=2048"):
    prepare.prepare(config, tmp_path / "run", progress=False)
  config = TextConfig(paths=(str(tmp_path / "x.jsonl"),), vocab_size=257)
  assert prepare.prepare(config, tmp_path / "run", progress=False)["complete"]


def test_a_file_that_changed_between_two_calls_is_refused(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"text": "one two"}\n' * 5)
  config = TextConfig(paths=(str(path),), vocab_size=257)
  files.write_record(tmp_path / "run" / "journal.json", {
      "identity": {"text": prepare.config_lib.to_dict(config), "sources": {str(path): 1}},
      "documents": 1, "sizes": {}, "text_bytes": {}})
  with pytest.raises(InputError, match=r"sources.*x.jsonl: 1 -> 100"):
    prepare.prepare(config, tmp_path / "run", progress=False)


def test_duplicates_share_a_side_and_the_seed_moves_it(tmp_path):
  texts = [f"document number {i}" for i in range(300)]
  (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t, "domain": "d"}) + "\n" for t in texts * 2))
  sides = []
  for seed in (0, 1):
    config = TextConfig(paths=(str(tmp_path / "x.jsonl"),), vocab_size=257, val_fraction=0.3, seed=seed)
    meta = prepare.prepare(config, tmp_path / f"run{seed}", progress=False)
    encoder = load(tmp_path / f"run{seed}" / "tokenizer.json")
    val = tokens.Tokens.open(tmp_path / f"run{seed}", "val")
    counts = collections.Counter(encoder.decode(val.tokens_N).split("<|endoftext|>")[1:])
    assert set(counts.values()) == {2} and set(counts) < set(texts)
    assert sum(counts.values()) == meta["n_documents"]["val"]
    sides.append(set(counts))
  assert sides[0] != sides[1] and all(50 < len(side) < 130 for side in sides)


def test_an_existing_large_tokenizer_is_copied_and_needs_32_bits(tmp_path):
  backend = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "zwei": 70_000, "[UNK]": 1}, unk_token="[UNK]"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.add_special_tokens(["</s>"])
  backend.save(str(tmp_path / "words.json"))
  (tmp_path / "a.txt").write_text("zwei zwei other")
  (tmp_path / "b.jsonl").write_text('{"text": "zwei", "domain": null}\n{"text": "bad \n')
  config = TextConfig(paths=(str(tmp_path / "*.*[tl]"),), tokenizer=str(tmp_path / "words.json"),
                      vocab_size=5, val_fraction=1e-9)
  meta = prepare.prepare(config, tmp_path / "run", progress=False)
  assert meta["dtype"] == "uint32" and meta["vocab_size"] == 70_001
  assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (tmp_path / "words.json").read_bytes()
  train = tokens.Tokens.open(tmp_path / "run", "train")
  assert train.tokens_N.tolist() == [0, 70_000, 70_000, 1, 0, 70_000]
  assert train.domain_D.tolist() == [0, tokens.NO_DOMAIN] and train.domains == ("a",)
  assert meta["problems"]["malformed JSON line"]["count"] == 1
  assert tokens.Tokens.open(tmp_path / "run", "val").n_tokens == 0


def test_problems_are_reported_once_at_the_end(tmp_path, capsys):
  (tmp_path / "x.jsonl").write_text('{"text": "one two"}\n{oops\n')
  prepare.prepare(TextConfig(paths=(str(tmp_path / "x.jsonl"),), vocab_size=257), tmp_path / "run")
  assert capsys.readouterr().err.count("1 x malformed JSON line (first: ") == 1


@pytest.mark.parametrize("n_tokens, n_context, batch_contexts", [
    (1000, 9, 4), (1007, 9, 7), (19, 9, 3), (10, 9, 2), (18, 9, 2), (64, 1, 5)])
def test_an_epoch_visits_every_window_once(n_tokens, n_context, batch_contexts):
  data = made(np.arange(n_tokens))
  width = n_context + 1
  n_windows = max(1, (n_tokens - width + 1) // width)
  n_steps = math.ceil(3 * n_windows / batch_contexts)
  rows = np.concatenate([data.batch(step, batch_contexts, n_context, seed=3) for step in range(n_steps)])
  assert rows.dtype == np.int32 and rows.shape == (n_steps * batch_contexts, width)
  offsets, orders = [], []
  for epoch in range(3):
    epoch_rows = rows[epoch * n_windows:(epoch + 1) * n_windows]
    assert np.all(np.diff(epoch_rows, axis=1) == 1)  # windows of neighbouring positions
    starts = np.sort(epoch_rows[:, 0])
    assert np.all(np.diff(starts) == width) and starts[0] < width  # side by side, each once
    assert starts[0] + n_windows * width <= n_tokens
    offsets.append(int(starts[0]))
    orders.append(((epoch_rows[:, 0] - starts[0]) // width).tolist())
  if n_windows > 50:
    assert len(set(offsets)) > 1 and orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_batch_is_a_pure_function_of_seed_and_step():
  data = made(np.arange(5000))
  first = [data.batch(step, 8, 15, seed=0) for step in range(60)]
  for step in (59, 3, 40, 3):
    assert np.array_equal(made(np.arange(5000)).batch(step, 8, 15, seed=0), first[step])
  assert not np.array_equal(data.batch(0, 8, 15, seed=1), first[0])
  halves = np.concatenate([data.batch(2, 4, 15, seed=0), data.batch(3, 4, 15, seed=0)])
  assert np.array_equal(halves, first[1])  # the sequence of windows does not depend on the batch size


def test_contexts_are_fixed_windows():
  data = made(np.arange(103))
  assert data.contexts(10) == 10
  rows = data.context([9, 0], 10)
  assert rows.dtype == np.int32
  assert np.array_equal(rows, [np.arange(90, 100), np.arange(10)])


def test_a_split_shorter_than_one_context():
  data = made(np.arange(93), split="val")
  message = (r"val has 93 tokens, needs at least 129: give more text, a larger --tokens.val_fraction, or a "
             r"smaller --subject.n_context")
  with pytest.raises(InputError, match=message):
    data.batch(0, 2, 128, seed=0)
  with pytest.raises(InputError, match="needs at least 94"):
    data.contexts(94)
  assert data.batch(0, 2, 92, seed=0).shape == (2, 93) and data.contexts(93) == 1


def test_position_domain_against_a_loop(prepared):
  data = tokens.Tokens.open(prepared, "val")
  expected, document = [], -1
  for position in range(data.n_tokens):
    if document + 1 < len(data.start_D) and position == data.start_D[document + 1]:
      document += 1
    expected.append(document)
  positions = np.arange(data.n_tokens)
  assert np.array_equal(data.position_document(positions), expected)
  assert np.array_equal(data.position_domain(positions), data.domain_D[expected])
  assert data.position_document(np.array([[0, 1]])).shape == (1, 2)


def test_open_refuses_unfinished_and_cut_files(tmp_path, prepared):
  with pytest.raises(InputError, match="holds no finished tokens"):
    tokens.Tokens.open(tmp_path, "train")
  for name, content in contents(prepared).items():
    (tmp_path / name).write_bytes(content)
  os.truncate(tmp_path / "train.bin", 1000)
  with pytest.raises(InputError, match="has 500 tokens, meta.json says"):
    tokens.Tokens.open(tmp_path, "train")


def slow_losses(train, val, vocab_size):
  """The same two models with dictionaries of counts."""
  unigram, pairs, followers = collections.Counter(train), collections.Counter(), collections.defaultdict(set)
  for a, b in zip(train, train[1:], strict=False):
    pairs[a, b] += 1
    followers[a].add(b)
  history = collections.Counter(train[:-1])
  p_unigram = lambda w: (unigram[w] + 1) / (len(train) + vocab_size)
  total = [0.0, 0.0]
  for a, b in zip(val, val[1:], strict=False):
    total[0] -= math.log(p_unigram(b))
    if history[a]:
      n_types = len(followers[a])
      p = (pairs[a, b] + n_types * p_unigram(b)) / (history[a] + n_types)
    else:
      p = p_unigram(b)
    total[1] -= math.log(p)
  return total[0] / (len(val) - 1), total[1] / (len(val) - 1)


@pytest.mark.parametrize("seed, vocab_size, n_train", [(0, 30, 2000), (1, 200, 300), (2, 60_000, 500)])
def test_ngram_losses_against_dictionaries(seed, vocab_size, n_train):
  random = np.random.default_rng(seed)
  train, val = (random.zipf(1.3, n).clip(max=vocab_size) - 1 for n in (n_train, 400))
  found = ngram.unigram_bigram_loss(train.astype(np.uint16), val[None].astype(np.uint16), vocab_size)
  np.testing.assert_allclose(found, slow_losses(train.tolist(), val.tolist(), vocab_size), rtol=1e-12)


def test_ngram_losses_in_chunks(monkeypatch):
  random = np.random.default_rng(0)
  cycle = np.tile(random.permutation(50), 400)  # each token determines the next
  train, val = cycle[:16_000].astype(np.uint16), cycle[16_000:].reshape(16, 250).astype(np.uint16)
  whole = ngram.unigram_bigram_loss(train, val, 50)
  assert abs(whole[0] - math.log(50)) < 0.01 and whole[1] < 0.1
  monkeypatch.setattr(ngram, "_CHUNK_TOKENS", 1000)
  monkeypatch.setattr(ngram, "_PIECE_TOKENS", 400)
  np.testing.assert_allclose(ngram.unigram_bigram_loss(train, val, 50), whole, rtol=1e-3)
  spread = ngram.unigram_bigram_loss(train, val, 50, max_train_tokens=8000)
  np.testing.assert_allclose(spread, whole, atol=0.1)
  drifting = np.repeat(np.arange(5), 4000).astype(np.uint16)  # a prefix would miss the later tokens
  assert ngram.unigram_bigram_loss(drifting, drifting[None], 50, max_train_tokens=8000)[0] < math.log(5) + 0.1


def test_ngram_losses_need_held_out_tokens():
  with pytest.raises(InputError, match="1 held-out contexts of 1 tokens"):
    ngram.unigram_bigram_loss(np.arange(5), np.zeros((1, 1), int), 10)
  losses = ngram.unigram_bigram_loss(np.arange(0), np.arange(3)[None], 10)
  np.testing.assert_allclose(losses, [math.log(10)] * 2)


def test_bigram_beats_unigram_beats_uniform_on_text(prepared):
  train, val = (tokens.Tokens.open(prepared, split) for split in tokens.SPLITS)
  unigram, bigram = ngram.unigram_bigram_loss(train.tokens_N, val.context(val.choose(50, 0), 50), 600)
  assert bigram < unigram - 0.5 < math.log(600) - 0.5
