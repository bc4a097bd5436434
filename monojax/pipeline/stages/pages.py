"""The stage `browser`: pages of a dictionary's features; and those of all of a run's dictionaries in one folder."""

import itertools
import pathlib

from monojax import files
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import OWN_DICTIONARY, DictionaryPlace, RunFolder


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

  def work(directory, identity):
    _write_site(run, config, place, directory / "site")
    return {}
  # Pages are made again, where other settings are asked for or the run has a new map.
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
  from monojax.analysis.tables import FeatureTables
  from monojax.browser.build import build_browser as build
  from monojax.pipeline.stages.live import live
  from monojax.pipeline.stages.maps import places
  analysis = f"{place.home}analysis"
  run.made(analysis, "features.npz")
  tables = FeatureTables.load(run.made(analysis, "features.json").parent)
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
  if isinstance(found, str):
    print(f"the page \"Your text\" of {place.name} runs no model: {found}", flush=True)
  build(tables, site, config.browser.title or (f"{name}, {place.name}" if place.home else name),
        config.browser.features_per_file, live=None if isinstance(found, str) else found)


def build_all(run: RunFolder, config: RunConfig) -> pathlib.Path:
  """Writes the pages of every analysed dictionary of a run into one folder, `pages`, each with a switch to the others.

  A page of theirs compares them: fidelity against sparsity, and how many of the features of one have a match in another
  one. A feature's page names its match in each of the others. Features are matched by the cosines of their directions,
  where dictionaries write the same sites.

  Returns:
    The page to begin with.

  Raises:
    InputError: no dictionary has been analysed.
  """
  places = {place.name.replace("/", "-"): place for place in run.dictionaries().values()
            if run.stage(f"{place.home}analysis")}
  require(places, "workdir", str(run.directory), "has no dictionary that was analysed: `monojax analyze` does that")
  matches = _matches(run, places)
  listed = [{"name": place.name, "folder": folder, **_listed_figures(run, place)} for folder, place in places.items()]
  pages = run.directory / "pages"
  for folder, place in places.items():
    _write_site(run, config, place, pages / folder,
                {"own": folder, "all": listed, "matches": {other: found for (of, other), found in matches.items()
                                                           if of == folder}})
  with files.replacing(pages / "index.html") as file:
    file.write(f'<!doctype html><meta charset="utf-8"><title>Dictionaries</title><meta http-equiv="refresh" '
               f'content="0; url={next(iter(places))}/index.html#/dictionaries">\n'.encode())
  return pages / "index.html"


def _listed_figures(run: RunFolder, place: DictionaryPlace) -> dict:
  """What the table of dictionaries says of one."""
  record = run.require_stage(place.stage)
  figures = files.read_json(place.weights / "figures.json") or record["figures"]  # of a member of a sweep
  named = {name: figures.get(f"sae/{name}") for name in ("l0", "explained_variance", "ce_recovered_zero")}
  sae = load.load_sae(run, place.name)
  return {"recipe": sae.config.recipe, "n_features": sae.n_features, "writes": list(sae.writes), **named}


def _matches(run: RunFolder, places: dict[str, DictionaryPlace]) -> dict[tuple[str, str], list]:
  """{(folder of A, of B): [for each feature of A its best match in B, the cosines]}, where B writes A's sites."""
  import numpy as np

  from monojax.analysis.matching import cosine_blocks, matched
  saes = {folder: load.load_sae(run, place.name) for folder, place in places.items()}
  found = {}
  for a, b in itertools.combinations(saes, 2):
    if saes[a].writes != saes[b].writes:
      continue
    a_FO, b_FO = saes[a].direction_FO, saes[b].direction_FO
    both = matched(cosine_blocks(a_FO, b_FO), np.ones(len(a_FO), bool), np.ones(len(b_FO), bool))
    rounded = lambda best_F, value_F: [best_F.tolist(), np.nan_to_num(value_F).round(3).tolist()]
    found[a, b], found[b, a] = rounded(both.best_a_F, both.value_a_F), rounded(both.best_b_F, both.value_b_F)
  return found
