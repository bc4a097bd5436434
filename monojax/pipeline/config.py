"""All settings of a run, one section a stage."""

import dataclasses

from monojax.activations.config import HarvestConfig
from monojax.analysis.config import AnalysisConfig
from monojax.browser.config import BrowserConfig
from monojax.config import COUNT_OR_0, POSITIVE, nested, option, require_rules
from monojax.mesh import MeshConfig
from monojax.metrics import MetricsConfig
from monojax.sae.config import SAEConfig, SweepConfig
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
class RunConfig:
  """All settings of a run. Each field is the section of one stage, except `sweep`, `mesh` and `metrics`."""
  tokens: TextConfig = nested(TextConfig)
  subject: SubjectConfig = nested(SubjectConfig)
  activations: HarvestConfig = nested(HarvestConfig)
  sae: SAEConfig = nested(SAEConfig)
  frontier: FrontierConfig = nested(FrontierConfig)
  sweep: SweepConfig = nested(SweepConfig)
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
