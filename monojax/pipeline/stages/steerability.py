"""Steering judged by a classifier of text: printed and kept beside the dictionary."""

import dataclasses
import typing

from monojax import config as configs
from monojax import files
from monojax.analysis.config import SteerabilityConfig
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.folder import OWN_DICTIONARY, RunFolder
from monojax.pipeline.stages.steering import shown

if typing.TYPE_CHECKING:
  from monojax.analysis.steerability import Steerable
  from monojax.pipeline.loaded import LoadedRun

FOLDER = "steerability"
_N_PIECES = 30_000  # pieces of text that the classifier is trained on
_N_TESTED = 6_000   # held-out pieces that it is tested on
_SAMPLE = 90        # letters of a continuation that are printed


def steerability(run: RunFolder, config: SteerabilityConfig, dictionary: str = OWN_DICTIONARY) -> "list[Steerable]":
  """Pins a feature for each class of text, and prints how many continuations a classifier calls this class.

  In the folder `steerability` of the dictionary's home is then `steerability.json`, with the settings, the classifier's
  figures on held-out text, a row for each class and its continuations; and `classes.csv` and `.json`, the rows alone.

  Args:
    run: the run's folder.
    config: the classes, and how many continuations.
    dictionary: the name of the dictionary, by default the run's own.

  Raises:
    InputError: there is no such dictionary, no class has text, or scikit-learn is not installed.
  """
  from monojax.activations.owner import owned
  loaded = load.load(run.directory, dictionary)
  found, told = measured(config, loaded)
  home = run.directory / f"{run.dictionary(dictionary).home}{FOLDER}"
  rows = [{name: value for name, value in dataclasses.asdict(row).items() if name not in ("texts", "called")}
          | told["classes"][row.name] for row in found]
  with owned(home):
    files.write_record(home / "steerability.json", {
        "dictionary": loaded.dictionary, "settings": configs.to_dict(config), "classifier": told,
        "classes": [dataclasses.asdict(row) for row in found]})
    files.write_table(home / "classes", rows)
  _print(found, told)
  print(f"\nSee {home}")
  return found


def measured(config: SteerabilityConfig, loaded: "LoadedRun") -> "tuple[list[Steerable], dict[str, typing.Any]]":
  """(What pinning a feature does for each class; the classifier's figures on held-out text.)"""
  import numpy as np

  from monojax.analysis import steerability as analysis
  from monojax.analysis.detectors import classes_of
  from monojax.analysis.domain_classifier import DomainClassifier
  from monojax.metrics import progress
  run = RunFolder(loaded.directory)
  tables, train, val = loaded.features, *(load.open_tokens(run, split) for split in ("train", "val"))
  classes = classes_of(config.classes, tables.domains)
  require(classes, "classes", config.classes, f"none has text here; the domains are {', '.join(tables.domains)}")
  judge = DomainClassifier(train, loaded.tokenizer, config.n_tokens, _N_PIECES, config.seed)
  known = {name: domains for name, domains in classes.items() if np.isin(domains, judge.known).any()}
  require(known, "n_tokens", config.n_tokens, "no class has documents with so many tokens: take fewer")
  if unknown := sorted(set(classes) - set(known)):
    print(f"left out, since none of their documents has {config.n_tokens} tokens: {', '.join(unknown)}", flush=True)
  classes = known
  told = judge.found(val, classes, _N_TESTED, config.seed)
  write = lambda features, seed: loaded.steer(config.prompt, features, config.n_tokens, seed,
                                              config.temperature).removeprefix(config.prompt)
  n_texts = config.n * (len(classes) + 2) + config.n_choosing * sum(
      len(analysis.candidates(tables, domains, config.n_candidates)) for domains in classes.values())
  with progress(n_texts, "texts", "continuations") as bar:
    return analysis.steerability(config, tables, classes, write, judge.predict, lambda: bar.update(1)), told


def _print(found: "list[Steerable]", told: dict[str, typing.Any]) -> None:
  print(f"the classifier tells the domain of {told['accuracy']:.1%} of held-out pieces of text\n")
  percent = lambda value: "-" if value is None else f"{value:.0%}"
  print(f"{'class':<14}{'feature':>8}{'pinned':>9}{'as it is':>10}{'another':>9}{'recall':>9}{'false':>8}  called")
  for row in found:
    judged = told["classes"][row.name]
    called = ", ".join(f"{domain} {n}" for domain, n in list(row.called.items())[:3])
    print(f"{row.name:<14}{'-' if row.feature is None else row.feature:>8}{percent(row.pinned):>9}"
          f"{percent(row.unpinned):>10}{percent(row.random):>9}{percent(judged['recall']):>9}"
          f"{'-' if judged['false'] is None else format(judged['false'], '.1%'):>8}  {called}")
  for row in found:
    if row.texts:
      print(f"\n{row.name}, feature {row.feature} held at {row.value:.2f}: {shown(row.texts[0])[:_SAMPLE]}")
