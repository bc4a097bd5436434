"""A study's report: one page of text, tables and pictures that opens from disk and fetches nothing.

Pictures are Plotly figures, given as plain lists and dicts; Plotly's script is written beside the page.
"""

import dataclasses
import html
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from monojax import files

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; border-bottom: 1px solid #eee;
text-align: left; } th { font-weight: 600; background: #f7f7f7; } 
.note { color: #666; font-size: .9em; margin: .2em 0 1.5em; } nav a { margin-right: 1em; }
"""
_LAYOUT = {"font": {"family": "system-ui, sans-serif", "size": 13}, "paper_bgcolor": "white", "plot_bgcolor": "#fafafa",
           "margin": {"l": 70, "r": 30, "t": 50, "b": 60}, "colorway": ["#1f6fb4", "#d1662a", "#3a9a4b", "#b3364f",
                                                                        "#7a56b0", "#8a6d3b", "#c26bb0", "#666666"]}
# The script at the end of the page, which draws each figure in its own box.
_DRAW = """
for (const box of document.querySelectorAll(".picture")) {
  const figure = JSON.parse(box.querySelector("script").textContent);
  const target = document.createElement("div");
  box.appendChild(target);
  Plotly.newPlot(target, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: "hover"});
}
document.body.dataset.drawn = document.querySelectorAll(".picture .plot-container").length;
"""


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph of the report."""
  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the report: rows of strings and numbers (None is a dash) below a header, and a note below them."""
  header: Sequence[str]
  rows: Sequence[Sequence[Any]]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """A Plotly figure of lists and NumPy arrays, and a note that says what is to be seen in it."""
  data: list[dict[str, Any]]
  layout: dict[str, Any]
  note: str = ""


Block = Text | Table | Picture


def write_report(directory: str | os.PathLike, title: str, sections: Mapping[str, Iterable[Block]]) -> pathlib.Path:
  """Writes a report as `index.html` into a directory, with Plotly's script beside it where Plotly is installed.

  Pictures need Plotly, which `pip install 'monojax[report]'` installs; without it the page says so in their place.

  Args:
    directory: where the page goes; it is made if it does not exist.
    title: the page's title.
    sections: the page's text, tables and pictures by heading.

  Returns:
    The page's path.
  """
  directory = pathlib.Path(directory)
  script = _plotly()
  parts = [f"<h1>{html.escape(title)}</h1>", _links(sections)]
  for number, (heading, blocks) in enumerate(sections.items()):
    parts.append(f'<h2 id="section-{number}">{html.escape(heading)}</h2>')
    parts += [_block(block, script is not None) for block in blocks]
  if script is not None:
    files.write_unless_same(directory / "plotly.min.js", script.encode())
    parts.append(f'<script src="plotly.min.js"></script>\n<script>{_DRAW}</script>')
  head = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
          f"<style>{_STYLE}</style></head><body>")
  files.write_unless_same(directory / "index.html", "\n".join([head, *parts, "</body></html>\n"]).encode())
  return directory / "index.html"


def shown(value: Any) -> str:
  """An entry of a table as text: numbers with four significant digits, whole numbers with all, None as a dash."""
  if value is None:
    return "–"
  if isinstance(value, (bool, str)):
    return str(value)
  if isinstance(value, (int, np.integer)):
    return f"{value:,}"
  return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plotly() -> str | None:
  """The text of Plotly's script, or None where Plotly is not installed."""
  try:
    from plotly.offline import get_plotlyjs
  except ImportError:
    return None
  return get_plotlyjs()


def _links(sections: Iterable[str]) -> str:
  """The page's links to its sections."""
  links = "".join(f'<a href="#section-{number}">{html.escape(heading)}</a>' for number, heading in enumerate(sections))
  return f"<nav>{links}</nav>"


def _block(block: Block, drawn: bool) -> str:
  """The HTML of one paragraph, table or picture; `drawn` says whether there is a script to draw pictures."""
  note = f'<p class="note">{html.escape(block.note)}</p>' if not isinstance(block, Text) and block.note else ""
  if isinstance(block, Text):
    return f"<p>{html.escape(block.text)}</p>"
  if isinstance(block, Table):
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(shown(cell))}</{tag}>" for cell in cells) + "</tr>"
    return f"<table>{row(block.header, 'th')}{''.join(row(cells, 'td') for cells in block.rows)}</table>{note}"
  if not drawn:
    return f'<p class="note">A picture belongs here; pip install \'monojax[report]\' and run again.</p>{note}'
  figure = json.dumps({"data": block.data, "layout": {**_LAYOUT, **block.layout}}, default=_plain, allow_nan=False)
  figure = figure.replace("</", "<\\/")
  return f'<div class="picture"><script type="application/json">{figure}</script></div>{note}'


def _plain(value: Any) -> Any:
  """A NumPy value as lists and numbers for JSON, at five significant digits, which is enough for a picture."""
  if isinstance(value, np.ndarray):
    return value.tolist() if value.dtype.kind in "iubU" else [_plain(item) for item in value] if value.ndim > 1 else [
        float(f"{item:.5g}") if np.isfinite(item) else None for item in value]
  if isinstance(value, np.generic):
    return value.item()
  raise TypeError(f"not for JSON: {type(value)}")
