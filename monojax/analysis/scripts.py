r"""What kind of characters a token has: its script by Unicode's blocks, classes such as base64, and kinds of words.

A token that is not a whole character, such as the byte `\xd8`, has no script by itself. It gets the share of its
occurrences in a sample of text that are part of characters of the script.

Letters: V vocabulary, L scripts or classes, N tokens of a text, J characters or bytes of some tokens.
"""

import functools
import string
from collections.abc import Collection, Sequence

import numpy as np

from monojax.analysis.characters import partial_tokens
from monojax.text.tokens import Tokens

# The blocks of Unicode of each script, first and last code points. White space, digits and punctuation that scripts
# share are in other blocks, and so of no script.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Arabic": ((0x0600, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "Hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "Cyrillic": ((0x0400, 0x052F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Greek": ((0x0370, 0x03FF), (0x1F00, 0x1FFF)),
    "Armenian": ((0x0530, 0x058F),),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "Han": ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF)),
    "Bengali": ((0x0980, 0x09FF),),
    "Gurmukhi": ((0x0A00, 0x0A7F),),
    "Gujarati": ((0x0A80, 0x0AFF),),
    "Tamil": ((0x0B80, 0x0BFF),),
    "Telugu": ((0x0C00, 0x0C7F),),
    "Kannada": ((0x0C80, 0x0CFF),),
    "Malayalam": ((0x0D00, 0x0D7F),),
    "Thai": ((0x0E00, 0x0E7F),),
    "Tibetan": ((0x0F00, 0x0FFF),),
    "Burmese": ((0x1000, 0x109F),),
    "Ethiopic": ((0x1200, 0x139F),),
    "Khmer": ((0x1780, 0x17FF),),
}
# The characters of each class, all of which are equally likely in its texts.
CLASSES = {"base64": string.ascii_letters + string.digits + "+/", "DNA": "ACGT", "hexadecimal": string.hexdigits,
           "binary": "01"}
IMPOSSIBLE = 1e-10  # the probability of what a script or class does not have
_SPACE = 127        # stands for white space among the numbers of scripts
_OTHER = -1


def bytes_of_tokens(token_strings: Sequence[str], special_ids: Collection[int] = ()) -> list[bytes]:
  r"""The bytes of each token; none for tokens that are no text, such as the end-of-text token.

  Args:
    token_strings: a string for each token, in which `\xd8` and the like stand for bytes that are no whole character.
    special_ids: the tokens that are no text.
  """
  partial = partial_tokens(token_strings)
  values = [partial.get(i) or text.encode(errors="surrogatepass") for i, text in enumerate(token_strings)]
  return [b"" if i in special_ids else value for i, value in enumerate(values)]


def bytes_of(token_strings: Sequence[str], tokens: Tokens) -> list[bytes]:
  """The bytes of each token of a run; none for those that are no text."""
  return bytes_of_tokens(token_strings, tokens.special_ids or (tokens.eot_id,))  # version 0.1 saved only the latter


@functools.cache
def _blocks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(first, last, number of the script) of all blocks, rising."""
  blocks = sorted((first, last, i) for i, ranges in enumerate(SCRIPTS.values()) for first, last in ranges)
  first, last, number = (np.array(part) for part in zip(*blocks, strict=True))
  return first, last, number


def _scripts_of_characters(text: str) -> tuple[np.ndarray, np.ndarray]:
  """For each byte of a text in UTF-8 (its character's script, `_SPACE` or `_OTHER`; whether a character ends there).

  A byte that is no part of a character is one of the 128 surrogates, as `surrogateescape` writes it, and ends none.
  """
  code_J = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
  first, last, number = _blocks()
  block_J = np.maximum(np.searchsorted(first, code_J, side="right") - 1, 0)
  within_J = (code_J >= first[block_J]) & (code_J <= last[block_J])
  script_J = np.where(within_J, number[block_J], _OTHER).astype(np.int8)
  is_space = np.isin(code_J, (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x3000)) | ((code_J >= 0x2000) & (code_J <= 0x200A))
  script_J[is_space] = _SPACE
  escaped_J = (code_J >= 0xDC80) & (code_J <= 0xDCFF)
  n_bytes_J = np.select([(code_J < 0x80) | escaped_J, code_J < 0x800, code_J < 0x10000], [1, 2, 3], 4)
  ends = np.zeros(int(n_bytes_J.sum()), bool)
  ends[(np.cumsum(n_bytes_J) - 1)[~escaped_J]] = True
  return np.repeat(script_J, n_bytes_J), ends


def scripts_of(values: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """(the script of each token of a text, a number in `SCRIPTS` or -1; whether the token ends with a whole character).

  A token is of a script if all characters that it has a part of are; white space that it has beside others does not
  matter, since many tokenizers put a space in front of a word.

  Args:
    values: the bytes of tokens that follow each other.
  """
  script_N, ends_N = np.full(len(values), _OTHER, np.int8), np.zeros(len(values), bool)
  length_N = np.fromiter(map(len, values), np.int64, len(values))
  there = np.flatnonzero(length_N)
  if len(there):
    script_J, ends_J = _scripts_of_characters(b"".join(values).decode(errors="surrogateescape"))
    stops = np.cumsum(length_N)[there]
    starts = stops - length_N[there]
    least = np.minimum.reduceat(script_J, starts)
    largest = np.maximum.reduceat(np.where(script_J == _SPACE, np.int8(-2), script_J), starts)
    script_N[there] = np.where((least == largest) & (least != _SPACE), least, _OTHER)
    ends_N[there] = ends_J[stops - 1]
  return script_N, ends_N


def scripts_in(values: Sequence[bytes], token_N: np.ndarray, context_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`scripts_of` the tokens of a text, whose contexts are kept apart.

  Args:
    values: the bytes of each token of the vocabulary.
    token_N, context_N: the text, as `AnalysedText` has it.
  """
  begins = np.flatnonzero(np.diff(context_N, prepend=-1))
  apart = np.insert(token_N, begins, -2)  # a line break at the beginning of each context ends what came before
  script_J, ends_J = scripts_of([b"\n" if i == -2 else values[i] for i in apart.tolist()])
  return script_J[apart != -2], ends_J[apart != -2]


def partial_of(values: Sequence[bytes]) -> np.ndarray:
  """Whether each token is not whole characters, bool (V,)."""
  return np.array([value.decode(errors="ignore").encode() != value for value in values], bool)


def script_shares(values: Sequence[bytes], token_N: np.ndarray, context_N: np.ndarray) -> np.ndarray:
  """P(script | token) of every token and script, (V, L) float32.

  Of a token of whole characters it is 1 or 0; of others the share of its occurrences that are in the script.

  Args:
    values: the bytes of each token of the vocabulary.
    token_N, context_N: a sample of text, as `AnalysedText` has it, from which the latter are counted.
  """
  share_VL = np.zeros((len(values), len(SCRIPTS)), np.float32)
  partial_V = partial_of(values)
  whole = np.flatnonzero(~partial_V)
  script, _ = scripts_of([values[i] for i in whole.tolist()])
  share_VL[whole[script >= 0], script[script >= 0]] = 1
  is_partial_N = partial_V[token_N]
  if is_partial_N.any():
    script = scripts_in(values, token_N, context_N)[0][is_partial_N]
    ids = token_N[is_partial_N]
    np.add.at(share_VL, (ids[script >= 0], script[script >= 0]), 1)
    seen_V = np.bincount(ids[ids >= 0], minlength=len(values))
    share_VL[partial_V] /= np.maximum(seen_V[partial_V], 1)[:, None]
  return share_VL


def class_likelihoods(values: Sequence[bytes]) -> np.ndarray:
  """log P(token | class) of every token and class of `CLASSES`, (V, L) float64.

  A character of a class has the probability 1 / its number of characters, any other `IMPOSSIBLE`; a byte that is no
  whole character counts as one. Tokens that are no text count as one impossible character.
  """
  found_VL, classes = np.empty((len(values), len(CLASSES))), [frozenset(characters) for characters in CLASSES.values()]
  for i, value in enumerate(values):
    text = value.decode(errors="surrogateescape") or "\0"
    for c, characters in enumerate(classes):
      n_in = sum(character in characters for character in text)
      found_VL[i, c] = -n_in * np.log(len(characters)) + (len(text) - n_in) * np.log(IMPOSSIBLE)
  return found_VL


KINDS = ("white space", "line breaks", "numbers", "punctuation", "single capital letters", "words in capitals",
         "capitalised words", "words in lower case", "parts of words in lower case", "words in mixed case",
         "letters with digits", "words with punctuation", "parts of characters", "special tokens", "other characters")


def kinds_of(values: Sequence[bytes], share_VL: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """The kind of each token, and the names of the kinds: `KINDS`, and "Arabic script" and so on.

  Args:
    values: the bytes of each token.
    share_VL: from `script_shares`; a token is of the script that over half of its occurrences are in.
  """
  names = [*KINDS, *(f"{script} script" for script in SCRIPTS)]
  kind_V = np.array([KINDS.index(_kind(value)) for value in values], np.int32)
  best_V = share_VL.argmax(1)
  in_script_V = np.take_along_axis(share_VL, best_V[:, None], axis=1)[:, 0] > 0.5
  kind_V[in_script_V] = len(KINDS) + best_V[in_script_V]
  return kind_V, names


def _kind(value: bytes) -> str:
  """The kind of a token of no particular script."""
  text = value.decode(errors="replace")
  inner = text.strip()
  if not value:
    return "special tokens"
  if "\ufffd" in text:
    return "parts of characters"
  if not inner:
    return "line breaks" if "\n" in text or "\r" in text else "white space"
  if inner.isalpha():
    if inner.isupper():
      return "words in capitals" if len(inner) > 1 else "single capital letters"
    if inner.islower():
      return "words in lower case" if text[0].isspace() else "parts of words in lower case"
    return "capitalised words" if inner.istitle() else "words in mixed case"
  if inner.isdigit():
    return "numbers"
  if inner.isalnum():
    return "letters with digits"
  if not any(character.isalnum() for character in inner):
    return "punctuation" if inner.isascii() else "other characters"
  return "words with punctuation"
