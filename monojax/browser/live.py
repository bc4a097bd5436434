"""The files with which a page runs the subject and its dictionary on a reader's own text: settings, tokenizer, weights.

Weights are a script, too, since a page opened from disk may load nothing else. Its string holds a byte in each
character, in the encoding windows-1252, so that the file is hardly larger than the weights: `static/live_files.js`
reads it. Matrices are 16-bit integers with a scale for each row, which keeps features within 1e-3; vectors are float32.
"""

import dataclasses
import json
import typing

import numpy as np

from monojax.browser.scripts import call

_ESCAPES = {ord('"'): b'\\"', ord("\\"): b"\\\\", ord("\n"): b"\\n", ord("\r"): b"\\r"}
_STEPS = 32_767  # the largest integer that stands for a weight


@dataclasses.dataclass(frozen=True)
class Live:
  """What a page needs to run a dictionary on text.

  Attributes:
    settings: how the arrays are put together; `static/live_model.js` says what it reads.
    tokenizer: {"tokens": the tokens' texts in order of their ids, in GPT-2's alphabet of bytes; "merges": pairs of
      them}.
    weights: {name of a file: {name of an array: its float32 numbers}}; a page loads a file when it needs it.
  """
  settings: dict[str, typing.Any]
  tokenizer: dict[str, typing.Any]
  weights: dict[str, dict[str, np.ndarray]]

  def files(self) -> dict[str, bytes]:
    """The content of each file of the site's folder `data`, by name."""
    found = {"live.js": call("liveFiles.registerSettings", self.settings).encode(),
             "live-tokenizer.js": call("liveFiles.registerTokenizer", self.tokenizer).encode()}
    return found | {f"live-{name}.js": weights_script(name, arrays) for name, arrays in self.weights.items()}


def texts_file(texts: list[dict[str, typing.Any]], token_strings: list[str]) -> dict[str, bytes]:
  """The file, by name, with which a page that runs nothing shows the texts of `monojax.analysis.shown_texts`."""
  shown = [{**text, "tokens": [token_strings[token] if token >= 0 else "" for token in text["tokens"]],
            "features": [{"ids": ids, "values": values} for ids, values in text["features"]]} for text in texts]
  return {"live-texts.js": call("liveFiles.registerTexts", shown).encode()}


def weights_script(name: str, arrays: dict[str, np.ndarray]) -> bytes:
  """The script that registers some arrays under a name."""
  described, packed = [], bytearray()
  for key, array in arrays.items():
    described.append({"name": key, "shape": list(array.shape), "at": len(packed)})
    packed += _packed(array)
  head = json.dumps([name, described], separators=(",", ":"))
  body = b"".join(_ESCAPES.get(byte) or bytes((byte,)) for byte in packed)
  return b"liveFiles.registerWeights(" + head[1:-1].encode() + b',"' + body + b'");\n'


def _packed(array: np.ndarray) -> bytes:
  """The bytes of an array, little-endian, a multiple of four: of a matrix the scales of its rows, then its integers."""
  if array.ndim == 1:
    return array.astype("<f4").tobytes()
  scale_R1 = np.maximum(np.abs(array).max(1, keepdims=True, initial=0), 1e-30) / _STEPS
  integers = np.rint(array / scale_R1).astype("<i2").tobytes()
  return scale_R1.astype("<f4").tobytes() + integers + bytes(-len(integers) % 4)
