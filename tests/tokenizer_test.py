"""The byte-level BPE against round trips and hand-built tokenizers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from monojax.config import InputError
from monojax.text import corpus, tokenizer
from monojax.text.config import TextConfig

TRAIN = """
import sys
from monojax.text import corpus, tokenizer
from monojax.text.config import TextConfig
documents = list(corpus.documents(TextConfig(max_bytes=400_000), corpus.Problems()))
texts = tokenizer.spread_sample(documents, 200_000)
texts = sorted(texts, reverse=sys.argv[1] == "reversed")
sys.stdout.write(tokenizer.train(texts, 700).backend.to_str())
"""


@pytest.fixture(scope="module")
def sample():
  return list(corpus.documents(TextConfig(max_bytes=600_000), corpus.Problems()))


@pytest.fixture(scope="module")
def trained(sample):
  return tokenizer.train(tokenizer.spread_sample(sample, 600_000), 1000)


def test_round_trip(sample, trained):
  random = np.random.default_rng(0)
  noise = [random.bytes(n).decode(errors="replace") for n in range(1, 200)]
  texts = [d.text for d in sample] + noise + ["👩‍👩‍👧‍👦 İstanbul\r\n\t\x00", " ", "a<|endoftext|>b"]
  ids = trained.encode_batch(texts)
  assert [trained.decode(i) for i in ids] == texts
  assert all(trained.eot_id not in i for i in ids)
  assert max(max(i) for i in ids) < trained.vocab_size == 1000


def test_encoding_by_word_is_what_the_library_does(sample, trained, monkeypatch):
  assert trained.by_word
  odd = [c for c in map(chr, range(0x3100)) if c.isspace() or not c.isprintable()] + list("a'1.\u0301字")
  random = np.random.default_rng(0)
  texts = ["".join(random.choice(odd, n)) for n in range(300)]
  texts += ["".join(random.choice(list(" \n\ta'sd1.\x1c\x85\xa0"), n)) for n in range(300)]
  texts += [d.text for d in sample[::3]] * 2
  expected = [e.ids for e in trained.backend.encode_batch(texts, add_special_tokens=False)]
  assert [i.tolist() for i in trained.encode_batch(texts)] == expected
  monkeypatch.setattr(tokenizer, "_REMEMBERED_WORDS", 100)  # forgets between batches
  found = [ids.tolist() for i in range(0, len(texts), 50) for ids in trained.encode_batch(texts[i:i + 50])]
  assert found == expected


def test_other_splitters_are_not_taken_word_by_word(trained):
  settings = json.loads(trained.backend.to_str())
  changes = [{"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "Whitespace"}},
             {"pre_tokenizer": None},
             {"pre_tokenizer": {**settings["pre_tokenizer"], "add_prefix_space": True}},
             {"added_tokens": settings["added_tokens"] + [{**settings["added_tokens"][0], "id": 1000,
                                                           "content": "a b", "special": False}]}]
  for change in changes:
    backend = tokenizers.Tokenizer.from_str(json.dumps({**settings, **change}))
    assert not tokenizer._wrap(backend, "x").by_word


def test_vocabulary_begins_with_end_of_text_and_holds_every_byte(trained):
  assert trained.eot_id == 0 and trained.token_strings()[0] == "<|endoftext|>"
  singles = {trained.token_bytes(i) for i in range(1, 257)}
  assert singles == {bytes([b]) for b in range(256)}


def test_token_bytes_concatenate_to_the_text(sample, trained):
  for document in sample[::20]:
    ids, = trained.encode_batch([document.text])
    assert b"".join(trained.token_bytes(i) for i in ids) == document.text.encode()


def test_token_strings_show_whole_characters_and_escape_stray_bytes(tmp_path):
  to_character = {b: c for c, b in tokenizer._byte_values().items()}
  values = [b"a", b" the", "ש".encode(), "ש".encode()[:1], "ש".encode() + b"\xd7", b"\x80x", b"\n", b"\xff"]
  vocabulary = {"".join(to_character[b] for b in value): i for i, value in enumerate(values)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["</s>"])
  backend.add_tokens(["    "])
  backend.save(str(tmp_path / "t.json"))
  loaded = tokenizer.load(tmp_path / "t.json")
  shown = ["a", " the", "ש", r"\xd7", r"ש\xd7", r"\x80x", "\n", r"\xff", "</s>", "    "]
  assert loaded.token_strings() == shown
  assert loaded.eot_id == 8 and loaded.vocab_size == 10


def test_characters_agree_with_the_library():
  assert set(tokenizer._byte_values()) == set(pre_tokenizers.ByteLevel.alphabet())
  every = bytes(range(256)).decode("latin-1")
  pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(every)
  values = tokenizer._byte_values()
  assert bytes(values[c] for c in pieces[0][0]) == every.encode()


def test_sentencepiece_style_tokens(tmp_path):
  vocabulary = {"</s>": 0, "<0xD7>": 1, "▁the": 2, "ing": 3}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
  backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])
  backend.add_special_tokens(["</s>"])
  backend.save(str(tmp_path / "t.json"))
  assert tokenizer.load(tmp_path / "t.json").token_strings() == ["</s>", r"\xd7", " the", "ing"]


def test_an_existing_tokenizer_encodes_any_text_whole(tmp_path, trained):
  backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
  backend.enable_truncation(4)
  backend.enable_padding(length=64)
  backend.save(str(tmp_path / "t.json"))
  ids = tokenizer.load(tmp_path / "t.json").encode_batch(["some text that is longer than four tokens", "x"])
  expected = trained.encode_batch(["some text that is longer than four tokens", "x"])
  assert [i.tolist() for i in ids] == [i.tolist() for i in expected]


def test_tokenizer_without_an_end_of_text_token(tmp_path):
  backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
  backend.add_special_tokens(["<odd>"])
  backend.save(str(tmp_path / "t.json"))
  with pytest.raises(InputError, match=r"its special tokens are \['<odd>'\]"):
    tokenizer.load(tmp_path / "t.json")
  (tmp_path / "t.json").write_text("{}")
  with pytest.raises(InputError, match="cannot be read"):
    tokenizer.load(tmp_path / "t.json")
  with pytest.raises(InputError, match="absent.json' cannot be read"):
    tokenizer.load(tmp_path / "absent.json")


def test_too_little_text_says_how_many_tokens_it_yields():
  with pytest.raises(InputError, match=r"tokens.vocab_size=2048: 24 bytes of text yield only (\d+) tokens"):
    tokenizer.train([b"the cat and the cat says"], 2048)


def test_a_little_too_little_text_gives_a_smaller_vocabulary_and_says_so(capsys):
  text = [b"the cat and the cat says that the cat is the cat"]
  with pytest.raises(InputError, match=r"yield only (\d+) tokens") as raised:
    tokenizer.train(text, 2048)
  n_tokens = int(str(raised.value).split("yield only ")[1].split()[0])
  assert tokenizer.train(text, n_tokens).vocab_size == n_tokens and capsys.readouterr().out == ""
  assert tokenizer.train(text, n_tokens + 20).vocab_size == n_tokens
  assert f"yield only {n_tokens} tokens; going on" in capsys.readouterr().out


def test_training_is_the_same_in_any_process_and_order():
  environments = [{**os.environ, "RAYON_NUM_THREADS": n, "PYTHONHASHSEED": n} for n in ("1", "2")]
  results = [subprocess.run([sys.executable, "-c", TRAIN, order], env=env, capture_output=True, check=True)
             for order, env in zip(("sorted", "reversed"), environments, strict=True)]
  assert results[0].stdout == results[1].stdout
  assert len(json.loads(results[0].stdout)["model"]["vocab"]) == 700


def test_spread_sample_keeps_an_even_share_of_the_corpus():
  texts = [f"{i:06d}" * 10 for i in range(5000)]
  documents = [corpus.Document(text, None) for text in texts]
  kept = tokenizer.spread_sample(documents, 30_000)
  assert 29_900 <= sum(map(len, kept)) <= 30_000
  assert sorted(kept) == sorted(tokenizer.spread_sample(documents[::-1], 30_000))
  counts = np.histogram([int(text[:6]) for text in kept], bins=5, range=(0, 5000))[0]
  assert np.all(np.abs(counts - 100) < 50)  # five standard deviations
  assert len(tokenizer.spread_sample(documents, 10**9)) == 5000
