"""The synthetic study: which recipes recover planted features, and which split them or let one absorb another.

It has three kinds of stages. `main` trains one dictionary on features that fire about as rarely as in publications.
`level_4` and its like train dictionaries of several recipes, sizes and sparsities on rows in which four features fire
on average. `trees` trains the same dictionaries on features of which some fire only where certain others do.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from monojax import files
from monojax.config import COUNT, INT32, POSITIVE, nested, option, require, require_rules
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.recipes import OF_ROWS, recipe_of
from monojax.studies.synthetic.planted import SYNTH_SAE_BENCH, PlantedConfig

Point = dict[str, Any]  # a dictionary of the grid: recipe, n_features, sparsity and its scores

# The penalties at which each recipe is trained in the grid, from dense to sparse. A recipe that is not here takes those
# of its record. A recipe that k makes sparse is trained once, with k the number of features that truly fire.
PENALTIES = {"tm2023": (0.003, 0.01, 0.03), "apr2024": (0.5, 2.0, 8.0), "gated": (1.0, 4.0, 16.0),
             "jumprelu": (0.5, 2.0, 8.0), "jan2025": (0.3, 1.2, 4.8)}
# Settings with which recipes converge in some thousand steps, where their publications take hundreds of thousands.
_FAST: dict[str, dict[str, Any]] = {
    "gated": {"beta1": 0.9}, "jumprelu": {"beta1": 0.9, "threshold": 0.3, "bandwidth": 0.3}}
_FIRST_SCORED, _SCORED_ROWS = 2**30, 65_536  # scores are measured from this batch on, which no training reaches


@dataclasses.dataclass(frozen=True)
class SyntheticStudyConfig:
  """The planted features and the dictionary of the study's main stage, and the grid of dictionaries beside it."""
  planted: PlantedConfig = nested(PlantedConfig)
  sae: SAEConfig = dataclasses.field(default_factory=lambda: SAEConfig(
      recipe="batchtopk", n_features=576, k=8, batch_rows=1024, n_steps=6000, learning_rate=3e-3, warmup_steps=100,
      decay_fraction=0.3, dead_window_steps=100, scan_steps=50, checkpoint_every_steps=1000))
  recipes: tuple[str, ...] = option(("tm2023", "jumprelu", "batchtopk", "matryoshka"),
                                    "recipes that are trained in the grid")
  levels: tuple[float, ...] = option((1.0, 4.0, 16.0), "numbers of features that fire on a row on average, with a "
                                                       "stage for each", POSITIVE)
  sizes: tuple[float, ...] = option((0.5, 1.0, 2.0), "sizes of the grid's dictionaries, over the number of planted "
                                                     "features", POSITIVE)
  grid_features: int = option(128, "number of planted features in the grid, all of which fire equally often", COUNT)
  grid_width: int = option(64, "number of numbers in a row of the grid", COUNT)
  grid_steps: int = option(1000, "number of optimiser steps of each dictionary in the grid", COUNT)
  grid_batch_rows: int = option(512, "number of rows in a step of the grid", COUNT)

  def __post_init__(self) -> None:
    require_rules(self)
    require(all(name in OF_ROWS for name in self.recipes) and self.recipes, "recipes", ",".join(self.recipes),
            f"choose one or more of {', '.join(OF_ROWS)}")
    require(all(level < self.grid_features for level in self.levels), "levels", self.levels,
            f"must be below grid_features={self.grid_features}")
    require(all(1 <= size * self.grid_features <= INT32 for size in self.sizes), "sizes", self.sizes,
            f"must give dictionaries of 1 to 2**31 - 1 features, over grid_features={self.grid_features}")

  @property
  def inputs(self) -> dict[str, tuple[str, ...]]:
    """The study's stages, none of which reads another, as `monojax.pipeline.folder.RunFolder` takes them."""
    return {name: () for name in ("main", *(f"level_{level:g}" for level in self.levels), "trees")}


def synth_sae_bench(config: SyntheticStudyConfig) -> SyntheticStudyConfig:
  """The study with the planted features of SynthSAEBench-16k (arXiv 2602.14687), and a dictionary of its size."""
  return dataclasses.replace(config, planted=SYNTH_SAE_BENCH, sae=dataclasses.replace(
      config.sae, n_features=4096, k=25, batch_rows=1024, n_steps=195_313, learning_rate=3e-4))


def train_main(run: RunFolder, config: SyntheticStudyConfig) -> dict[str, Any]:
  """The stage `main`: trains one dictionary on the main planted features, whose scores are the study's figures.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record.
  """
  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    from monojax import mesh as meshes
    from monojax.analysis.recovery import recovery
    from monojax.metrics import MetricsConfig
    from monojax.sae.model import Wiring
    from monojax.sae.train import train_sae
    from monojax.studies.synthetic.source import Planted, Synthetic
    planted, sae = Planted.of(config.planted), config.sae.resolved()
    source = Synthetic(planted, sae.batch_rows, sae.seed)
    model, params = train_sae(sae, source, Wiring((source.width,)), directory, {"identity": identity},
                              meshes.make_mesh(), MetricsConfig(), "main")
    scores = recovery(model, params, source, -(-_SCORED_ROWS // sae.batch_rows), _FIRST_SCORED)
    files.write_npz(directory / "scores.npz", {"best_N": scores.pop("best_N"),
                                               "probability_N": config.planted.probabilities()})
    return {f"synthetic/{name}": value for name, value in scores.items()}
  return run.execute("main", {"planted": config.planted, "sae": config.sae}, work)


def grid_configs(config: SyntheticStudyConfig, level: float, n_steps: int | None = None) -> list[SAEConfig]:
  """The settings of the dictionaries that are trained on rows in which `level` features fire on average.

  Args:
    config: the study's settings.
    level: how many features fire, which is the k of recipes that have one.
    n_steps: the number of optimiser steps, if not `config.grid_steps`.
  """
  found: list[SAEConfig] = []
  for recipe in config.recipes:
    for size in config.sizes:
      n_features = round(size * config.grid_features)
      base = SAEConfig(recipe=recipe, n_features=n_features, batch_rows=config.grid_batch_rows, learning_rate=3e-3,
                       n_steps=n_steps or config.grid_steps, warmup_steps=100, decay_fraction=0.3, scan_steps=50,
                       dead_window_steps=200, checkpoint_every_steps=1000, seed=config.sae.seed,
                       k=min(round(level), n_features), **_FAST.get(recipe, {}))
      if recipe == "matryoshka":
        groups = tuple(n_features // part for part in (8, 4, 2) if n_features >= part)
        base = dataclasses.replace(base, group_sizes=groups)
      record = recipe_of(recipe)
      found += [base] if record.knob == "k" else base.at_sparsities(PENALTIES.get(recipe, record.grid))
  return found


def train_level(run: RunFolder, config: SyntheticStudyConfig, level: float) -> dict[str, Any]:
  """A stage of the grid: trains all recipes and sizes on rows in which `level` of equally frequent features fire.

  Args:
    run: the study's folder.
    config: its settings.
    level: how many features fire on a row on average, one of `config.levels`.

  Returns:
    The stage's record.
  """
  planted = PlantedConfig(config.grid_features, config.grid_width, frequency="equal", mean_active=level,
                          min_strength=0.2, seed=config.planted.seed)
  return _train_grid(run, f"level_{level:g}", config, planted, grid_configs(config, level))


def train_trees(run: RunFolder, config: SyntheticStudyConfig, correlation_rank: int = 0) -> dict[str, Any]:
  """The stage `trees`: trains the grid's recipes and sizes on trees of features.

  In a tree a child fires only where its parent does, and never together with a sibling.

  Args:
    run: the study's folder.
    config: its settings.
    correlation_rank: rank of the correlation between features; with 0 trees do not depend on each other.

  Returns:
    The stage's record.
  """
  n_roots = config.grid_features // 8
  planted = PlantedConfig(5 * n_roots, config.grid_width, frequency="equal", mean_active=0.5 * n_roots,
                          child_probability=0.5, min_strength=0.2, n_roots=n_roots, branching=4, depth=1,
                          correlation_rank=correlation_rank, seed=config.planted.seed)
  level = float(planted.probabilities().sum())
  return _train_grid(run, "trees", config, planted, grid_configs(config, level, 2 * config.grid_steps))


def _train_grid(run: RunFolder, name: str, config: SyntheticStudyConfig, planted: PlantedConfig,
                saes: Sequence[SAEConfig]) -> dict[str, Any]:
  """The stage `name`: trains dictionaries on the same rows of planted features, and writes the scores of each."""
  from monojax.sae.model import Wiring
  from monojax.sae.sweep import name_of, train_sweep

  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    import numpy as np

    from monojax import mesh as meshes
    from monojax.analysis.recovery import absorption, recovery
    from monojax.metrics import MetricsConfig
    from monojax.studies.synthetic.source import Planted, Synthetic
    source = Synthetic(Planted.of(planted), config.grid_batch_rows, planted.seed)
    identities = {name_of(sae): {"identity": identity} for sae in saes}
    trained = train_sweep(saes, source, Wiring((source.width,)), directory, identities, meshes.make_mesh(),
                          MetricsConfig(), sample_seed=planted.seed)
    points, scored = [], (source, -(-_SCORED_ROWS // config.grid_batch_rows), _FIRST_SCORED)
    for sae, model, params in trained.values():
      scores = recovery(model, params, *scored)
      scores["found"] = float((scores.pop("best_N") > 0.9).mean())
      if planted.n_roots:
        scores["absorption"] = float(np.nanmean(absorption(model, params, *scored)))
      points.append({"recipe": sae.recipe, "n_features": sae.n_features, "sparsity": sae.sparsity, **scores})
    files.write_json(directory / "points.json", points)
    return {}
  return run.execute(name, {"planted": planted, "saes": {name_of(sae): sae for sae in saes}}, work)


def nearest_in_sparsity(points: Sequence[Point]) -> dict[tuple[str, int], Point]:
  """For each recipe and size the dictionary that is about as sparse as the truth.

  Of the sparsities at which they were trained, it is the one whose L0 is nearest, as a ratio, to the number of planted
  features that fire on a row.

  Args:
    points: the dictionaries of a stage.

  Returns:
    {(recipe, number of features): the dictionary's point}.
  """
  chosen: dict[tuple[str, int], Point] = {}
  for point in points:
    key = point["recipe"], point["n_features"]
    far = abs(_log_ratio(point))
    if key not in chosen or far < abs(_log_ratio(chosen[key])):
      chosen[key] = point
  return chosen


def _log_ratio(point: Mapping[str, Any]) -> float:
  """The logarithm of the L0 over the number of planted features that fire on a row."""
  return math.log(max(point["l0"], 1e-3) / point["true_l0"])
