"""The stage `browser`: pages of a dictionary's features; and those of all of a run's dictionaries in one folder."""

import itertools
import pathlib
import typing
import urllib.parse

from monojax import distributed, files
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OWN_DICTIONARY, DictionaryPlace, RunFolder

if typing.TYPE_CHECKING:
  from monojax.analysis.tables import FeatureTables


def _with_knobs(points):
  """The rows of a frontier, each with "knob": the setting of its recipe whose value its "sparsity" is."""
  from monojax.sae.recipes import RECIPES
  return [{**point, "knob": RECIPES[point["recipe"]].knob} if point.get("recipe") in RECIPES else point
          for point in points]


def build_browser(run: RunFolder, config: RunConfig, dictionary: str = OWN_DICTIONARY) -> dict:
  """Writes the pages of a dictionary's features, which has been analysed; with a map, if `map` has made one.

  Args:
    run: the run's folder.
    config: its settings.
    dictionary: the name of the dictionary, by default the run's own. The pages are in its folder.

  Returns:
    The stage's record.
  """
  from monojax import config as configs
  from monojax.pipeline.stages.maps import places
  place = run.dictionary(dictionary)
  map_of_features = places(run, place.name)
  given = {"map": configs.fingerprint(map_of_features)} if map_of_features else {}
  if texts := given_texts(config.browser.texts):
    given["texts"] = configs.fingerprint(texts)

  def work(directory, identity):
    _write_site(run, config, place, directory / "site")
    return {}
  # Pages are made again, where other settings are asked for, or the run has a new map, or a text has changed.
  return run.execute(f"{place.home}browser", config.browser, work, (f"{place.home}analysis",), alone=True, extends=True,
                     given=given)


def _write_site(run: RunFolder, config: RunConfig, place: DictionaryPlace, site: pathlib.Path,
                dictionaries: dict | None = None) -> None:
  """Writes the pages of a dictionary into the folder `site`.

  Args:
    run: the run's folder.
    config: its settings.
    place: the dictionary, which has been analysed.
    site: the folder, which is replaced as a whole.
    dictionaries: what the pages say of the run's other dictionaries, if these are beside it (see `build_all`).
  """
  from monojax.browser.build import build_browser as build
  from monojax.pipeline.stages.live import live
  from monojax.pipeline.stages.maps import places
  tables, analysis = _tables(run, place), f"{place.home}analysis"
  summary = run.write_summary()
  if place.home:  # the run's figures of its own dictionary are not this one's
    others = ("sae/", "frontier/", "analysis/", "detectors/", "browser/")
    summary = {name: value for name, value in summary.items() if not name.startswith(others)}
    summary |= run.require_stage(place.stage)["figures"] | run.require_stage(analysis)["figures"]
  tables.summary["figures"] = summary
  tables.summary["map"] = places(run, place.name)
  tables.summary["dictionaries"] = dictionaries
  if run.stage("frontier") and not place.home:
    tables.summary["frontier"] = _with_knobs(files.read_json(run.made("frontier", "frontier.json")))
  name = run.directory.resolve().name
  found = live(run, place.name, config.browser.live_weights)
  texts = given_texts(config.browser.texts)
  if isinstance(found, str):
    print(f"the page \"Your text\" of {place.name} runs no model: {found}", flush=True)
    if texts:
      tables.summary["texts"] = _read_by(run, place, texts) + (tables.summary.get("texts") or [])
  else:
    found.settings["texts"] = texts + found.settings["texts"]
  build(tables, site, config.browser.title or (f"{name}, {place.name}" if place.home else name),
        config.browser.features_per_file, live=None if isinstance(found, str) else found)


def given_texts(paths: typing.Iterable[str]) -> list[tuple[str, str]]:
  """[(name, text)] of files of plain text.

  Raises:
    InputError: one of them cannot be read.
  """
  found = []
  for path in map(pathlib.Path, paths):
    try:
      found.append((path.stem, path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(f"browser.texts={str(path)!r}: cannot be read as text: {error}") from error
  return found


def _read_by(run: RunFolder, place: DictionaryPlace, texts: list[tuple[str, str]]) -> list[dict]:
  """What `shown_texts` says of pieces of the run's text, of other texts: the features that fire on each token.

  Raises:
    InputError: the run has no subject that could read them.
  """
  loaded = load.load(run.directory, place.name)
  require(load.activations_config(run).source != "given", "browser.texts", ",".join(name for name, _ in texts),
          "this run was given its activations and has no subject that could read texts")
  found = []
  for name, text in texts:
    ids, f_TF = loaded.token_ids(text), loaded.encode(text).f_TF
    first = len(loaded._prefix)
    on = [f_F.nonzero()[0] for f_F in f_TF[first:]]
    features = [[at.tolist(), [float(f"{value:.4g}") for value in f_F[at].tolist()]]
                for at, f_F in zip(on, f_TF[first:], strict=True)]
    found.append({"name": name, "tokens": ids[first:], "features": features})
  return found


def _tables(run: RunFolder, place: DictionaryPlace) -> "FeatureTables":
  """The tables of a dictionary that has been analysed."""
  from monojax.analysis.tables import FeatureTables
  analysis = f"{place.home}analysis"
  run.made(analysis, "features.npz")
  return FeatureTables.load(run.made(analysis, "features.json").parent)


def build_all(run: RunFolder, config: RunConfig) -> pathlib.Path:
  """Writes the pages of every analysed dictionary of a run into one folder, `pages`, each with a switch to the others.

  A page of theirs compares them: fidelity against sparsity, and how many of the features of one have a match in another
  one. A feature's page names its match in each of the others. Features that are not dead are matched by the cosines of
  their directions, where dictionaries write the same sites.

  Returns:
    The page to begin with.

  Raises:
    InputError: no dictionary has been analysed.
  """
  places = {place.name.replace("/", "-"): place for place in run.dictionaries().values()
            if run.stage(f"{place.home}analysis")}
  require(places, "workdir", str(run.directory), "has no dictionary that was analysed: `monojax analyze` does that")
  pages = run.directory / "pages"

  def write() -> None:
    listed, directions, alive = [], {}, {}
    for folder, place in places.items():
      sae, tables = load.load_sae(run, place.name), _tables(run, place)
      listed.append({"name": place.name, "folder": folder, "recipe": sae.config.recipe, "n_features": sae.n_features,
                     "writes": list(sae.writes), **_fidelity(run, place)})
      directions[folder], alive[folder] = sae.direction_FO, tables.n_fires_F > 0
    writes = {one["folder"]: one["writes"] for one in listed}
    pairs = [(a, b) for a, b in itertools.combinations(places, 2) if writes[a] == writes[b]]
    matches = _matches(directions, alive, pairs)
    for folder, place in places.items():
      _write_site(run, config, place, pages / folder,
                  {"own": folder, "all": listed, "matches": {other: found for (of, other), found in matches.items()
                                                             if of == folder}})
    first = f"{urllib.parse.quote(next(iter(places)))}/index.html#/{'dictionaries' if len(places) > 1 else ''}"
    with files.replacing(pages / "index.html") as file:
      file.write(f'<!doctype html><meta charset="utf-8"><title>Dictionaries</title><meta http-equiv="refresh" '
                 f'content="0; url={first}">\n'.encode())
  if distributed.is_first():
    write()
  distributed.wait("pages are written")
  return pages / "index.html"


def _fidelity(run: RunFolder, place: DictionaryPlace) -> dict:
  """What the table of dictionaries says of how faithful one is."""
  figures = files.read_json(place.weights / "figures.json") or run.require_stage(place.stage)["figures"]
  return {name: figures.get(f"sae/{name}") for name in ("l0", "explained_variance", "ce_recovered_zero")}


def _matches(directions: dict, alive: dict, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], list]:
  """{(A, B): [for each feature of A its best match in B or -1, the cosines]} for these pairs, and likewise (B, A)."""
  import numpy as np

  from monojax.analysis.matching import cosine_blocks, matched
  rounded = lambda best_F, value_F: [best_F.tolist(), np.nan_to_num(value_F).round(3).tolist()]
  found = {}
  for a, b in pairs:
    both = matched(cosine_blocks(directions[a], directions[b]), alive[a], alive[b])
    found[a, b], found[b, a] = rounded(both.best_a_F, both.value_a_F), rounded(both.best_b_F, both.value_b_F)
  return found
