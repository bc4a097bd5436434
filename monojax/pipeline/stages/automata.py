"""Automata: loops of a dictionary's features, printed, drawn and kept beside the dictionary."""

import typing

from monojax import config as configs
from monojax import files
from monojax.analysis.config import AutomataConfig
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.automata import Automata

FOLDER = "automata"
_SHOWN = 10  # loops of each number of features that are printed and drawn


def automata(run: RunFolder, config: AutomataConfig, dictionary: str = OWN_DICTIONARY) -> "Automata":
  """Looks for loops of features, each of which raises tokens on which the next one fires, and prints them.

  In the folder `automata` of the dictionary's home are then `automata.json` (the settings, the figures and the loops)
  and `automata.svg`, a picture of the strongest of them.

  Args:
    run: the run's folder.
    config: how much text, and which loops are listed.
    dictionary: the name of the dictionary, by default the run's own.

  Raises:
    InputError: there is no such dictionary, no subject, or no logit weights of its features.
  """
  from monojax.activations.owner import owned
  from monojax.analysis.drawn_loops import draw_loops
  place = run.dictionary(dictionary)
  found = load.load(run.directory, place.name).automata(config)
  _print(found, config)
  home = run.directory / f"{place.home}{FOLDER}"
  with owned(home):
    files.write_record(home / "automata.json", {"dictionary": place.name, "settings": configs.to_dict(config),
                                                **found.to_dict()})
    draw_loops(found.first(_SHOWN), home / "automata.svg")
  print(f"\nSee {home}")
  return found


def _print(found: "Automata", config: AutomataConfig) -> None:
  figures = found.figures
  print(f"{figures['features']:,} features on {figures['tokens']:,} tokens; loops above {config.min_score:g}, and with "
        "logit weights shuffled:")
  for n in range(1, config.n_states + 1):
    features = "feature" if n == 1 else "features"
    print(f"\nloops of {n} {features}: {figures[f'loops_{n}']:,} (best {figures[f'best_{n}']:.3f}), shuffled "
          f"{figures[f'loops_{n}_shuffled']:,} (best {figures[f'best_{n}_shuffled']:.3f})")
    for loop in found.first(_SHOWN):
      if len(loop.states) == n:
        print(f"  {loop}")
