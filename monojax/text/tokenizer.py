"""Tokenizers: training a byte-level BPE tokenizer, and using any tokenizer.json in one and the same way."""

import array
import dataclasses
import functools
import hashlib
import heapq
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from monojax.config import InputError
from monojax.text.corpus import END_OF_TEXT, Document
from monojax.text.sources import shown

# The tokens that end a document in common tokenizers: GPT-2, Llama 3, Llama 2, Gemma, DeepSeek, Command, ChatML, the
# turn of Llama 3, BERT. The first that a tokenizer has is taken.
_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>", "<EOS_TOKEN>",
               "<|im_end|>", "<|eot_id|>", "[SEP]")
_SEPARATORS = _END_TOKENS[:2]  # those that stand between documents also where a model ends its own text by another one
_SHOWN_TOKENS = 20  # how many of a tokenizer's tokens a message lists at most
_LARGEST_ID = 2**24  # a subject has an embedding for each id up to the largest
_BATCH_DOCUMENTS = 1000
# The longest word that a tokenizer is trained on: a merge takes time with the square of a word's length.
_TRAINED_CHARACTERS = 1000
# Text that yields fewer tokens than asked for is accepted, with a message, if at most this fraction is missing.
ACCEPTED_SHORTFALL = 0.1
# A word: white space and what follows it up to the next white space. A tokenizer that splits text by GPT-2's pattern
# has no token that crosses the end of such a word. Python's \s matches the separators 1c to 1f, GPT-2's does not.
_WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
_LONG_WORD = re.compile(rf"(?<!\S)\S{{{_TRAINED_CHARACTERS},}}|(?<!\s)\s{{{_TRAINED_CHARACTERS},}}")
_REMEMBERED_WORDS = 400_000
_REMEMBERED_CHARACTERS = 40  # longer words seldom occur again


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A Hugging Face tokenizer, set up to treat all text alike.

  Attributes:
    backend: the tokenizer of the library `tokenizers`.
    vocab_size: one more than the largest id.
    eot_id: the id of the end-of-text token, which is put in front of every document.
    by_word: whether text can be encoded word by word. The ids of words are then remembered, which is several times as
      fast.
  """
  backend: tokenizers.Tokenizer
  vocab_size: int
  eot_id: int
  by_word: bool
  # The remembered words, each with the bytes of its ids as int32.
  _ids: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, an int32 array. The name of a special token in a text is encoded as any other text.

    Raises:
      InputError: the tokenizer fails on a text, for instance because its regular expression takes too long.
    """
    if not self.by_word:
      return [np.array(encoding.ids, np.int32) for encoding in self._encodings(texts)]
    words_by_text = [_WORD.findall(text) for text in texts]
    if len(self._ids) > _REMEMBERED_WORDS:
      self._ids.clear()
    new = list(set().union(*words_by_text).difference(self._ids))
    for word, encoding in zip(new, self._encodings(new), strict=True):
      self._ids[word] = array.array("i", encoding.ids).tobytes()
    ids = [np.frombuffer(b"".join(map(self._ids.__getitem__, words)), np.int32) for words in words_by_text]
    for word in new:
      if len(word) > _REMEMBERED_CHARACTERS:
        del self._ids[word]
    return ids

  def _encodings(self, texts: Sequence[str]) -> Sequence[Any]:
    """What the library makes of each text."""
    try:
      return self.backend.encode_batch_fast(texts, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
      raise
    except BaseException as error:  # a panic of the library's Rust code is no Exception
      raise InputError(f"the tokenizer cannot encode some of the text: {' '.join(str(error).split())}") from error

  def for_marked_text(self) -> "Tokenizer":
    """The same for text in which the names of special tokens stand for them, as a template for chats writes it."""
    backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
    backend.encode_special_tokens = False
    return dataclasses.replace(self, backend=backend, by_word=False)

  @property
  def end_token(self) -> str:
    """The text of the end-of-text token."""
    return self.backend.id_to_token(self.eot_id) or ""

  def decode(self, ids: Iterable[int]) -> str:
    """The text of a sequence of ids, in which U+FFFD stands for bytes that are not a whole character."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

  @property
  def special_ids(self) -> tuple[int, ...]:
    """The ids of tokens that are no text, such as the end-of-text token, rising."""
    added = self.backend.get_added_tokens_decoder()
    return tuple(sorted({self.eot_id, *(i for i, token in added.items() if token.special)}))

  @functools.cached_property
  def _added(self) -> dict[int, str]:
    """The names of the special and other added tokens, by id."""
    return {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}

  @functools.cached_property
  def _decoder(self) -> str:
    """The settings of the tokenizer's decoder as JSON, by which the kind of tokenizer can be told."""
    return json.dumps(json.loads(self.backend.to_str())["decoder"], ensure_ascii=False)

  def byte_pairs(self) -> dict[str, list] | None:
    """The tokenizer as plain lists, for programs that encode without the library, such as a page.

    Returns:
      {"tokens": the tokens in order of their ids, in the characters that GPT-2 writes for bytes, "" where an id has
      none; "merges": pairs of such texts, the first merge first}; None where it is no byte-level BPE that splits text
      by GPT-2's pattern.
    """
    model = json.loads(self.backend.to_str())["model"]
    others = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
              "ignore_merges")
    if not self.by_word or model.get("type") != "BPE" or any(model.get(name) for name in others):
      return None
    merges = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    return {"tokens": [self.backend.id_to_token(i) or "" for i in range(self.vocab_size)], "merges": merges}

  def token_bytes(self, id: int) -> bytes:
    """The bytes of text that a token stands for, which are none for an id that no token has."""
    if id in self._added:
      return self._added[id].encode()
    token = self.backend.id_to_token(id)
    if token is None:
      return b""
    values = _byte_values()
    if "ByteLevel" in self._decoder and all(c in values for c in token):  # others, such as "<a b>", are text
      return bytes(values[c] for c in token)
    if "ByteLevel" in self._decoder:
      return token.encode()
    if "▁" in self._decoder:  # a SentencePiece tokenizer, which drops the leading space of a token decoded alone
      byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
      return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    return self.decode([id]).encode()

  def token_strings(self) -> list[str]:
    r"""A string to show for each token: its text, in which `\xd8` and the like stand for parts of characters."""
    return [self.token_bytes(i).decode(errors="backslashreplace") for i in range(self.vocab_size)]

  def partial_tokens(self) -> dict[int, bytes]:
    """The bytes of those tokens that are not whole characters, by id."""
    values = {i: self.token_bytes(i) for i in range(self.vocab_size)}
    return {i: value for i, value in values.items() if value.decode(errors="ignore").encode() != value}


@functools.cache
def _byte_values() -> dict[str, int]:
  """The 256 characters that byte-level BPE (GPT-2) writes in place of bytes, each with its byte."""
  plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def load(path: str | os.PathLike[str], end_token: str = "", eos_token: str | None = None, name: str = "") -> Tokenizer:
  """The tokenizer in a tokenizer.json.

  Args:
    path: the file.
    end_token: the token that is put in front of every document; by default see `_end_of`.
    eos_token: the token that the tokenizer's model ends its own text with, if it is known.
    name: what errors call it, if not by its path.

  Raises:
    InputError: the file cannot be read, it is no tokenizer, or it has no such end token.
  """
  name = shown(name or os.fspath(path))
  try:
    backend = tokenizers.Tokenizer.from_buffer(pathlib.Path(path).read_bytes())
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # the library raises bare Exceptions, and its Rust code panics
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:300]
    raise InputError(f"tokenizer {name!r} cannot be read: {reason}") from error
  return _wrap(backend, name, end_token, eos_token)


def _wrap(backend: Any, name: str, end_token: str = "", eos_token: str | None = None) -> Tokenizer:
  """A tokenizer of the library, set up to encode all of any text and always in the same way.

  Args:
    backend: the tokenizer of the library.
    name: what errors call it.
    end_token, eos_token: as for `load`.
  """
  backend.no_truncation()
  backend.no_padding()
  backend.encode_special_tokens = True
  if getattr(backend.model, "dropout", None):
    backend.model.dropout = None
  vocabulary = backend.get_vocab(with_added_tokens=True)
  special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
  end = end_token if end_token in vocabulary else None if end_token else _end_of(vocabulary, special, eos_token)
  if end is None:
    wanted = f"no token {end_token!r}" if end_token else f"none of the end-of-text tokens {list(_END_TOKENS)}"
    more = f" and {len(special) - _SHOWN_TOKENS} more" if len(special) > _SHOWN_TOKENS else ""
    raise InputError(f"tokenizer {name!r} has {wanted}; its special tokens are {special[:_SHOWN_TOKENS]}{more}: name "
                     "the one that ends a document with --tokens.end_token")
  largest = max(vocabulary, key=vocabulary.__getitem__)
  if vocabulary[largest] >= _LARGEST_ID:
    raise InputError(f"tokenizer {name!r} has the id {vocabulary[largest]} for {largest!r}: ids must be below "
                     f"{_LARGEST_ID}, since a subject has an embedding for each id up to the largest")
  return Tokenizer(backend, vocabulary[largest] + 1, vocabulary[end], _splits_like_gpt2(backend))


def _end_of(vocabulary: Mapping[str, int], special: Collection[str], eos_token: str | None) -> str | None:
  """The token that ends a document, or None: the first that a tokenizer has of

  * the special tokens that only ever stand between documents, `_SEPARATORS`;
  * its model's own `eos_token`, with which an assistant may end its turn;
  * special tokens that end a document elsewhere, `_END_TOKENS`;
  * other tokens of these names. Gemma, for instance, has </s> as a tag of HTML and <eos> as a special token.
  """
  candidates = [*(token for token in _SEPARATORS if token in special), eos_token,
                *(token for token in _END_TOKENS if token in special), *_END_TOKENS]
  return next((token for token in candidates if token in vocabulary), None)


def _splits_like_gpt2(backend: Any) -> bool:
  """Whether a tokenizer splits plain text by GPT-2's pattern before it does anything else with it."""
  settings = json.loads(backend.to_str())
  splitter = settings["pre_tokenizer"] or {}
  return (settings["normalizer"] is None and splitter.get("type") == "ByteLevel"
          and splitter["use_regex"] and not splitter["add_prefix_space"]
          and all(token["special"] for token in settings["added_tokens"]))


def spread_sample(documents: Iterable[Document], n_bytes: int) -> list[bytes]:
  """A sample of the corpus, spread evenly over it and chosen in bounded memory.

  It consists of the documents whose texts have the smallest hashes, so that neither the size of the corpus nor its
  order matters to whether one text is preferred to another. Of a text that occurs more than once, all copies are
  chosen, or all but a few.

  Args:
    documents: the documents of the corpus.
    n_bytes: how many bytes of text are chosen at most.

  Returns:
    The texts in UTF-8; at least one if there is a document.
  """
  kept: list[tuple[int, bytes]] = []  # a heap whose first item has the largest hash
  total = 0
  for document in documents:
    text = document.text.encode()
    hash = int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tokenizer").digest(), "little")
    heapq.heappush(kept, (-hash, text))
    total += len(text)
    while total > n_bytes and len(kept) > 1:
      total -= len(heapq.heappop(kept)[1])
  return [text for _, text in kept]


def train(texts: Sequence[bytes], vocab_size: int) -> Tokenizer:
  """Trains a byte-level BPE tokenizer; the order of the texts does not matter.

  Words of more than a thousand characters, such as sequences of DNA, are cut into shorter ones first, because the time
  that training takes would rise with the square of their length. When text is encoded, words are never cut.

  Args:
    texts: texts in UTF-8.
    vocab_size: the number of tokens in all: `<|endoftext|>`, whose id is 0, the 256 bytes, and the merges.

  Raises:
    InputError: the texts yield fewer than nine tenths of these tokens. If fewer are missing, the tokenizer has those
      that there are.
  """
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=[END_OF_TEXT], min_frequency=2, show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  batches: Iterator[list[str]] = ([piece for text in texts[i:i + _BATCH_DOCUMENTS] for piece in _pieces(text.decode())]
                                  for i in range(0, len(texts), _BATCH_DOCUMENTS))
  backend.train_from_iterator(batches, trainer)
  n_tokens = backend.get_vocab_size()
  if n_tokens < vocab_size:
    found = f"tokens.vocab_size={vocab_size}: {sum(map(len, texts))} bytes of text yield only {n_tokens} tokens"
    if n_tokens < (1 - ACCEPTED_SHORTFALL) * vocab_size:
      raise InputError(f"{found}: give more text (--tokens.paths, --tokens.tokenizer_bytes) or set "
                       f"--tokens.vocab_size={n_tokens} or less")
    print(f"{found}; going on with these", flush=True)
  return _wrap(backend, "trained")


def _pieces(text: str) -> list[str]:
  """A text, cut in the words that are too long to train a tokenizer on."""
  cuts = [at for word in _LONG_WORD.finditer(text)
          for at in range(word.start() + _TRAINED_CHARACTERS, word.end(), _TRAINED_CHARACTERS)]
  return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
