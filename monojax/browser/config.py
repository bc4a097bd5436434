"""Settings of the feature browser."""

import dataclasses

from monojax.config import COUNT, option, require_rules


@dataclasses.dataclass(frozen=True)
class BrowserConfig:
  """Settings for writing the static site that shows a dictionary's features."""
  features_per_file: int = option(32, "how many features are in one data file, which a page loads as a whole", COUNT)
  title: str = option("", "heading of the site's pages; if it is empty, the name of the run's folder")

  def __post_init__(self):
    require_rules(self, "browser.")
