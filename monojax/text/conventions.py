"""The tokenizer of a model that something else trained, and how that model wants its text: its conventions.

Some models were trained with a certain token in front of all they read, which is called BOS (beginning of sequence)
and without which they are lost; others have never seen one. Where a model says which it is, differs between formats.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from monojax import hub
from monojax.config import InputError, require
from monojax.text import gguf_vocab
from monojax.text.sources import shown

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclasses.dataclass(frozen=True)
class Conventions:
  """How a model wants its text.

  Attributes:
    bos_token: the token that stands in front of all that the model reads, if it has one. For BERT it is [CLS].
    adds_bos: whether the model's own tokenizer puts it there.
    eos_token: the token that ends what the model writes, if it is known.
    chat_template: the Jinja template that makes one text of the messages of a chat; "" if there is none.
  """
  bos_token: str | None = None
  adds_bos: bool = False
  eos_token: str | None = None
  chat_template: str = ""

  def bos(self, wanted: str) -> str | None:
    """The token that is put in front of every context, or None.

    Args:
      wanted: "auto" for what the model's own tokenizer does, "always" or "never".

    Raises:
      InputError: one is wanted, and the model has none.
    """
    require(wanted != "always" or self.bos_token, "tokens.bos", wanted,
            "this tokenizer names no token that stands in front of text: leave the setting out")
    return self.bos_token if wanted == "always" or wanted == "auto" and self.adds_bos else None


@dataclasses.dataclass(frozen=True)
class Given:
  """A tokenizer that is given: the content of its tokenizer.json, and its model's conventions."""
  content: bytes
  conventions: Conventions


def read(place: str) -> Given:
  """The tokenizer that `--tokens.tokenizer` names, as far as it can be read without making it.

  Args:
    place: a tokenizer.json, a folder of a Hugging Face model, hf:NAME or hf:NAME@REVISION, a .gguf file,
      or package:NAME.

  Raises:
    InputError: there is nothing that can be read, or it holds no tokenizer.
  """
  path = hub.local(place, list(_FILES))
  if path.suffix == ".gguf":
    return _of_gguf(path)
  if path.is_dir():
    require((path / _FILES[0]).is_file(), "tokenizer", shown(place), "the folder has no tokenizer.json: have "
            "transformers write one, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
    return _of_folder(path)
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f"tokenizer {shown(place)!r} cannot be read: {error.strerror}") from error
  return Given(content, _of_settings(_parsed(content), {}, ""))


def _of_folder(folder: pathlib.Path) -> Given:
  """What the files of a Hugging Face folder say; all but tokenizer.json may be missing."""
  content, settings = (folder / _FILES[0]).read_bytes(), dict[str, Any]()
  for name in (_FILES[2], _FILES[1]):  # the second says more, and counts where both say something
    if (folder / name).is_file():
      settings |= _parsed((folder / name).read_bytes())
  template = folder / _FILES[3]
  return Given(content, _of_settings(_parsed(content), settings, template.read_text() if template.is_file() else ""))


def _parsed(content: bytes) -> dict[str, Any]:
  """A JSON object; an empty one for what is none, since whoever makes the tokenizer says what is wrong with it."""
  try:
    found = json.loads(content)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _of_settings(tokenizer: dict[str, Any], settings: dict[str, Any], template: str) -> Conventions:
  """The conventions that the contents of tokenizer.json and tokenizer_config.json describe.

  Where the first puts a token in front of text, that counts, as in transformers 5, which looks at nothing else. Where
  only the second asks for one, older versions put it there, and so the model was trained with it.
  """
  first = _put_in_front(tokenizer.get("post_processor"))
  bos_token = first or _name(settings.get("bos_token"))
  return Conventions(bos_token, first is not None or bool(bos_token and settings.get("add_bos_token")),
                     _name(settings.get("eos_token")), template or _template(settings.get("chat_template")))


def _put_in_front(processor: Any) -> str | None:
  """The token that the last stage of a tokenizer.json puts in front of a text, if it does."""
  if not isinstance(processor, dict):
    return None
  if processor.get("type") == "Sequence":
    return next(filter(None, map(_put_in_front, processor.get("processors", ()))), None)
  if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
    return processor["cls"][0]
  parts = processor.get("single") if processor.get("type") == "TemplateProcessing" else None
  return parts[0].get("SpecialToken", {}).get("id") if parts else None


def _name(token: Any) -> str | None:
  """The text of a token as tokenizer_config.json gives it, which is a string or a record."""
  return (token.get("content") if isinstance(token, dict) else token) or None


def _template(value: Any) -> str:
  """The template for chats: there may be several, of which one is the default."""
  if isinstance(value, list):
    named = {item.get("name"): item.get("template", "") for item in value if isinstance(item, dict)}
    return named.get("default") or ""
  return value if isinstance(value, str) else ""


def _of_gguf(path: str | os.PathLike[str]) -> Given:
  """The tokenizer of a .gguf file, which is built from the vocabulary in it."""
  name = shown(os.fspath(path))
  found = gguf_vocab.keys(path)
  backend = gguf_vocab.build(found, name)
  bos = gguf_vocab.token_at(found, *(("cls_token_id",) if found["ggml.model"] == "bert" else ()), "bos_token_id")
  if bos is None and found["ggml.model"] == "bert":
    bos = _put_in_front(_parsed(backend.to_str().encode()).get("post_processor"))
  return Given(backend.to_str().encode(), Conventions(
      bos, gguf_vocab.adds_bos(found) and bos is not None, gguf_vocab.token_at(found, "eos_token_id"),
      found.get("chat_template", "")))
