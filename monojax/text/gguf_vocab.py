"""The tokenizer of a model in a .gguf file, built from the vocabulary and the merges that the file keeps.

The keys of the file are read by the package `gguf`, which is optional: pip install 'monojax[pretrained]'.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from monojax.config import InputError, require
from monojax.text.sources import shown

_PREFIX = "tokenizer."
_CONTROL, _USER_DEFINED = 3, 4  # kinds of token, of which normal text has others
_SPACE = "▁"  # what SentencePiece writes in place of a space
_LONGEST_WORD = 100  # of more characters, BERT makes its token for what is unknown

# How Llama 3 and Qwen 2 cut text into words before they merge; Qwen takes every digit for itself.
_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")


def keys(path: str | os.PathLike[str]) -> dict[str, Any]:
  """What a .gguf file says of its tokenizer: {key without "tokenizer.": value}, for instance "ggml.tokens".

  Raises:
    InputError: the file cannot be read, or is damaged, or the package `gguf` is missing.
  """
  name = shown(os.fspath(path))
  try:
    import gguf
  except ImportError as error:
    raise InputError(f"{name!r} is a .gguf file: pip install 'monojax[pretrained]' to read it") from error
  try:
    reader = gguf.GGUFReader(path)
    return {key.removeprefix(_PREFIX): field.contents() for key, field in reader.fields.items()
            if key.startswith(_PREFIX)}
  except Exception as error:  # what the package raises for a damaged file depends on where it is damaged
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    raise InputError(f"{name!r} cannot be read as a .gguf file ({reason}): it is damaged, or not whole") from error


def build(found: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
  """The tokenizer that the keys of a .gguf file describe.

  Args:
    found: from `keys`.
    name: what errors call the file.

  Raises:
    InputError: the file holds no vocabulary, a vocabulary of another kind than those that monojax knows, or one that
      contradicts itself.
  """
  model = str(found.get("ggml.model", ""))
  require(model in _MODELS and found.get("ggml.tokens"), "tokenizer", name,
          f"the file's vocabulary is of the kind {model!r}; monojax knows {', '.join(_MODELS)}: give the model's "
          "tokenizer.json with --tokens.tokenizer")
  require(len(_kinds(found)) == len(found["ggml.tokens"]), "tokenizer", name,
          f"it has {len(found['ggml.tokens'])} tokens and {len(_kinds(found))} kinds of them: the file is damaged")
  try:
    backend = _MODELS[model](found, name)
  except (KeyboardInterrupt, SystemExit, InputError):
    raise
  except BaseException as error:  # the library raises bare Exceptions, and its Rust code panics
    raise InputError(f"tokenizer {name!r}: the file's vocabulary cannot be used ({' '.join(str(error).split())[:200]})"
                     ) from error
  backend.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)
                      for token, kind in zip(found["ggml.tokens"], _kinds(found), strict=True)
                      if kind in (_CONTROL, _USER_DEFINED)])
  n_tokens = len(found["ggml.tokens"])
  require(max(backend.get_vocab(with_added_tokens=True).values()) < n_tokens, "tokenizer", name,
          f"not all of its {n_tokens} tokens can be told apart: the file is damaged")
  return backend


def token_at(found: Mapping[str, Any], *names: str) -> str | None:
  """The text of the token whose id is under the first of some keys that the file has, such as "bos_token_id"."""
  tokens = found.get("ggml.tokens", [])
  ids = [found[f"ggml.{name}"] for name in names if f"ggml.{name}" in found]
  return tokens[ids[0]] if ids and 0 <= ids[0] < len(tokens) else None


def adds_bos(found: Mapping[str, Any]) -> bool:
  """Whether the model wants a token in front of every text; files that do not say it have the kind's custom."""
  customary = found.get("ggml.model") in ("llama", "bert") or found.get("ggml.pre") in _LLAMA_3
  return bool(found.get("ggml.add_bos_token", customary))


def _kinds(found: Mapping[str, Any]) -> Sequence[int]:
  return found.get("ggml.token_type") or [1] * len(found["ggml.tokens"])


def _ids(found: Mapping[str, Any]) -> dict[str, int]:
  """{token: id}."""
  return {token: i for i, token in enumerate(found["ggml.tokens"])}


def _byte_level(found: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
  """BPE over bytes, as GPT-2 has it: the file keeps the vocabulary, the merges and the name of how words are cut."""
  pre = found.get("ggml.pre", "default")
  require(pre in _PRE, "tokenizer", name, f"the file cuts text into words by the rule {pre!r}; monojax knows "
          f"{', '.join(_PRE)}: give the model's tokenizer.json with --tokens.tokenizer")
  vocabulary, merges = _ids(found), []
  for merge in found.get("ggml.merges", ()):
    left, space, right = merge.partition(" ")
    require(space and {left, right, left + right} <= vocabulary.keys(), "tokenizer", name,
            f"its merge {merge!r} is not of tokens that it has: the file is damaged")
    merges.append((left, right))
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _LLAMA_3))
  if pre in _QWEN_2:
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = _PRE[pre]()
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentence_piece(found: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
  """BPE by scores, as SentencePiece has it: of all neighbours, those join first whose joined token scores highest.

  A merge list says the same: every way to make a token of two others, the tokens in the order of their scores.
  Characters that no token has become tokens of their bytes.
  """
  tokens, scores, kinds = found["ggml.tokens"], found.get("ggml.scores", ()), _kinds(found)
  require(len(scores) == len(tokens), "tokenizer", name, f"it has {len(tokens)} tokens and {len(scores)} scores")
  vocabulary = _ids(found)
  joinable = {token for token, kind in zip(tokens, kinds, strict=True) if kind not in (_CONTROL, 6)}  # 6: bytes
  order = sorted(range(len(tokens)), key=lambda i: -scores[i])
  merges = [(token[:cut], token[cut:]) for token in (tokens[i] for i in order if tokens[i] in joinable)
            for cut in range(1, len(token)) if token[:cut] in joinable and token[cut:] in joinable]
  unknown = token_at(found, "unknown_token_id") or "<unk>"
  backend = tokenizers.Tokenizer(models.BPE(
      vocabulary, merges, unk_token=unknown if unknown in vocabulary else None, fuse_unk=True, byte_fallback=True))
  spaces = normalizers.Replace(" ", _SPACE)
  back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if found.get("ggml.add_space_prefix", True):
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    back.append(decoders.Strip(" ", 1, 0))
  else:
    backend.normalizer = spaces
  backend.decoder = decoders.Sequence(back)
  return backend


def _word_piece(found: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
  """BERT's WordPiece. The file writes ▁ in front of tokens that begin a word, where BERT writes ## before the others.

  Whether capital letters count is not in the file; they do if some token has one.
  """
  kinds = _kinds(found)
  plain = [token if kind == _CONTROL or token[:1] == "[" and token[-1:] == "]" else
           token[1:] if token.startswith(_SPACE) else f"##{token}"
           for token, kind in zip(found["ggml.tokens"], kinds, strict=True)]
  unknown = token_at(found, "unknown_token_id") or "[UNK]"
  require(unknown in plain, "tokenizer", name, f"it has no token {unknown!r} for what is unknown")
  cased = any(token != token.lower() for token, kind in zip(plain, kinds, strict=True)
              if kind != _CONTROL and token[:1] != "[")
  backend = tokenizers.Tokenizer(models.WordPiece({token: i for i, token in enumerate(plain)}, unk_token=unknown,
                                                  max_input_chars_per_word=_LONGEST_WORD))
  backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece()
  first = token_at(found, "cls_token_id", "bos_token_id") or "[CLS]"
  last = token_at(found, "seperator_token_id", "separator_token_id", "eos_token_id") or "[SEP]"  # the first is a slip
  if {first, last} <= set(plain):
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(token, plain.index(token)) for token in (first, last)])
  return backend


_MODELS: dict[str, Callable[[Mapping[str, Any], str], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece}


def _gpt_2() -> Any:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
  return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt_2()])


def _words(digits: str) -> Any:
  return pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA_3, _QWEN_2 = ("llama-bpe", "llama3", "llama-v3"), ("qwen2",)
# The names that files give to their rule of cutting text into words, and the rule.
_PRE: dict[str, Callable[[], Any]] = {
    "default": _gpt_2, "gpt-2": _gpt_2, "phi-2": _gpt_2, "smollm": _single_digits, "starcoder": _single_digits,
    **dict.fromkeys(_LLAMA_3, lambda: _words(r"\p{N}{1,3}")), **dict.fromkeys(_QWEN_2, lambda: _words(r"\p{N}"))}
