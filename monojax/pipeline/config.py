"""All settings of a run, one section a stage."""

import dataclasses

from monojax.activations.config import HarvestConfig
from monojax.analysis.config import AnalysisConfig
from monojax.browser.config import BrowserConfig
from monojax.config import COUNT, COUNT_OR_0, POSITIVE, SEED, nested, option, require, require_rules
from monojax.mesh import MeshConfig
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig, SweepConfig
from monojax.sae.recipes import RECIPES
from monojax.subjects.config import SubjectConfig
from monojax.text.config import TextConfig


@dataclasses.dataclass(frozen=True)
class FrontierConfig:
  """Further dictionaries like the main one, but sparser or denser: the points of the frontier."""
  sparsities: tuple[float, ...] = option((), "values of sae.sparsity_coefficient, or of sae.k in the TopK family, to "
                                             "train besides the main dictionary's; all in one pass over the data",
                                             POSITIVE)
  n_steps: int = option(0, "optimiser steps of each, which then starts from the main dictionary's parameters; 0 "
                           "trains each from the start for as long as the main one", COUNT_OR_0)

  def __post_init__(self):
    require_rules(self, "frontier.")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
  """Recipes that are compared on the same activations: which, at which sizes, how often, and what they are scored on.

  Each recipe is trained at the sparsities of its record's grid, with the batches and the steps that --sae says.
  """
  recipes: tuple[str, ...] = option((), "recipes to compare; if none are named, all but tsae, which needs pairs "
                                         "of tokens, if the run has none")
  n_features: tuple[int, ...] = option((), "features of the dictionaries; half of sae.n_features and as many if none "
                                           "are named", COUNT)
  seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the weights, a dictionary for each", SEED)
  l0: tuple[float, ...] = option((8.0, 16.0, 32.0), "features a token at which recipes are compared: scores are "
                                                    "interpolated between a recipe's dictionaries", POSITIVE)
  n_tokens: int = option(131_072, "tokens of training text that labels and detectors are scored on", COUNT)
  n_labelled: int = option(100, "features of each dictionary that are labelled, at random among those that fire often "
                                "enough", COUNT)
  shared: float = option(0.7, "cosine of two directions from which on dictionaries of two seeds share the feature",
                         POSITIVE)
  planted: bool = option(True, "also train every recipe on planted features, whose truth is known")

  def __post_init__(self):
    require_rules(self, "benchmark.")
    for name in ("n_features", "seeds", "l0", "recipes"):
      values = getattr(self, name)
      require(len(set(values)) == len(values), f"benchmark.{name}", values, "names a value twice")
    require(self.seeds and self.l0, "benchmark.seeds" if self.l0 else "benchmark.l0", (), "name at least one")
    require(all(name in RECIPES for name in self.recipes), "benchmark.recipes", ",".join(self.recipes),
            f"choose of {', '.join(RECIPES)}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run. Each field is the section of a stage, but for `sweep`, `benchmark`, `mesh`, `metrics`."""
  tokens: TextConfig = nested(TextConfig)
  subject: SubjectConfig = nested(SubjectConfig)
  activations: HarvestConfig = nested(HarvestConfig)
  sae: SAEConfig = nested(SAEConfig)
  frontier: FrontierConfig = nested(FrontierConfig)
  sweep: SweepConfig = nested(SweepConfig)
  benchmark: BenchmarkConfig = nested(BenchmarkConfig)
  analysis: AnalysisConfig = nested(AnalysisConfig)
  browser: BrowserConfig = nested(BrowserConfig)
  mesh: MeshConfig = nested(MeshConfig)
  metrics: MetricsConfig = nested(MetricsConfig)

  def __post_init__(self):
    require_rules(self)

  @staticmethod
  def upgraded(values: dict) -> dict:
    """Saved settings in today's fields: version 0.1 called the section of the tokens `text`."""
    return {("tokens" if name == "text" else name): value for name, value in values.items()}
