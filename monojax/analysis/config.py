"""Settings of the analysis."""

import dataclasses

from monojax.config import option, require, require_not_negative

DETECTORS = ("Hebrew=he_*", "Arabic=ar_*", "Cyrillic=ru_*", "Japanese=ja_*", "Korean=ko_*", "DNA=dna",
             "base64=base64", "Python code=code_python", "LaTeX=latex", "URLs=urls")


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
  """How much text the features are measured on, and which questions are asked of it."""
  n_tokens: int = option(1_000_000, "training tokens that densities and examples are taken on; 0 = all")
  n_detector_tokens: int = option(262_144, "tokens for choosing detectors' thresholds (of training text), "
                                           "and as many held-out ones for testing them")
  detectors: tuple[str, ...] = option(DETECTORS, "classes of text as NAME=GLOB of domain names, several "
                                                 "globs joined by |; those without text are left out")
  ultralow_density: float = option(1e-5, "features that fire on a smaller fraction of tokens, but do fire, "
                                         "count as ultralow; the paper's 1e-6 needs its 100 million tokens")
  min_token_count: int = option(10, "tokens seen less often in training text get no logit weights")
  batch_contexts: int = option(64, "contexts in one forward pass")
  seed: int = option(0, "of the choice of contexts")

  def __post_init__(self):
    require_not_negative(self, "analysis.", "n_tokens", "n_detector_tokens", "seed")
    require(self.batch_contexts >= 1, "analysis.batch_contexts", self.batch_contexts, "must be positive")
    for detector in self.detectors:
      require("=" in detector, "analysis.detectors", detector, "must read NAME=GLOB or NAME=GLOB|GLOB")
