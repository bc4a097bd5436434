"""Recipes compared on one run's activations, and on planted features: what is trained, the tables, the picture."""

import dataclasses
import pathlib
import typing
from collections.abc import Mapping, Sequence

from monojax import config as configs
from monojax import files
from monojax.activations.config import EARLIER
from monojax.config import require
from monojax.pipeline import load
from monojax.pipeline.checks import require_sites_of_run
from monojax.pipeline.config import BenchmarkConfig, RunConfig
from monojax.pipeline.folder import SWEEPS, RunFolder
from monojax.pipeline.presets import dictionary_by
from monojax.pipeline.stages.dictionaries import sweep
from monojax.sae.config import SweepConfig
from monojax.sae.recipes import OF_ROWS, RECIPES, recipe_of

if typing.TYPE_CHECKING:
  from monojax.studies.recipes.scores import Text

FOLDER = "benchmark"
_PROTOCOL = 1  # counted up when scores would come out otherwise with the same settings
_PLANTED = (("mcc", "MCC"), ("absorption", "absorption"), ("uniqueness", "uniqueness"), ("f1", "F1"))
_NAME_WIDTH, _CELL_WIDTH = 14, 16

Row = dict[str, typing.Any]


def compare_recipes(run: RunFolder, config: RunConfig, preset: str) -> list[Row]:
  """Trains every recipe at several sparsities, sizes and seeds on a run's activations, and scores the dictionaries.

  In the folder `benchmark` of the run are then `points.csv` and `.json` (a row for each dictionary), `at_l0.csv` and
  `.json` (each recipe and size at equal L0, means over seeds with intervals), `benchmark.png`, and, of planted
  features, `planted.csv` and `.json`. The dictionaries are in `sweeps/benchmark-RECIPE`. What is there already is not
  done again.

  Args:
    run: the run's folder, whose activations are made.
    config: its settings; the section `sae` says how many steps of how many rows each dictionary has.
    preset: the name of the run's preset, which says whether recipes take published or quick values.

  Returns:
    The rows of `at_l0`.

  Raises:
    InputError: the run has no activations yet, or was given them and has no subject.
  """
  from monojax.activations.owner import owned
  from monojax.analysis.pictures import draw_benchmark
  from monojax.studies.recipes.scores import SCORES
  require(load.activations_config(run).source != "given", "--workdir", str(run.directory), "was given its activations "
          "and has no subject, so that fidelity and labels cannot be measured; `monojax sweep` trains on them")
  settings = config.benchmark
  recipes = recipes_for(run, config)
  sizes = settings.n_features or tuple(dict.fromkeys((max(1, config.sae.n_features // 2), config.sae.n_features)))
  home = run.directory / FOLDER
  points: list[Row] = []
  grids = [grid_of(config, preset, recipe, sizes) for recipe in recipes]
  for grid in grids:  # all are checked before the first
    require_sites_of_run(run, grid)
  for grid in grids:
    sweep(run, grid)
  with owned(home):
    text = _text(run, config)
    for recipe in recipes:
      points += _scored(run, config, recipe, text, home)
    rows = compared(points, settings.l0)
    files.write_table(home / "points", points)
    files.write_table(home / "at_l0", rows)
    if not draw_benchmark(points, SCORES, home / "benchmark.png"):
      print(f"{home / 'benchmark.png'} is not drawn: it needs matplotlib, pip install 'monojax[report]'")
    _print(rows, settings)
    of_rows = [recipe for recipe in recipes if recipe in OF_ROWS]  # planted rows are no pairs
    if settings.planted and of_rows:
      planted = _planted(home / "planted", of_rows, settings)
      files.write_table(home / "planted", planted)
      _print_planted(planted)
  print(f"\nSee {home}")
  return rows


def recipes_for(run: RunFolder, config: RunConfig) -> tuple[str, ...]:
  """The recipes that are compared: those that are named, or all that the run's activations are enough for."""
  activations = load.activations_config(run)
  reads, _ = config.sae.wired(activations.site)
  paired = activations.source == "stream" or {site + EARLIER for site in reads} <= set(activations.sites)
  return config.benchmark.recipes or (tuple(RECIPES) if paired else OF_ROWS)


def grid_of(config: RunConfig, preset: str, recipe: str, sizes: Sequence[int]) -> RunConfig:
  """The settings of the sweep of one recipe, with nothing added to what its record says.

  Values of k that exceed the smallest of the sizes are left out.
  """
  base = dictionary_by(preset, recipe, config.sae)
  if recipe == "tm2023":  # its publication resamples, and short runs do so sooner
    base = dataclasses.replace(base, resample_every_steps=max(1, base.n_steps // 3), resample_times=2,
                               resample_rows=65_536)
  base = dataclasses.replace(base, reads=config.sae.reads, writes=config.sae.writes, skip=config.sae.skip)
  record = recipe_of(recipe)
  sparsities = [value for value in record.grid if record.knob != "k" or value <= min(sizes)]
  require(sparsities, "benchmark.n_features", min(sizes), f"is less than every k of {recipe}'s grid, "
          f"{', '.join(map(str, record.grid))}")
  base = dataclasses.replace(base, k=min(base.k, *sizes))  # what the sweep replaces, but it is checked before
  return dataclasses.replace(config, sae=base, sweep=SweepConfig(
      name=f"{FOLDER}-{recipe}", sparsities=tuple(sparsities), n_features=tuple(sizes),
      seeds=config.benchmark.seeds))


def _text(run: RunFolder, config: RunConfig) -> "Text":
  """What the dictionaries are scored on."""
  from monojax.analysis.chosen_codes import Reader
  from monojax.studies.recipes.scores import Text
  first = next(name for name in run.dictionaries() if name.startswith(f"{SWEEPS}/{FOLDER}-"))
  reader = Reader(load.load_subject(run), load.load_sae(run, first), load.open_tokens(run, "train"),
                  load.kept_of(run), config.analysis.batch_contexts)
  return Text.of(reader, load.load_tokenizer(run).token_strings(), config.benchmark.n_tokens, config.analysis.detectors)


def _scored(run: RunFolder, config: RunConfig, recipe: str, text: "Text", home: pathlib.Path) -> list[Row]:
  """A row for each dictionary of a recipe: its figures on held-out text, and its scores."""
  from monojax.studies.recipes.scores import score_seeds
  stage = f"{SWEEPS}/{FOLDER}-{recipe}"
  record = run.require_stage(stage)
  groups: dict[tuple[int, float], list[Row]] = {}
  for point in files.read_json(run.made(stage, "points.json")):
    groups.setdefault((point["n_features"], point["sparsity"]), []).append(point)
  rows: list[Row] = []
  settings = configs.to_dict(config.benchmark)
  for (n_features, sparsity), group in sorted(groups.items()):
    wanted = {"protocol": _PROTOCOL, "output": record["output"], "members": [point["name"] for point in group],
              "classes": list(config.analysis.detectors),
              **{name: settings[name] for name in ("n_tokens", "n_labelled", "shared")}}
    path = home / "scores" / f"{recipe}-{n_features}-{sparsity:g}.json"
    kept = files.read_record(path)
    if not kept or kept["made_with"] != wanted:
      print(f"scoring {recipe}, {n_features:,} features, {sparsity:g}", flush=True)
      saes = [load.load_sae(run, f"{stage}/dictionaries/{point['name']}") for point in group]
      scores = score_seeds(text, saes, config.benchmark.n_labelled, config.benchmark.shared,
                           config.analysis.batch_contexts)
      kept = {"made_with": wanted, "scores": scores}
      files.write_record(path, kept)
    rows += [{"recipe": recipe, "n_features": n_features, "sparsity": sparsity, "seed": _seed_of(point["name"]),
              **{name: point[name] for name in ("l0", "ce_recovered_zero", "explained_variance",
                                                "heldout_alive_fraction", "train_seconds", "name")}, **scores}
             for point, scores in zip(group, kept["scores"], strict=True)]
  return rows


def _seed_of(name: str) -> int:
  """The seed in the name of a sweep's member (`monojax.sae.sweep.name_of`)."""
  return int(name.rpartition("-seed")[2])


def compared(points: Sequence[Row], levels: Sequence[float]) -> list[Row]:
  """Each recipe and size at each L0: for each score its mean over seeds, and `NAME_error`, half its interval of 95 %.

  A recipe none of whose sparsities come to an L0 on one side of a level has no row for it.
  """
  from monojax.studies.recipes.scores import SCORES, at_l0
  rows = []
  for recipe, n_features in dict.fromkeys((point["recipe"], point["n_features"]) for point in points):
    own = [point for point in points if (point["recipe"], point["n_features"]) == (recipe, n_features)]
    for level in levels:
      found = {score: at_l0(own, level, score) for score in SCORES}
      if all(value is None for value in found.values()):
        continue
      row: Row = {"recipe": recipe, "n_features": n_features, "l0": level, "seeds": len({one["seed"] for one in own})}
      for score, value in found.items():
        row |= {score: value and value[0], f"{score}_error": value and value[1]}
      rows.append(row)
  return rows


def _print(rows: Sequence[Row], settings: BenchmarkConfig) -> None:
  from monojax.studies.recipes.scores import SCORES
  for level in settings.l0:
    for n_features in sorted({row["n_features"] for row in rows}):
      chosen = [row for row in rows if (row["l0"], row["n_features"]) == (level, n_features)]
      if not chosen:
        continue
      print(f"\n{n_features:,} features, {level:g} of them a token, mean of {chosen[0]['seeds']} seeds")
      print(f"{'recipe':<{_NAME_WIDTH}}" + "".join(f"{score:>{_CELL_WIDTH + 4}}" for score in SCORES))
      for row in sorted(chosen, key=lambda row: -(row["ce_recovered_zero"] or 0)):
        print(f"{row['recipe']:<{_NAME_WIDTH}}" + "".join(
            f"{_with_error(row[score], row[f'{score}_error']):>{_CELL_WIDTH + 4}}" for score in SCORES))


def _with_error(value: float | None, error: float | None) -> str:
  if value is None:
    return "-"
  return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _planted(directory: pathlib.Path, recipes: Sequence[str], settings: BenchmarkConfig) -> list[Row]:
  """Scores of every recipe on trees of correlated planted features, mean over seeds with intervals."""
  import numpy as np

  from monojax.analysis.over_seeds import mean_over_seeds
  from monojax.studies.synthetic import study
  found: dict[str, list[Mapping[str, typing.Any]]] = {}
  for seed in settings.seeds:
    base = study.SyntheticStudyConfig()
    config = dataclasses.replace(
        base, recipes=tuple(recipes), sizes=(1.0,), planted=dataclasses.replace(base.planted, seed=seed),
        sae=dataclasses.replace(base.sae, seed=seed))
    place = RunFolder(directory / f"seed{seed}", config.inputs)
    study.train_trees(place, config, correlation_rank=8)
    for (recipe, _), point in study.nearest_in_sparsity(files.read_json(place.made("trees", "points.json"))).items():
      found.setdefault(recipe, []).append(point)
  rows = []
  for recipe, points in found.items():
    row: Row = {"recipe": recipe, "seeds": len(points), "true_l0": points[0]["true_l0"],
                "l0": float(np.mean([point["l0"] for point in points]))}
    for name, _ in _PLANTED:
      row[name], row[f"{name}_error"] = mean_over_seeds([point[name] for point in points])
    rows.append(row)
  return rows


def _print_planted(rows: Sequence[Row]) -> None:
  first = rows[0]
  print(f"\nTrees of planted features, of which {first['true_l0']:.1f} fire on a row, mean of {first['seeds']} seeds")
  print(f"{'recipe':<{_NAME_WIDTH}}{'L0':>8}" + "".join(f"{title:>{_CELL_WIDTH}}" for _, title in _PLANTED))
  for row in sorted(rows, key=lambda row: -row["mcc"]):
    print(f"{row['recipe']:<{_NAME_WIDTH}}{row['l0']:>8.1f}" + "".join(
        f"{_with_error(row[name], row[f'{name}_error']):>{_CELL_WIDTH}}" for name, _ in _PLANTED))
