"""Settings of the analysis."""

import dataclasses

from monojax.config import COUNT, FRACTION, NOT_NEGATIVE, SEED, option, require, require_rules

DETECTORS = ("Hebrew=he_*", "Arabic=ar_*", "Cyrillic=ru_*", "Japanese=ja_*", "Korean=ko_*", "DNA=dna",
             "base64=base64", "Python code=code_python", "LaTeX=latex", "URLs=urls")


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
  """How much text the features are measured on, and which questions are asked of it."""
  n_tokens: int = option(1_000_000, "training tokens that densities and examples are taken on; 0 = all", NOT_NEGATIVE)
  n_detector_tokens: int = option(262_144, "tokens for choosing detectors' thresholds (of training text), "
                                           "and as many held-out ones for testing them", NOT_NEGATIVE)
  detectors: tuple[str, ...] = option(DETECTORS, "classes of text as NAME=GLOB of domain names, several "
                                                 "globs joined by |; those without text are left out")
  ultralow_density: float = option(1e-5, "features that fire on a smaller fraction of tokens, but do fire, "
                                         "count as ultralow; the paper's 1e-6 needs its 100 million tokens", FRACTION)
  min_token_count: int = option(10, "tokens seen less often in training text get no logit weights", NOT_NEGATIVE)
  batch_contexts: int = option(64, "contexts in one forward pass", COUNT)
  seed: int = option(0, "of the choice of contexts", SEED)

  def __post_init__(self):
    require_rules(self, "analysis.")
    for detector in self.detectors:
      require("=" in detector, "analysis.detectors", detector, "must read NAME=GLOB or NAME=GLOB|GLOB")
