"""Settings of the feature browser."""

import dataclasses

from monojax.config import option, require


@dataclasses.dataclass(frozen=True)
class BrowserConfig:
  """How the static site of a run's features is written."""
  features_per_file: int = option(32, "features in one data file, which the page loads as a whole")
  title: str = option("", "heading of the site; empty: the run folder's name")

  def __post_init__(self):
    require(self.features_per_file >= 1, "browser.features_per_file", self.features_per_file,
            "must be at least 1")
