"""Byte-level BPE: training on a spread sample of the corpus, and one face for any tokenizer.json."""

import array
import dataclasses
import functools
import hashlib
import heapq
import json
import re

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from monojax.config import InputError

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_BATCH_DOCUMENTS = 1000
# Text that misses the vocabulary asked for by at most this fraction is taken, with a message.
ACCEPTED_SHORTFALL = 0.1
# White space and what follows it up to the next white space, as GPT-2's pattern understands white space:
# no token of its crosses the end of such a word. Python's \s also holds the separators 1c to 1f.
_WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
_REMEMBERED_WORDS = 400_000
_REMEMBERED_CHARACTERS = 40  # longer words seldom recur


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A Hugging Face tokenizer without special treatment of any text.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    vocab_size: one more than the largest id.
    eot_id: the id that marks where a document begins.
    by_word: words can be encoded one by one, and are remembered: several times as fast.
  """
  backend: tokenizers.Tokenizer
  vocab_size: int
  eot_id: int
  by_word: bool
  _ids: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)  # word -> int32 as bytes

  def encode_batch(self, texts):
    """An int32 array of ids for each text; a special token's name in a text is plain text."""
    if not self.by_word:
      encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
      return [np.array(encoding.ids, np.int32) for encoding in encodings]
    words_by_text = [_WORD.findall(text) for text in texts]
    if len(self._ids) > _REMEMBERED_WORDS:
      self._ids.clear()
    new = list(set().union(*words_by_text).difference(self._ids))
    encodings = self.backend.encode_batch_fast(new, add_special_tokens=False)
    for word, encoding in zip(new, encodings, strict=True):
      self._ids[word] = array.array("i", encoding.ids).tobytes()
    ids = [np.frombuffer(b"".join(map(self._ids.__getitem__, words)), np.int32) for words in words_by_text]
    for word in new:
      if len(word) > _REMEMBERED_CHARACTERS:
        del self._ids[word]
    return ids

  def decode(self, ids):
    """The text of a sequence of ids; bytes that are not a whole character become U+FFFD."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

  @functools.cached_property
  def _added(self):
    return {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}

  @functools.cached_property
  def _decoder(self):
    """The decoder's JSON as text: names the kind of tokenizer."""
    return json.dumps(json.loads(self.backend.to_str())["decoder"], ensure_ascii=False)

  def token_bytes(self, id):
    """The bytes of text that the token `id` stands for; none for an id that no token has."""
    if id in self._added:
      return self._added[id].encode()
    token = self.backend.id_to_token(id)
    if token is None:
      return b""
    if "ByteLevel" in self._decoder:
      values = _byte_values()
      return bytes(values[c] for c in token)
    if "▁" in self._decoder:  # SentencePiece: decoding a lone token would drop its leading space
      byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
      return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    return self.decode([id]).encode()

  def token_strings(self):
    r"""A string to show for each id: text where it is whole characters, other bytes as `\xd8`."""
    return [self.token_bytes(i).decode(errors="backslashreplace") for i in range(self.vocab_size)]


@functools.cache
def _byte_values():
  """The byte for each of the 256 characters that byte-level BPE (GPT-2) writes bytes as."""
  plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def load(path):
  """The `Tokenizer` of a tokenizer.json.

  Raises:
    InputError: it cannot be read, or has no end-of-text token.
  """
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises bare Exceptions
    raise InputError(f"tokenizer {str(path)!r} cannot be read: {error}") from error
  return _wrap(backend, path)


def _wrap(backend, name):
  """`backend` set up to encode any text in full, always alike."""
  backend.no_truncation()
  backend.no_padding()
  backend.encode_special_tokens = True
  if getattr(backend.model, "dropout", None):
    backend.model.dropout = None
  vocabulary = backend.get_vocab(with_added_tokens=True)
  eot = next((token for token in _END_OF_TEXT_NAMES if token in vocabulary), None)
  if eot is None:
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    raise InputError(f"tokenizer {str(name)!r} has none of the end-of-text tokens "
                     f"{list(_END_OF_TEXT_NAMES)}; its special tokens are {special}: add {END_OF_TEXT} to it")
  return Tokenizer(backend, max(vocabulary.values()) + 1, vocabulary[eot], _splits_like_gpt2(backend))


def _splits_like_gpt2(backend):
  """Whether `backend` splits plain text by GPT-2's pattern before anything else looks at it."""
  settings = json.loads(backend.to_str())
  splitter = settings["pre_tokenizer"] or {}
  return (settings["normalizer"] is None and splitter.get("type") == "ByteLevel"
          and splitter["use_regex"] and not splitter["add_prefix_space"]
          and all(token["special"] for token in settings["added_tokens"]))


def spread_sample(documents, n_bytes):
  """Up to `n_bytes` of UTF-8 text spread evenly over the corpus, in bounded memory.

  Keeps the documents whose texts have the smallest hashes, so the choice depends on neither the
  corpus' size nor its order; of texts that occur more than once it keeps every copy or nearly so.

  Args:
    documents: an iterable of `corpus.Document`.
    n_bytes: the bound.

  Returns:
    a list of the texts as UTF-8, at least one where there is a document.
  """
  kept, total = [], 0  # a heap whose first item has the largest hash
  for document in documents:
    text = document.text.encode()
    hash = int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tokenizer").digest(), "little")
    heapq.heappush(kept, (-hash, text))
    total += len(text)
    while total > n_bytes and len(kept) > 1:
      total -= len(heapq.heappop(kept)[1])
  return [text for _, text in kept]


def train(texts, vocab_size):
  """Trains a byte-level BPE; the same texts give the same tokenizer in whatever order they come.

  Args:
    texts: a list of UTF-8 bytes.
    vocab_size: tokens in all: `<|endoftext|>` (id 0), the 256 bytes and the merges.

  Raises:
    InputError: the texts yield fewer than nine tenths of these tokens; a few less are taken as they are.
  """
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=[END_OF_TEXT], min_frequency=2, show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  batches = ([text.decode() for text in texts[i:i + _BATCH_DOCUMENTS]]
             for i in range(0, len(texts), _BATCH_DOCUMENTS))
  backend.train_from_iterator(batches, trainer, length=len(texts))
  n_tokens = backend.get_vocab_size()
  if n_tokens < vocab_size:
    found = f"tokens.vocab_size={vocab_size}: {sum(map(len, texts))} bytes of text yield only {n_tokens} tokens"
    if n_tokens < (1 - ACCEPTED_SHORTFALL) * vocab_size:
      raise InputError(f"{found}: give more text (--tokens.paths, --tokens.tokenizer_bytes) or set "
                       f"--tokens.vocab_size={n_tokens} or less")
    print(f"{found}; going on with those", flush=True)
  return _wrap(backend, "trained")
