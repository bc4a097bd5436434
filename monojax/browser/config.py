"""Settings of the feature browser."""

import dataclasses

from monojax.config import COUNT, COUNT_OR_0, Bounds, option, require_rules


@dataclasses.dataclass(frozen=True)
class BrowserConfig:
  """Settings for writing the static site that shows a dictionary's features."""
  features_per_file: int = option(32, "how many features are in one data file, which a page loads as a whole", COUNT)
  live_weights: int = option(20_000_000, "on the page \"Your text\" a reader's own text is run through the subject and "
                             "the dictionary, unless they have more weights than this together (two bytes of the site "
                             "each); the page then shows texts of the run. 0 has nothing run", COUNT_OR_0)
  texts: tuple[str, ...] = option((), "files of plain text that a reader can choose on the page \"Your text\" (or "
                                      "\"Texts\"), beside texts of the run")
  title: str = option("", "heading of the site's pages; if it is empty, the name of the run's folder")

  def __post_init__(self):
    require_rules(self, "browser.")


@dataclasses.dataclass(frozen=True)
class ServeConfig:
  """Where pages are served."""
  port: int = option(8000, "the pages are at http://localhost:PORT; 0 takes a port that is free",
                     Bounds(at_least=0, at_most=65_535))

  def __post_init__(self):
    require_rules(self)


@dataclasses.dataclass(frozen=True)
class WatchConfig:
  """How often the page of a run in progress is brought up to date."""
  seconds: float = option(5.0, "seconds between two looks at the run", Bounds(at_least=0.1))

  def __post_init__(self):
    require_rules(self)
