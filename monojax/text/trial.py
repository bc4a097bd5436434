"""Tries a tokenizer that monojax did not train on some of the text, before hours of work depend on it.

The trial runs in a process of its own: a tokenizer.json holds regular expressions, and one that hangs or breaks the
library cannot take the caller with it.
"""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from monojax.config import InputError
from monojax.text.sources import shown

_SECONDS = 120.0
_HEAVY_LOSS = 0.5  # a tokenizer that loses more of the characters is refused
_SHOWN = 8  # characters that a message lists at most
# Long words of one kind, on which a regular expression or a search that takes quadratic time shows.
_LONG_WORDS = tuple(c * 20_000 for c in ("a", "é", "字", "0", " ", "\n", "!", "ab1."))


@dataclasses.dataclass(frozen=True)
class Loss:
  """What is missing of a text that was made tokens and then text again.

  Attributes:
    n_characters: how many characters there were, white space not counted.
    n_lost: how many of them did not come back.
    most_lost: some of the characters that were lost most often, which come first.
  """
  n_characters: int
  n_lost: int
  most_lost: tuple[str, ...] = ()

  @property
  def share(self) -> float:
    """The share of the characters that were lost."""
    return self.n_lost / max(1, self.n_characters)


def loss_of(tokenizer: Any, texts: Sequence[str]) -> Loss:
  """What a `monojax.text.tokenizer.Tokenizer` loses of some texts.

  Characters are counted and compared in Unicode's form NFKC, so that a ligature that comes back as its letters is not
  lost. The token that stands for what a tokenizer does not know is no text.
  """
  model = json.loads(tokenizer.backend.to_str())["model"]
  unknown = model.get("unk_id") if "unk_id" in model else tokenizer.backend.token_to_id(model.get("unk_token") or "")
  before: collections.Counter[str] = collections.Counter()
  after: collections.Counter[str] = collections.Counter()
  for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
    before.update(unicodedata.normalize("NFKC", text))
    after.update(unicodedata.normalize("NFKC", tokenizer.decode(i for i in ids if i != unknown)))
  lost = before - after
  for counter in (before, lost):
    for character in [c for c in counter if c.isspace()]:
      del counter[character]
  return Loss(before.total(), lost.total(), tuple(c for c, _ in lost.most_common(_SHOWN)))


def try_out(path: str, end_token: str, texts: Sequence[str], seconds: float = _SECONDS,
            eos_token: str | None = None, name: str = "") -> Loss:
  """Reads a tokenizer.json and makes tokens and text again of some texts, in a process of its own.

  Args:
    path: the file.
    end_token: its end token; "" finds it.
    texts: some of the corpus.
    seconds: how long the trial may take.
    eos_token: the token that the tokenizer's model ends its own text with, if it is known.
    name: what errors call it, if not by its path.

  Returns:
    What was lost of the texts.

  Raises:
    InputError: the tokenizer cannot be used, loses too much of the text, or takes too long.
  """
  name = shown(name or os.fspath(path))
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  request = json.dumps({"path": str(path), "end_token": end_token, "eos_token": eos_token, "name": name,
                        "texts": list(texts)})
  try:
    done = subprocess.run([sys.executable, "-m", "monojax.text.trial"], input=request.encode(), capture_output=True,
                          timeout=seconds, env=environment)
  except subprocess.TimeoutExpired as error:
    raise InputError(f"tokenizer {name!r} took more than {seconds:.0f} seconds for {sum(map(len, texts)):,} characters "
                     "of the text and some long words: its regular expressions may be to blame") from error
  last = done.stdout.decode().strip().rpartition("\n")[2]
  if done.returncode or not last:
    why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
    raise InputError(f"tokenizer {name!r} cannot be used: it ended its process with status {done.returncode} ({why})")
  answer = json.loads(last)
  if "error" in answer:
    raise InputError(answer["error"])
  loss = Loss(answer["n_characters"], answer["n_lost"], tuple(answer["most_lost"]))
  if loss.share > _HEAVY_LOSS:
    raise InputError(f"tokenizer {name!r} loses {describe(loss)}: use one that knows this text, or leave "
                     "--tokens.tokenizer out, which trains one")
  return loss


def describe(loss: Loss) -> str:
  """A loss in words and numbers."""
  return (f"{loss.share:.2%} of the characters of a sample of the text ({loss.n_lost:,} of {loss.n_characters:,}; most "
          f"often {', '.join(map(repr, loss.most_lost))})")


def main() -> None:
  """Answers one request, a JSON object on standard input, with another on standard output."""
  from monojax.text import tokenizer
  request = json.load(sys.stdin)
  try:
    tried = tokenizer.load(request["path"], request["end_token"], request["eos_token"], request["name"])
  except InputError as error:
    print(json.dumps({"error": f"{error}"}))
    return
  try:
    answer = dataclasses.asdict(loss_of(tried, request["texts"]))
    tried.encode_batch(_LONG_WORDS)
    tried.token_strings()
  except InputError as error:
    answer = {"error": f"tokenizer {request['name']!r} cannot be used: {error}"}
  print(json.dumps(answer))


if __name__ == "__main__":
  main()
