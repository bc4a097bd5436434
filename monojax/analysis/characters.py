r"""Characters that a text's tokens share: how tokens that hold only parts of characters are shown.

A tokenizer that works on bytes can cut a character, which has up to four bytes in UTF-8. The bytes of 끊, for instance,
are eb 81 8a, and each can be a token of its own. Alone such a token can only be shown as its byte, `\xeb`; side by side
the three are shown as the character. What is joined here are the tokens of characters that are whole: where a window
of text begins or ends within a character, the bytes that are left stay as they are.

Letters: W tokens of a window.
"""

import itertools
import re
import typing
from collections.abc import Mapping, Sequence

import numpy as np

# How `bytes.decode(errors="backslashreplace")` shows a byte that is no part of a whole character.
_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


class Piece(typing.NamedTuple):
  """The tokens number `start` to `stop - 1` of a window, and their text."""
  start: int
  stop: int
  text: str


def pieces(tokens: Sequence[bytes]) -> list[Piece]:
  r"""Neighbouring tokens, joined where a character has bytes in both; every other token is a piece by itself.

  Two characters may share a token, so that a piece can hold more than one: the tokens `a\xeb`, `\x81\x8a\xec` and
  `\x9d\xb4` are one piece, "a끊이".

  Args:
    tokens: the bytes of each token, in the order of the text.

  Returns:
    The pieces in order, which hold each token once. In their texts, `\xd8` and the like stand for bytes that are no
    part of a whole character.
  """
  whole = b"".join(tokens)
  place, starts = 0, {0}  # where a character starts, or a byte that is none
  for character in whole.decode(errors="surrogateescape"):  # a byte that is none becomes one of 128 surrogates
    place += 1 if "\udc80" <= character <= "\udcff" else len(character.encode())
    starts.add(place)
  found, first, start = [], 0, 0
  for last, stop in enumerate(itertools.accumulate(map(len, tokens))):
    if stop in starts:
      found.append(Piece(first, last + 1, whole[start:stop].decode(errors="backslashreplace")))
      first, start = last + 1, stop
  return found


def window_pieces(ids_W: np.ndarray, token_strings: Sequence[str], partial_tokens: Mapping[int, bytes]) -> list[Piece]:
  """The pieces of a window of tokens that are known by their ids.

  Args:
    ids_W: token ids, -1 before and after the text.
    token_strings: a string for each token id.
    partial_tokens: the bytes of those tokens that are not whole characters, by id.

  Returns:
    The `pieces` of the tokens, whose numbers are places in the window.
  """
  ids = ids_W.tolist()
  places = [place for place, token in enumerate(ids) if token >= 0]
  if sum(ids[place] in partial_tokens for place in places) < 2:  # no two that could share a character
    return [Piece(place, place + 1, token_strings[ids[place]]) for place in places]
  tokens = [partial_tokens.get(ids[place]) or _encoded(token_strings[ids[place]]) for place in places]
  return [Piece(places[start], places[stop - 1] + 1, text if stop - start > 1 else token_strings[ids[places[start]]])
          for start, stop, text in pieces(tokens)]


def partial_tokens(token_strings: Sequence[str]) -> dict[int, bytes]:
  r"""The bytes of tokens that are not whole characters, by id, read from the strings that tokens are shown as.

  It is for where the bytes themselves are not known. A token whose text is the four characters `\xeb` counts as the
  byte.
  """
  found = {}
  for i, string in enumerate(token_strings):
    text, *others = _BYTE.split(string)  # text, then in turn the two digits of a byte and text
    value = _encoded(text) + b"".join(bytes.fromhex(digits) + _encoded(text)
                                      for digits, text in zip(others[::2], others[1::2], strict=True))
    if others and value.decode(errors="ignore").encode() != value:
      found[i] = value
  return found


def _encoded(text: str) -> bytes:
  """A token's text in UTF-8; what is no character, half of a pair in UTF-16, is encoded as if it were one."""
  return text.encode(errors="surrogatepass")
