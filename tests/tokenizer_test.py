"""The byte-level BPE against round trips and hand-built tokenizers."""

import json
import os
import re
import subprocess
import sys
import time

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


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>",
                                  "<|im_end|>", "<|eot_id|>", "[SEP]", "<EOS_TOKEN>"])
def test_the_end_tokens_of_common_tokenizers_are_known(tmp_path, name):
  backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
  backend.add_special_tokens(["<start>", name])
  backend.save(str(tmp_path / "t.json"))
  loaded = tokenizer.load(tmp_path / "t.json")
  assert loaded.end_token == name and loaded.eot_id == 2
  assert tokenizer.load(tmp_path / "t.json", "<start>").eot_id == 1
  with pytest.raises(InputError, match=r"no token '<stop>'; its special tokens are \['<start>', .*--tokens.end_token"):
    tokenizer.load(tmp_path / "t.json", "<stop>")


def test_an_entry_that_no_byte_can_write_is_shown_as_its_text(tmp_path, trained):
  settings = json.loads(trained.backend.to_str())
  odd = ["<reserved token 0>", "字", " ", "a\nb", "\x80"]
  for token in odd:
    settings["model"]["vocab"][token] = len(settings["model"]["vocab"])
  (tmp_path / "t.json").write_text(json.dumps(settings))
  loaded = tokenizer.load(tmp_path / "t.json")
  assert loaded.token_strings()[-5:] == odd
  assert loaded.token_strings()[:1000] == trained.token_strings()


@pytest.mark.parametrize("place", ["vocab", "added"])
@pytest.mark.parametrize("id", [2**24, 2**31 - 1, 2**31, 2**32 - 1])
def test_an_id_beyond_any_embedding_is_refused(tmp_path, trained, place, id):
  settings = json.loads(trained.backend.to_str())
  if place == "vocab":
    settings["model"]["vocab"]["zz"] = id
  else:
    settings["added_tokens"].append({**settings["added_tokens"][0], "id": id, "content": "zz"})
    settings["model"]["vocab"]["zz"] = id
  (tmp_path / "t.json").write_text(json.dumps(settings))
  with pytest.raises(InputError, match=f"has the id {id} for 'zz': ids must be below 16777216"):
    tokenizer.load(tmp_path / "t.json")


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


LONG_WORDS = {"dna": "ACGT", "letters": "abcdefghijklmnop", "digits": "0123456789", "kanji": "日本語文字",
              "signs": "=-+*", "blanks": " \n\t"}


@pytest.mark.parametrize("name", LONG_WORDS)
def test_long_words_take_a_few_times_as_long_as_short_ones(name):
  random = np.random.default_rng(0)
  text = "".join(random.choice(list(LONG_WORDS[name]), 100_000))
  words = " ".join(text[i:i + 10] for i in range(0, len(text), 10))
  seconds = []
  for content in (words, text):
    start = time.perf_counter()
    encoder = tokenizer.train([content.encode()], 300)
    ids, = encoder.encode_batch([content])
    seconds.append(time.perf_counter() - start)
    assert encoder.decode(ids) == content
  assert seconds[1] < 1 + 8 * seconds[0]


def test_cutting_long_words_loses_nothing():
  random = np.random.default_rng(0)
  for _ in range(200):
    lengths = random.choice([1, 5, 999, 1000, 1001, 2000, 3500], 6)
    text = "".join((" " if random.random() < 0.3 else "x") * n + random.choice(["", " ", "\n", "y"]) for n in lengths)
    pieces = tokenizer._pieces(text)
    assert "".join(pieces) == text and all(pieces)
    assert max(len(run) for piece in pieces for run in re.findall(r"\S+|\s+", piece)) <= 1000
    if not re.search(r"\S{1001}|\s{1001}", text):
      assert pieces == [text]


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
