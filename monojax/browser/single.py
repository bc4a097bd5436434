"""One feature as one HTML file that needs no other: for a blog, an e-mail, or a cell of a notebook."""

import dataclasses
import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from monojax.analysis.columns import COLUMNS, Column, axes_of
from monojax.analysis.tables import FeatureTables
from monojax.browser import contents
from monojax.browser.build import static_files
from monojax.browser.scripts import call
from monojax.config import require

_SCRIPT = re.compile(r'<script src="(.*?)"></script>')


def feature_html(tables: FeatureTables, feature: int, title: str, described: Sequence[Column] = COLUMNS) -> str:
  """The page of one feature of a site, with its data, scripts and style inside.

  Args:
    tables: the analysis of the feature's dictionary.
    feature: its number.
    title: what the page says that the feature is from.
    described: how each column is shown.

  Raises:
    InputError: there is no such feature.
  """
  require(0 <= feature < tables.n_features, "feature", feature,
          f"this dictionary has the features 0 to {tables.n_features - 1}")
  feature = int(feature)  # JSON has no integers of NumPy
  assets = static_files()
  block = contents.block(tables, described, [feature])
  data = (call("data.registerIndex", _index(tables, feature, title, described)) +
          call("data.registerBlock", 0, {**block, "features": {str(feature): block["features"][0]}}))
  texts = {**{f"assets/{name}": text for name, text in assets.items()}, "data/index.js": data}
  inside = lambda found: f"<script>\n{texts[found.group(1)]}</script>"
  page = assets["index.html"].replace("<!-- pages -->", '<script src="assets/page_feature.js"></script>')
  page = _SCRIPT.sub(inside, page.replace("{{title}}", html.escape(f"Feature {feature} – {title}")))
  return page.replace('<link rel="stylesheet" href="assets/style.css">', f"<style>\n{assets['style.css']}</style>")


def _index(tables: FeatureTables, feature: int, title: str, described: Sequence[Column]) -> dict[str, Any]:
  """The site's index, cut down: the list's columns hold only this feature and those that its page names, by number."""
  named = [getattr(tables, column.name)[feature].reshape(-1) for column in described
           if column.refers_to == "feature" and tables.has(column.name)]
  ids = np.unique(np.concatenate([[feature], *named]).astype(int))
  ids = ids[ids >= 0]
  columns = {name: array[ids] if axes_of(name)[:1] == ("F",) else array for name, array in tables.columns.items()}
  some = dataclasses.replace(tables, columns=columns, summary={},
                             labels=[tables.labels[i] for i in ids] if tables.labels else [], other_labels=[])
  index = contents.index(some, described, title, tables.n_features)
  by_id = lambda values: dict(zip(map(str, ids.tolist()), values, strict=True))
  for cell in index["cells"]:
    cell["values"] = by_id(cell["values"])
  return {**index, "n_features": tables.n_features, "live": None, "only": feature}
