"""A tokenizer that is given, not trained: it is tried on some of the text, and kept with its model's conventions."""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence

from monojax import files
from monojax.config import InputError
from monojax.text import conventions, tokenizer, trial
from monojax.text.config import TextConfig
from monojax.text.conventions import Conventions
from monojax.text.sources import shown
from monojax.text.tokenizer import Tokenizer

CONVENTIONS = "conventions.json"  # in the folder of the tokens


def take(config: TextConfig, directory: pathlib.Path,
         some_text: Callable[[Conventions], Sequence[str]]) -> tuple[Tokenizer, bytes]:
  """A tokenizer that is given, once it was tried on some texts, with the content of its tokenizer.json.

  Its model's conventions are written into the folder.

  Args:
    config: which text is read and how it becomes tokens.
    directory: the folder.
    some_text: gives some of the corpus, made text as the model's conventions say.

  Raises:
    InputError: it cannot be read or used, or has no token that the settings ask for.
  """
  given = conventions.read(config.tokenizer)
  given.conventions.bos(config.bos)  # which is refused at once where there is none
  eos_token = given.conventions.eos_token
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "tokenizer.json"
    copy.write_bytes(given.content)
    texts = some_text(given.conventions)
    loss = trial.try_out(str(copy), config.end_token, texts, eos_token=eos_token, name=config.tokenizer)
    encoder = tokenizer.load(copy, config.end_token, eos_token, config.tokenizer)
  if loss.n_lost:
    print(f"warning: the tokenizer {shown(config.tokenizer)} loses {trial.describe(loss)}", file=sys.stderr)
  files.write_json(directory / CONVENTIONS, dataclasses.asdict(given.conventions))
  return encoder, given.content


def conventions_in(directory: pathlib.Path) -> Conventions:
  """What the model of a tokenizer that was given wants of its text; nothing, if it was trained here."""
  return Conventions(**files.read_json(directory / CONVENTIONS) or {})


def bos_id(config: TextConfig, directory: pathlib.Path, encoder: Tokenizer) -> int | None:
  """The id that is put in front of every context, or None.

  Raises:
    InputError: the settings ask for one and there is none, or the tokenizer lacks the token that it says it adds.
  """
  token = conventions_in(directory).bos(config.bos)
  found = encoder.backend.token_to_id(token) if token else None
  if token and found is None:
    raise InputError(f"tokenizer {shown(config.tokenizer)!r} is to put {token!r} in front of text and has no such "
                     "token: leave it out with --tokens.bos=never, or mend the tokenizer")
  return found


def vocabulary_of(config: TextConfig, place: str) -> dict[str, int]:
  """{token: id} of a tokenizer that is given at `place`; special tokens, which no text becomes, are left out.

  Raises:
    InputError: there is nothing that can be read, or it holds no tokenizer.
  """
  found = conventions.read(place)
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "tokenizer.json"
    copy.write_bytes(found.content)
    backend = tokenizer.load(copy, config.end_token, found.conventions.eos_token, place).backend
  special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
  return {token: id for token, id in backend.get_vocab().items() if token not in special}
