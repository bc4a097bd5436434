"""Writes a dictionary's features as a static site that opens from disk: no server, no network.

A page opened as file:// may not fetch its data, but it may load scripts. So each data file is a script with one call,
`data.registerIndex(JSON)` or `data.registerBlock(NUMBER, JSON)`: the index is loaded at once, a block of features when
one of them is shown. `monojax.browser.contents` says what is in them. The site's layout:

  index.html  assets/*.css *.js  data/index.js  data/features-00000.js ...  data/live*.js (see `monojax.browser.live`)

A page of the site is one script, `static/page_NAME.js`, which calls `app.page` with its address, the text of its link
and the function that draws it. The scripts of that name are listed here, and the links are made from what they say, so
that a new page is a new file and nothing else.
"""

import html
import importlib.resources
import os
import pathlib
from collections.abc import Sequence

from monojax import files
from monojax.analysis.columns import COLUMNS, Column, check_described
from monojax.analysis.tables import FeatureTables
from monojax.browser import contents
from monojax.browser.config import BrowserConfig
from monojax.browser.live import Live, texts_file
from monojax.browser.scripts import call
from monojax.config import InputError, require


def build_browser(tables: FeatureTables, directory: str | os.PathLike, title: str,
                  features_per_file: int = BrowserConfig.features_per_file, described: Sequence[Column] = COLUMNS,
                  pages: Sequence[str | os.PathLike] = (), live: Live | None = None) -> pathlib.Path:
  """Writes the site of `tables` into `directory`, which appears, or is replaced, as a whole.

  The same tables give the same bytes. The site is written into `<directory>.partial` first.

  Args:
    tables: what the site shows; columns that it lacks are left out. With `summary["dictionaries"]` it is one of several
      sites in one folder: see `monojax.pipeline.stages.pages.build_all`.
    directory: where the site goes; a site that is already there is replaced.
    title: heading of the pages.
    features_per_file: features in one data file.
    described: how each column is shown. `(*COLUMNS, Column(...))` shows one more.
    pages: files of further pages, scripts called page_NAME.js that call `app.page`.
    live: what the page "Your text" needs to run the model; without it the page shows the texts of `tables.summary`,
      and where these have none, either, there is no such page.

  Returns:
    The path of the site's index.html.

  Raises:
    InputError: the tables contradict themselves, two columns share a name, a page's file is not named as said above or
      missing, or `directory` holds something that is no such site.
  """
  config = BrowserConfig(features_per_file=features_per_file, title=title)
  directory = pathlib.Path(directory)
  check_described(described)
  contents.check(tables, described)
  assets = _assets(pages)
  _check_replaceable(directory)
  partial = directory.with_name(directory.name + ".partial")
  files.remove(partial)
  for folder in (partial / "assets", partial / "data"):
    folder.mkdir(parents=True)
  _write_static(partial, config.title, assets)
  texts = tables.summary.get("texts")
  more = live.files() if live else texts_file(texts, tables.token_strings) if texts else {}
  index = {**contents.index(tables, described, config.title, config.features_per_file),
           "live": "model" if live else "texts" if texts else None,
           "dictionaries": tables.summary.get("dictionaries")}
  _write(partial / "data" / "index.js", call("data.registerIndex", index))
  for number, start in enumerate(range(0, tables.n_features, config.features_per_file)):
    features = range(start, min(start + config.features_per_file, tables.n_features))
    _write(partial / "data" / f"features-{number:05d}.js",
           call("data.registerBlock", number, contents.block(tables, described, features)))
  for name, content in more.items():
    _write(partial / "data" / name, content)
  for folder in (partial / "assets", partial / "data", partial):
    files.sync_directory(folder)
  files.put_in_place(partial, directory)
  return directory / "index.html"


def static_files() -> dict[str, str]:
  """The text of each file in the folder `static`, by name."""
  folder = importlib.resources.files("monojax.browser").joinpath("static")
  return {file.name: file.read_text("utf-8") for file in folder.iterdir()
          if file.name.endswith((".html", ".css", ".js"))}


def _assets(pages: Sequence[str | os.PathLike]) -> dict[str, str]:
  """The text of each file of the site that does not depend on the data, by name: the package's and `pages`."""
  assets = static_files()
  for path in map(pathlib.Path, pages):
    require(_is_page(path.name) and path.name not in assets, "pages", str(path),
            "a page's file must be called page_NAME.js, with a name that no other page has")
    require(path.is_file(), "pages", str(path), "there is no such file")
    assets[path.name] = path.read_text("utf-8")
  return dict(sorted(assets.items()))


def _is_page(name: str) -> bool:
  return name.startswith("page_") and name.endswith(".js")


def _check_replaceable(directory: pathlib.Path) -> None:
  """Raises `InputError` if `directory` holds something other than an older site."""
  if directory.exists() and not (directory / "data" / "index.js").is_file():
    if not directory.is_dir() or any(directory.iterdir()):
      raise InputError(f"{directory} exists and is no feature browser: give another directory or "
                       "remove it")


def _write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes `content` and makes it durable; the folder takes its final name later."""
  with open(path, "wb") as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())


def _write_static(directory: pathlib.Path, title: str, assets: dict[str, str]) -> None:
  """Writes the style, the scripts, and the one HTML file, with its title and the list of the pages' scripts."""
  scripts = "\n".join(f'<script src="assets/{html.escape(name)}"></script>' for name in assets if _is_page(name))
  for name, text in assets.items():
    if name.endswith(".html"):
      _write(directory / name, text.replace("{{title}}", html.escape(title)).replace("<!-- pages -->", scripts))
    else:
      _write(directory / "assets" / name, text)
