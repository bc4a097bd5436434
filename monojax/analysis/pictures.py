"""Pictures of dictionaries: their frontier, which is sparsity against fidelity, and their learning curves.

Pictures need matplotlib, which `pip install 'monojax[report]'` installs. Without it, functions draw nothing and return
False.
"""

import collections
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from monojax import distributed

FRONTIER = (("ce_recovered_zero", "cross-entropy recovered"), ("explained_variance", "explained variance"))
CURVES = (("mse", "mean squared error"), ("l0", "L0 (features a token)"), ("explained_variance", "explained variance"),
          ("dead_fraction", "dead features"))
_COLOURS = 10  # lines that differ in colour; the next ones are dashed


def draw_frontier(points: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> bool:
  """Draws cross-entropy recovered and explained variance against L0, with a line for each recipe and size.

  Args:
    points: the dictionaries, dicts with sweep, recipe, n_features, l0, ce_recovered_zero and explained_variance. A
      recipe that is in several sweeps has a line for each of them.
    path: the picture's file, whose ending says the format.

  Returns:
    Whether the picture was drawn.
  """
  several_sizes = len({point["n_features"] for point in points}) > 1
  sweeps: dict[str, set] = {}
  for point in points:
    sweeps.setdefault(point["recipe"], set()).add(point["sweep"])
  lines: dict[str, list] = {}
  for point in sorted(points, key=lambda point: point["l0"]):
    label = point["recipe"] + (f", {point['n_features']:,}" if several_sizes else "")
    label += f" ({point['sweep']})" if len(sweeps[point["recipe"]]) > 1 else ""
    lines.setdefault(label, []).append(point)
  panels = [{"ylabel": title, "xlabel": "L0 (features a token)", "xscale": "log",
             "lines": {label: [(point["l0"], point[column]) for point in line if point[column] is not None]
                       for label, line in sorted(lines.items())}} for column, title in FRONTIER]
  return _draw(panels, (11, 4.5), "o-", path)


def draw_benchmark(points: Sequence[Mapping[str, Any]], scores: Mapping[str, str],
                   path: str | os.PathLike[str]) -> bool:
  """Draws scores of dictionaries against L0, with a panel for each score and a line for each recipe.

  A point of a line is the mean over the seeds of one sparsity, of the largest size that there is.

  Args:
    points: the dictionaries, dicts with recipe, n_features, sparsity, l0 and the scores.
    scores: {column: the title of its panel}.
    path: the picture's file, whose ending says the format.

  Returns:
    Whether the picture was drawn.
  """
  largest = max(point["n_features"] for point in points)
  groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
  for point in points:
    if point["n_features"] == largest:
      groups.setdefault((point["recipe"], point["sparsity"]), []).append(point)
  panels = []
  for column, title in scores.items():
    lines: dict[str, list] = {recipe: [] for recipe, _ in groups}
    for (recipe, _), group in groups.items():
      values = [point[column] for point in group if point[column] is not None]
      if values:
        lines[recipe].append((sum(point["l0"] for point in group) / len(group), sum(values) / len(values)))
    panels.append({"ylabel": title, "xlabel": "L0 (features a token)", "xscale": "log",
                   "lines": {recipe: sorted(line) for recipe, line in lines.items()}})
  return _draw(panels, (15, 9), "o-", path, n_columns=3)


def draw_curves(metrics_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
  """Draws error, sparsity, explained variance and dead features over the steps of training.

  Args:
    metrics_path: the `metrics.jsonl` of a dictionary, or of a sweep, whose members have a line each.
    path: the picture's file, whose ending says the format.

  Returns:
    Whether the picture was drawn.
  """
  lines: dict[str, dict[str, list]] = {column: {} for column, _ in CURVES}
  for line in pathlib.Path(metrics_path).read_text("utf-8").splitlines():
    record = json.loads(line)
    for name, value in record.items():
      label, _, column = name.rpartition("/")
      if column in lines and value is not None:  # explained variance is undefined where rows do not vary
        lines[column].setdefault(label, []).append((record["step"], value))
  panels = [{"ylabel": title, "xlabel": "step", "yscale": "log" if column == "mse" else "linear",
             "lines": lines[column]} for column, title in CURVES]
  return _draw(panels, (15, 3.5), "-", path)


def draw_matches(matches: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]],
                 path: str | os.PathLike[str]) -> bool:
  """Draws how similar features are to their best matches, and how alike the effects of matched features are.

  The first panels have a line for each of several sets of features: the similarity of each with its best match, in
  falling order, over the share of the set. The last panel has a point for each pair of features.

  Args:
    matches: {title of a panel: {label: similarities of the features of a set; NaN for those without a match}}.
    pairs: dicts with "correlation" (of activations) and "attribution_similarity", which may be None.
    path: the picture's file, whose ending says the format.

  Returns:
    Whether the picture was drawn.
  """
  def falling(values):
    values = sorted((float(value) for value in values if value == value), reverse=True)
    return [((place + 0.5) / len(values), value) for place, value in enumerate(values)]
  panels = [{"ylabel": f"{title} of the best match", "xlabel": "share of features", "ylim": (-0.05, 1.05),
             "lines": {label: falling(values) for label, values in lines.items()}} for title, lines in matches.items()]
  points = [(pair["correlation"], pair["attribution_similarity"]) for pair in pairs
            if pair["attribution_similarity"] is not None]
  if points:
    panels.append({"ylabel": "similarity of attributions", "xlabel": "correlation of activations", "style": ".",
                   "lines": {"pairs": points}})
  return _draw(panels, (5 * len(panels), 4.5), "-", path)


def draw_map(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], n_named: int = 10) -> bool:
  """Draws features as points of the plane, coloured by their domain, with a panel for each dictionary.

  Args:
    rows: dicts with "dictionary", "domain", "x" and "y".
    path: the picture's file, whose ending says the format.
    n_named: how many domains have a colour, those with the most features, at most 10; the others are grey.

  Returns:
    Whether the picture was drawn.
  """
  several = len({row["dictionary"] for row in rows}) > 1
  counts = collections.Counter(row["domain"] for row in rows if row["domain"])
  named = [domain for domain, _ in counts.most_common(n_named)]
  lines: dict[str, list] = {"others": []} | {domain: [] for domain in named}
  panels: dict[str, dict[str, Any]] = {}
  for row in rows:
    title = row["dictionary"] if several else ""
    panel = panels.setdefault(title, {"title": title, "xlabel": "UMAP 1", "ylabel": "UMAP 2", "style": ".",
                                      "colors": {"others": "lightgrey"}, "lines": {name: [] for name in lines}})
    panel["lines"][row["domain"] if row["domain"] in named else "others"].append((row["x"], row["y"]))
  return _draw(list(panels.values()), (7 * len(panels), 6), ".", path)


def _draw(panels: Sequence[Mapping[str, Any]], size: tuple[float, float], style: str,
          path: str | os.PathLike[str], n_columns: int = 0) -> bool:
  """Draws panels side by side, in rows of `n_columns` where it is given.

  Args:
    panels: for each panel "lines", {label: [(x, y)]}; "style", if its lines are drawn otherwise; "colors", {label:
      colour} of lines that have one of their own; its other entries are settings of its axes.
    size: width and height of the picture in inches.
    style: how matplotlib draws lines.
    path: the picture's file.

  Returns:
    Whether the picture was drawn.
  """
  if not distributed.is_first():
    return True
  try:
    from matplotlib import ticker
    from matplotlib.figure import Figure
  except ImportError:
    return False
  figure = Figure(figsize=size, layout="constrained")  # without pyplot, of which a notebook has its own settings
  n_columns = n_columns or len(panels)
  axes = figure.subplots(-(-len(panels) // n_columns), n_columns, squeeze=False).reshape(-1)
  for axis in axes[len(panels):]:
    axis.set_axis_off()
  for axis, panel in zip(axes, panels, strict=False):
    for i, (label, points) in enumerate(panel["lines"].items()):
      if not points:  # cross-entropy recovered can be undefined
        continue
      drawn = panel.get("style", style)
      if i // _COLOURS % 2:
        drawn = drawn.replace("-", "--").replace("o", "s")
      axis.plot(*zip(*points, strict=True), drawn, label=label, markersize=4,
                color=panel.get("colors", {}).get(label, f"C{i % _COLOURS}"))
    axis.set(**{name: value for name, value in panel.items() if name not in ("lines", "style", "colors")})
    if panel.get("xscale") == "log":
      axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axis.xaxis.set_major_formatter("{x:g}")
      axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(alpha=0.3)
    if len(panel["lines"]) > 1 and (panel is panels[-1] or set(panel["lines"]) != set(panels[-1]["lines"])):
      axis.legend(fontsize=7)  # once, where all panels have the same lines
  figure.savefig(path, dpi=130)
  return True
