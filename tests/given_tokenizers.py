"""Tokenizers of pretrained models, for tests: files with a vocabulary alone, packages with a model, and odd texts."""

import importlib.util
import pathlib

import pytest

from monojax.text import conventions, tokenizer

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
