"""Tokens that share a character are shown as that character: any text, cut into tokens anywhere."""

import unicodedata

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies
from tokenizers import decoders, models, pre_tokenizers

from monojax.analysis import characters
from monojax.text import tokenizer

# Characters of one to four bytes: Latin, Hebrew, Arabic, Devanagari, Thai, Hangul, kana, Han, emoji, and what is
# written like the bytes that are shown for parts of characters.
SCRIPTS = [(0x20, 0x7e), (0xa0, 0x24f), (0x590, 0x5ff), (0x600, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f),
           (0x1100, 0x11ff), (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xfff0, 0xffff),
           (0x1f300, 0x1faff), (0xe0100, 0xe01ef)]
LETTERS = strategies.sampled_from(SCRIPTS).flatmap(lambda ends: strategies.integers(*ends)).map(chr)
MORE = [r"\xeb", r"\x81", "\\", "x", "\ufffd", "e\u0301", "\u1112\u1161\u11ab", "👩\u200d👧"]
TEXTS = strategies.lists(LETTERS | strategies.characters(exclude_categories=["Cs"]) | strategies.sampled_from(MORE)
                         ).map("".join)
BYTES = TEXTS.map(str.encode) | strategies.binary() | strategies.lists(
    TEXTS.map(str.encode) | strategies.sampled_from([b"\xeb", b"\x81", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0\xaf",
                                                     b"\xff"])).map(b"".join)


@strategies.composite
def cut(draw, wholes=BYTES):
  """Bytes, and tokens that they are cut into, which may be empty."""
  whole = draw(wholes)
  cuts = sorted(draw(strategies.lists(strategies.integers(0, len(whole)), max_size=12)))
  if draw(strategies.booleans()):
    cuts = list(range(1, len(whole)))  # each byte is a token
  return whole, [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def spans_by_hand(whole):
  """Where each character of a byte string begins and ends, by trying to decode one to four bytes at every place."""
  found, place = [], 0
  while place < len(whole):
    for length in (1, 2, 3, 4):
      try:
        if len(whole[place:place + length].decode("utf-8")) == 1:
          break
      except UnicodeDecodeError:
        continue
    else:
      length = 1  # a byte that is no part of a character
    found.append((place, place + length))
    place += length
  return found


@hypothesis.settings(deadline=None)
@hypothesis.given(cut())
def test_tokens_are_joined_where_they_share_a_character_and_nowhere_else(given):
  whole, tokens = given
  found = characters.pieces(tokens)
  assert [token for piece in found for token in range(piece.start, piece.stop)] == list(range(len(tokens)))
  ends = np.cumsum([0, *map(len, tokens)])
  spans = spans_by_hand(whole)
  for piece in found:
    for token in range(piece.start + 1, piece.stop):
      assert any(start < ends[token] < stop for start, stop in spans)  # within a character
    for edge in (ends[piece.start], ends[piece.stop]):
      assert not any(start < edge < stop for start, stop in spans)
    # What is shown is the characters, and what is none byte by byte.
    shown = [whole[start:stop] for start, stop in spans if ends[piece.start] <= start < ends[piece.stop]]
    assert piece.text == "".join(rf"\x{value[0]:02x}" if value[0] > 0x7f and len(value) == 1 else value.decode()
                                 for value in shown)
  assert "".join(piece.text for piece in found) == whole.decode(errors="backslashreplace")


@hypothesis.settings(deadline=None)
@hypothesis.given(cut(TEXTS.map(str.encode)))
def test_a_whole_text_is_shown_as_it_is(given):
  whole, tokens = given
  assert "".join(piece.text for piece in characters.pieces(tokens)) == whole.decode()


@hypothesis.settings(deadline=None)
@hypothesis.given(TEXTS, strategies.data())
def test_a_window_shows_whole_characters_and_bytes_of_those_that_it_cuts(text, data):
  """As tokens of one byte, whose bytes are known or read from what they are shown as; -1 outside of the text."""
  whole = text.encode()
  first = data.draw(strategies.integers(0, len(whole)))
  last = data.draw(strategies.integers(first, len(whole)))
  before, after = data.draw(strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3)))
  strings = [bytes([value]).decode(errors="backslashreplace") for value in range(256)]
  partial = {value: bytes([value]) for value in range(128, 256)}
  assert characters.partial_tokens(strings) == partial
  ids_W = np.array([-1] * before + list(whole[first:last]) + [-1] * after, np.int32)
  found = characters.window_pieces(ids_W, strings, partial)
  assert "".join(piece.text for piece in found) == whole[first:last].decode(errors="backslashreplace")
  assert [place for piece in found for place in range(piece.start, piece.stop)] == list(
      range(before, before + last - first))
  inside = [character for character, (start, stop) in zip(text, spans_by_hand(whole), strict=True)
            if first <= start and stop <= last]
  assert "".join(inside) in "".join(piece.text for piece in found)


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.lists(BYTES, max_size=8))
def test_the_bytes_of_tokens_are_read_from_what_they_are_shown_as(tokens):
  strings = [token.decode(errors="backslashreplace") for token in tokens]
  wanted = {i: token for i, token in enumerate(tokens) if r"\x" in strings[i] and strings[i].encode() != token}
  found = characters.partial_tokens(strings)
  if not any(rb"\x" in token for token in tokens):  # a text that is written like a byte is taken for one
    assert found == wanted


def test_a_text_that_is_written_like_bytes_stays_as_it_is():
  """Where the tokens' bytes are known; three tokens of four characters each are no Korean."""
  strings = [r"\xeb", r"\x81", r"\x8a", r"\xeb", r"\x81", r"\x8a"]
  known = {3: b"\xeb", 4: b"\x81", 5: b"\x8a"}
  shown = lambda ids: [piece.text for piece in characters.window_pieces(np.array(ids), strings, known)]
  assert shown([0, 1, 2]) == [r"\xeb", r"\x81", r"\x8a"]
  assert shown([3, 4, 5]) == ["끊"]
  assert shown([3, 4, 2]) == [r"\xeb", r"\x81", r"\x8a"]
  assert shown([5, 3, 4, 5, 3]) == [r"\x8a", "끊", r"\xeb"]


def test_half_a_pair_in_a_string_is_no_error():
  """Strings of another tokenizer can hold what UTF-8 cannot."""
  strings = ["\ud83d", "\ude00", r"\xeb", r"a\xff" + "\ud800"]
  partial = characters.partial_tokens(strings)
  assert set(partial) == {2, 3}
  found = characters.window_pieces(np.array([0, 1, 2, 3, 2]), strings, partial)
  assert [piece.text for piece in found] == [*strings, r"\xeb"]


@pytest.fixture(scope="module")
def of_bytes():
  """A byte-level tokenizer of the 256 bytes and of some longer tokens, which end within characters."""
  to_character = {b: c for c, b in tokenizer._byte_values().items()}
  merges, vocabulary = [], [to_character[b] for b in range(256)]
  for value in (b"\xeb\x81", b"\x8a\xec", b" \xed", b"\xed\x95", b"\xe3\x81", b"a\xcc"):
    merges.append((to_character[value[0]], to_character[value[1]]))
    vocabulary.append("".join(merges[-1]))
  backend = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<|endoftext|>"])
  return tokenizer._wrap(backend, "made")


@hypothesis.settings(deadline=None)
@hypothesis.given(text=TEXTS)
@hypothesis.example(text="전화를 끊이지 않고 하늘을, 食べる。")
def test_what_a_byte_level_tokenizer_makes_of_a_text_reads_like_the_text(text, of_bytes):
  ids, = of_bytes.encode_batch([text])
  partial = of_bytes.partial_tokens()
  assert set(partial) == {*range(128, 256), *range(256, 262)}
  found = characters.window_pieces(ids, of_bytes.token_strings(), partial)
  assert "".join(piece.text for piece in found) == text
  assert all(unicodedata.category(character) != "Cs" for piece in found for character in piece.text)
