"""The figures of Towards Monosemanticity beside those of dictionaries of one's own, printed and kept."""

import dataclasses
import itertools
import typing

from monojax import files
from monojax.analysis.config import ClaimsConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.claims import Claim
  from monojax.pipeline.loaded import LoadedRun

FOLDER = "claims"
# Where a figure that is not there would come from.
_COMMANDS = {"universality": "`universality` (another seed)", "explain": "`explain`", "automata": "`automata`",
             "control": "`explain` in the run that --control names"}


def claims(run: RunFolder, config: ClaimsConfig, dictionary: str = OWN_DICTIONARY) -> "list[list[Claim]]":
  """Prints the paper's figures beside those of a dictionary, of others of its run, and of the same one in further runs.

  In the folder `claims` of the dictionary's home are then `claims.csv` and `.json`, a row for each figure. Of several
  runs it has the mean, too, and half the width of its interval of 95 % (`mean_over_seeds`).

  Args:
    run: the run's folder.
    config: the other dictionaries, the further runs, and the run of the control.
    dictionary: the name of the dictionary, the same in all runs.

  Returns:
    The figures of each dictionary.

  Raises:
    InputError: there is no such dictionary, or it is not analysed.
  """
  from monojax.activations.owner import owned
  own = run.directory.resolve()
  columns = [(str(run.directory), dictionary if config.others else own.name, run, dictionary)]
  columns += [(name, name, run, name) for name in config.others]
  columns += [(folder, one.directory.resolve().name, one, dictionary)
              for folder, one in zip(config.runs, map(RunFolder, config.runs), strict=True)]
  keys, headings, *_ = zip(*columns, strict=True)
  require(len(set(keys)) == len(keys), "--others, --runs", ", ".join(keys[1:]), "must be different ones")
  found = [of_dictionary(load.load(one.directory, name), config.control) for _, _, one, name in columns]
  found = _aligned(found)
  of_runs = [0, *range(1 + len(config.others), len(found))]
  mean = _means([found[i] for i in of_runs]) if len(of_runs) > 1 else []
  _print(list(headings), found, mean)
  home = run.directory / f"{run.dictionary(dictionary).home}{FOLDER}"
  rows = [{"section": row[0].section, "name": row[0].name, "source": row[0].source, "published": row[0].published,
           **{key: claim.value for key, claim in zip(keys, row, strict=True)}}
          for row in zip(*found, strict=True)]
  if mean:
    for row, of_row in zip(rows, mean, strict=True):
      row["mean_of_runs"], row["mean_error"] = of_row or (None, None)
  with owned(home):
    files.write_table(home / "claims", rows)
  print(f"\nSee {home}")
  return found


def of_dictionary(loaded: "LoadedRun", control: str = "") -> "list[Claim]":
  """The figures of one dictionary, of what has been measured of it.

  Args:
    loaded: the dictionary's run.
    control: the folder of the run of a subject with random weights, as in `ClaimsConfig`.
  """
  from monojax.analysis import claims as analysis
  run = RunFolder(loaded.directory)
  place = run.dictionary(loaded.dictionary)
  figures = files.read_json(place.weights / "figures.json") or run.require_stage(place.stage)["figures"]
  figures = {name.removeprefix("sae/"): value for name, value in figures.items()}
  home = run.directory / place.home
  explained = lambda of_run: _explained(of_run, loaded.dictionary)
  records = {"explain": explained(run), "control": explained(RunFolder(control)) if control else {},
             "automata": files.read_record(home / "automata" / "automata.json") or {}}
  comparisons = [files.read_record(path) or {} for path in sorted(home.glob("comparisons/*/comparison.json"))]
  if seeds := [found for found in comparisons if _is_of_seeds(found, run)]:
    records["universality"] = seeds[0]
  return analysis.claims(loaded.features, figures, loaded.sae.direction_FO, records)


def _aligned(found: "list[list[Claim]]") -> "list[list[Claim]]":
  """The same figures of each dictionary, in one order: without a value where a dictionary does not have one."""
  known = {(claim.section, claim.name): claim for of_one in found for claim in of_one}
  sections = list(dict.fromkeys(section for section, _ in known))
  nothing = {key: dataclasses.replace(known[key], value=None, interval=None)
             for key in sorted(known, key=lambda key: sections.index(key[0]))}
  return [list({**nothing, **{(claim.section, claim.name): claim for claim in of_one}}.values()) for of_one in found]


def _means(found: "list[list[Claim]]") -> list[tuple[float, float | None] | None]:
  """For each figure its mean over several runs, with half its interval; None where a run lacks it."""
  from monojax.analysis.over_seeds import mean_over_seeds
  rows = [[claim.value for claim in row] for row in zip(*found, strict=True)]
  return [None if None in values else mean_over_seeds([value for value in values if value is not None])
          for values in rows]


def _is_of_seeds(found: dict, run: RunFolder) -> bool:
  """Whether a comparison of a run is with a subject of another seed: trained apart, and its weights not shuffled."""
  from monojax.pipeline.stages.comparison import same_subject
  other = found["b"]["run"]
  if other in (None, found["a"]["run"]) or "correlation_neurons/median_a" not in found["figures"]:
    return False  # a subject of other neurons has their correlations
  there = RunFolder(other)
  if not (run.stage("subject") and there.stage("subject")):
    return True  # the other run is no longer there to ask
  return not (same_subject(run, there) or load.subject_config(there).shuffled_of)


def _explained(run: RunFolder, dictionary: str) -> dict:
  """What `explain` by rules left of a run's dictionary; {} where it was not run."""
  from monojax.pipeline.stages import explanations
  home = run.directory / run.dictionary(dictionary).home / explanations.FOLDER / explanations.RULES
  return files.read_record(home / "comparison.json") or {}


def _print(names: list[str], found: "list[list[Claim]]", mean: list[tuple[float, float | None] | None]) -> None:
  label_width = max(len(claim.name) for claim in found[0]) + 2
  names = [*names, "mean ± 95 %"] if mean else names
  means = [[_shown_mean(of_row, claim.percent)] for of_row, claim in zip(mean, found[0], strict=True)] if mean else [
      []] * len(found[0])
  cells = [_shown(claim.value, claim.percent, claim.interval) for row in found for claim in row]
  width = max(11, *(len(text) + 2 for text in (*names, *cells, *itertools.chain(*means))))
  line = lambda label, cells: print(f"{label:<{label_width}}" + "".join(f"{cell:>{width}}" for cell in cells))
  missing: set[str] = set()
  section = ""
  for row, of_row in zip(zip(*found, strict=True), means, strict=True):
    if row[0].section != section:
      section = row[0].section
      print()
      line(section, ["the paper", *names])
    line(f"  {row[0].name}", [_shown(row[0].published, row[0].percent),
                              *(_shown(claim.value, claim.percent, claim.interval) for claim in row),
                              *of_row])
    missing |= {claim.source for claim in row if claim.value is None and claim.source != "analysis"}
  if missing:
    print("\nFigures that are missing come from commands that were not run: "
          f"{', '.join(_COMMANDS[name] for name in sorted(missing))}.")


def _shown_mean(mean: tuple[float, float | None] | None, percent: bool) -> str:
  if mean is None or mean[1] is None:
    return "-"
  return f"{_shown(mean[0], percent)} ± {_shown(mean[1], percent)}"


def _shown(value: float | None, percent: bool, interval: tuple[float, float] | None = None) -> str:
  if value is None:
    return "-"
  if interval:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
  return f"{value:.1%}" if percent else f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.3f}"
