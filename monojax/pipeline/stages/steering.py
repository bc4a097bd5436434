"""Steering: a prompt continued with and without changes of features, printed side by side."""

import textwrap
import typing

from monojax import files
from monojax.analysis.config import SteerConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.interventions import Change
  from monojax.analysis.steering import Moved, Steered

_COLUMN = 56  # letters of a column of text
_TOKEN = 24  # of the column of tokens


def steer(run: RunFolder, config: SteerConfig, dictionary: str = OWN_DICTIONARY) -> "Steered":
  """Continues a prompt with and without changes of features, and prints both and what changes for the next token.

  Nothing is written but the file `config.out`, if it is given.

  Args:
    run: the run's folder.
    config: the prompt, what is done to which features, and how text is drawn.
    dictionary: the name of the dictionary, by default the run's own.

  Raises:
    InputError: nothing is to be changed; there is no such dictionary, no such feature, or no subject that writes; or
      the prompt is too long.
  """
  from monojax.analysis.interventions import Change
  require(config.changes, "--pin", "", "say what is to be changed: --pin=FEATURE, --scale=FEATURE=NUMBER or "
          "--ablate=FEATURE")
  loaded = load.load(run.directory, dictionary)
  changes = [Change(*parts, config.span) for parts in config.changes]
  found = loaded.compare_steering(config.prompt, changes, config.n, config.n_tokens, config.seed, config.temperature)
  _print(found)
  if config.out:
    files.write_json(config.out, {"dictionary": str(run.dictionary(dictionary).weights), **found.to_dict()})
    print(f"\nSee {config.out}")
  return found


def _print(found: "Steered") -> None:
  print(f"prompt   {shown(found.prompt)!r}")
  for change in found.changes:
    print(f"changed  {_described(change)}")
  for title, tokens in (("raised most", found.raised), ("lowered most", found.lowered)):
    print(f"\n{'next token, ' + title:<{_TOKEN + 2}}{'as it is':>10}{'changed':>10}")
    for token in tokens:
      print(_line(token))
  print(f"\nKL(as it is || changed) of the next token: {found.kl:.4f} nats\n")
  print(f"{'AS IT IS':<{_COLUMN}}    CHANGED")
  for plain, changed in zip(found.plain, found.changed, strict=True):
    columns = [textwrap.wrap(shown(text), _COLUMN, drop_whitespace=False) or [""] for text in (plain, changed)]
    print()
    for row in range(max(map(len, columns))):
      left, right = (column[row] if row < len(column) else "" for column in columns)
      print(f"{left:<{_COLUMN}}    {right}".rstrip())


def _line(token: "Moved") -> str:
  return f"  {shown(token.token)!r:<{_TOKEN}}{token.before:>10.4f}{token.after:>10.4f}"


def _described(change: "Change") -> str:
  """What a change does, in words."""
  what = {"pin": f"held at {change.value}", "scale": f"times {change.value}", "ablate": "removed"}[change.kind]
  start, stop = change.positions or (0, None)
  where = ("at every token" if change.positions is None else
           f"at tokens {start} to {stop - 1}" if stop is not None else f"from token {start} on")
  return f"feature {change.feature} {what}, {where}"


def shown(text: str) -> str:
  """A text on one line: what cannot be printed, such as a line's end, as Python writes it."""
  return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
