"""Generated corpora of every kind of text and damage: each becomes sound tokens or is refused in one line."""

import collections
import gzip
import json
import lzma
import os
import random

import numpy as np
import pytest
import zstandard

from monojax import files
from monojax.config import InputError
from monojax.text import corpus, prepare, tokenizer, tokens
from monojax.text.config import TextConfig

COMPRESS = {"": lambda data: data, ".gz": lambda data: gzip.compress(data, 1),
            ".xz": lambda data: lzma.compress(data, preset=0), ".zst": zstandard.compress}
ALPHABETS = ["abcdefgh ", "ACGT", "äöüß éèàç", "שלוםעולם ", "字漢語日本。", "👩‍👧🎉 ", " \n\t\r", "a\0b \x1c\x85\xa0",
             "<|endoftext|>\n", "0123456789abcdef", "{}[]\":,\\ "]
DECODED = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]  # the codec writes a byte order mark
REFUSED = ["utf-32", "utf-16-le", "utf-16-be", "utf-32-be", "latin-1", "binary", "iso2022_jp"]
NAMES = ["a", "b.c", "Ä ö", "odd[1]", "x*y", b"caf\xe9", "-dash", "new\nline", "~", "__MACOSX", ".hidden"]


def made_text(rng):
  """Some text, often with long words or lines, now and then empty."""
  alphabet = "".join(rng.sample(ALPHABETS, rng.choice([1, 1, 2, 3])))
  n_words = rng.choice([0, 1, 30, 300])
  words = ["".join(rng.choices(alphabet, k=rng.choice([0, 1, 5, 5, 9, 300]))) for _ in range(n_words)]
  return rng.choice([" ", "\n", "\r\n", ""]).join(words)


def made_record(rng):
  """A JSON value that may be a record, with fields of any type."""
  values = [None, 3, -2.5, True, [], ["a", "b"], [{"x": 1}], {"pile_set_name": "ArXiv"}, "", "label", "\ud800",
            "l" * 999]
  record = {"text": made_text(rng), "domain": rng.choice(values), "meta": rng.choice(values)}
  if rng.random() < 0.2:
    record["text"] = rng.choice(values)
  if rng.random() < 0.3:
    del record[rng.choice(list(record))]
  return rng.choice([[1], "text", None, 7]) if rng.random() < 0.05 else record


def made_content(rng, kind, encoding):
  """The bytes of a file."""
  if encoding == "binary":
    return rng.randbytes(rng.choice([2000, 50_000]))
  if encoding == "latin-1":
    return ("größe und Übermaß, " * 50).encode("latin-1")
  if encoding == "iso2022_jp":
    return ("日本語の文章。" * 50).encode("iso2022_jp")
  text = made_text(rng) if encoding in DECODED else made_text(rng) + "Latin letters are half zeros in UTF-16. " * 2000
  if kind == ".jsonl":
    # Escaped lone surrogates cannot be encoded, so records of other encodings than UTF-8 have only ASCII escapes.
    records = [made_record(rng) for _ in range(rng.choice([0, 1, 20]))] + [{"text": text}]
    lines = [json.dumps(record, ensure_ascii=rng.random() < 0.5 or "\\ud" in json.dumps(record)) for record in records]
    text = rng.choice(["\n", "\r\n"]).join(lines)
  return text.encode(encoding)


def damaged(rng, data):
  """A file's bytes as a bad disk or a broken download leaves them."""
  at = rng.randrange(len(data) + 1)
  return rng.choice([data[:at], data[:at] + b"\xff" * 9 + data[at:], data[:at] + bytes(40) + data[at:],
                     data[:at] + rng.randbytes(20) + data[at + 20:]])


def made_corpus(rng, folder):
  """Writes a corpus into a folder; returns (settings, whether it must be refused)."""
  must_refuse = False
  for i in range(rng.choice([1, 1, 2, 5])):
    kind, compression = rng.choice([".txt", ".jsonl"]), rng.choice(list(COMPRESS))
    encoding = rng.choice(REFUSED) if rng.random() < 0.08 else rng.choice(DECODED)
    data = COMPRESS[compression](made_content(rng, kind, encoding))
    is_damaged = rng.random() < 0.15
    name = rng.choice(NAMES)
    inside = [folder, *rng.sample(["sub", ".ipynb_checkpoints", "__MACOSX"], rng.choice([0, 0, 1]))]
    os.makedirs(os.path.join(*inside), exist_ok=True)
    path = os.path.join(os.fsencode(os.path.join(*inside)), os.fsencode(name) + f"{i}{kind}{compression}".encode())
    with open(path, "wb") as file:
      file.write(damaged(rng, data) if is_damaged else data)
    is_hidden = name == ".hidden" or inside[-1] in (".ipynb_checkpoints", "__MACOSX")
    must_refuse |= encoding in REFUSED and not is_damaged and not is_hidden
  if rng.random() < 0.2:
    os.symlink(rng.choice([".", "..", folder, "/nowhere"]), os.path.join(folder, "link"))
  settings = TextConfig(
      paths=(rng.choice([folder, os.path.join(folder, "**"), os.path.join(folder, "**", "*")]),),
      vocab_size=rng.choice([257, 260]), val_fraction=rng.choice([0.05, 0.5]), seed=rng.randrange(9),
      domain_field=rng.choice(["domain", "domain", "", "meta.pile_set_name", "absent"]),
      text_field=rng.choice(["text"] * 9 + ["body"]), separator=rng.choice(["", "", "\\n\\n", "字"]),
      max_bytes=rng.choice([0, 0, 0, 500]))
  return settings, must_refuse


def require_sound(directory, config):
  """Fails unless the token files in a folder hold the corpus, each document once and to the letter."""
  meta, encoder = files.read_json(directory / "meta.json"), tokenizer.load(directory / "tokenizer.json")
  found = collections.Counter()
  for split in tokens.SPLITS:
    data = tokens.Tokens.open(directory, split)
    assert data.n_tokens == meta["n_tokens"][split] and data.tokens_N.max(initial=0) < data.vocab_size
    if data.n_tokens:
      assert data.start_D[0] == 0 and np.all(np.diff(data.start_D) > 0) and data.start_D[-1] < data.n_tokens
      assert np.all(data.tokens_N[data.start_D] == meta["eot_id"])
    assert np.all((data.domain_D >= -1) & (data.domain_D < len(data.domains)))
    ends = [*data.start_D, data.n_tokens][1:]
    for start, end, domain in zip(data.start_D, ends, data.domain_D, strict=True):
      label = None if domain == tokens.NO_DOMAIN else data.domains[domain]
      found[encoder.decode(data.tokens_N[start + 1:end]), label] += 1
  documents = list(corpus.documents(config, corpus.Problems()))
  assert found == collections.Counter(documents)
  zeros = sum(document.text.count("\0") for document in documents)
  # Text that was read in the wrong encoding is full of zeros or broken characters.
  assert zeros * 4 <= sum(len(document.text) for document in documents)


def become(seed, tmp_path):
  """Makes tokens of the generated corpus of that number; returns what became of it."""
  rng = random.Random(seed)
  folder = str(tmp_path / "corpus")
  os.makedirs(folder)
  config, must_refuse = made_corpus(rng, folder)
  directory = tmp_path / "tokens"
  try:
    prepare.prepare(config, directory, progress=False, batch_bytes=rng.choice([1, 4_000_000]),
                    least_tokens=rng.choice([0, 0, 17]))
  except InputError as error:
    assert str(error) and "\n" not in str(error) and len(str(error)) < 3000
    str(error).encode()  # can be printed anywhere
    assert not directory.exists() or not list(directory.iterdir())
    return "refused"
  assert not must_refuse
  require_sound(directory, config)
  assert prepare.prepare(config, directory, progress=False)["complete"]
  return "tokens"


def test_generated_corpora_become_tokens_or_are_refused(tmp_path):
  ends = collections.Counter(become(seed, tmp_path / str(seed)) for seed in range(60))
  assert min(ends["tokens"], ends["refused"]) > 10


@pytest.mark.slow
def test_five_hundred_generated_corpora(tmp_path):
  ends = collections.Counter(become(seed, tmp_path / str(seed)) for seed in range(1000, 1500))
  assert min(ends["tokens"], ends["refused"]) > 100
