"""The report of the synthetic study: what each recipe recovers of planted features, as tables and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monojax import files
from monojax.browser.report import Block, Picture, Table, Text
from monojax.pipeline.folder import RunFolder
from monojax.studies.synthetic.study import Point, SyntheticStudyConfig, nearest_in_sparsity

_SCORES = (("mcc", "MCC"), ("found", "planted features found (cosine above .9)"), ("f1", "F1 as detectors"),
           ("explained_variance", "explained variance"),
           ("uniqueness", "uniqueness (below 1 where features are split or found twice)"),
           ("dead_fraction", "dead features"))


def sections(run: RunFolder, config: SyntheticStudyConfig, figures: Mapping[str, Any]) -> dict[str, list[Block]]:
  """The report of a finished study, for `monojax.browser.report.write_report`.

  Args:
    run: the study's folder.
    config: its settings.
    figures: the figures of its stages, by name.

  Returns:
    {heading: the blocks of the section}.
  """
  levels = {level: files.read_json(run.made(f"level_{level:g}", "points.json")) for level in config.levels}
  return {
      "Figures": [_table(figures)],
      "What is found, by how often it fires": [_by_frequency(files.read_npz(run.made("main", "scores.npz")))],
      "Where recipes recover the truth": _maps(config, levels),
      "Where they split and absorb": _trees(files.read_json(run.made("trees", "points.json"))),
  }


def _table(figures: Mapping[str, Any]) -> Table:
  value = lambda name: figures.get(f"synthetic/{name}")
  seed = "not measured"
  return Table(("figure", "ours", "seed", "target"), [
      ("explained variance", value("explained_variance"), '"91.12 % reconstruction accuracy", undefined', "≥ 0.99"),
      ("MCC", value("mcc"), seed, "≥ 0.95"),
      ("learned (and planted) features that fire on a row", f'{value("l0"):.2f} ({value("true_l0"):.2f})', seed, None),
      ("largest cosine with a learned feature, mean over planted ones", value("mmcs_truth"), seed, None),
      ("largest cosine with a planted feature, mean over learned ones", value("mmcs_learned"), seed, None),
      ("uniqueness", value("uniqueness"), seed, None),
      ("precision, recall, F1", ", ".join(f"{value(name):.3f}" for name in ("precision", "recall", "f1")), seed, None),
      ("shrinkage |x̂|/|x|", value("shrinkage"), seed, "1"), ("dead features", value("dead_fraction"), seed, "0")])


def _by_frequency(scores: Mapping[str, np.ndarray]) -> Picture:
  return Picture([{"type": "scattergl", "mode": "markers", "x": scores["probability_N"], "y": scores["best_N"],
                   "marker": {"size": 5, "opacity": 0.6}}],
                 {"xaxis": {"type": "log", "title": {"text": "probability that a planted feature fires"}},
                  "yaxis": {"title": {"text": "largest cosine with a learned feature"}, "range": [0, 1.02]},
                  "height": 400}, "Each dot is a planted feature.")


def _maps(config: SyntheticStudyConfig, levels: Mapping[float, Sequence[Point]]) -> list[Block]:
  blocks: list[Block] = [Text(
      f"Dictionaries of {config.grid_features} planted features in {config.grid_width} dimensions. In each map, the "
      "number of features that fire on a row grows from left to right, and the size of the dictionary, over the number "
      "of planted features, from bottom to top. Of a recipe with a penalty, the map shows the dictionary whose L0 is "
      "nearest the true number; a recipe with k has that number as its k.")]
  chosen = {level: nearest_in_sparsity(points) for level, points in levels.items()}
  for key, title in _SCORES:
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "height": 330, "title": {"text": title}}
    n = len(config.recipes)
    for i, recipe in enumerate(config.recipes):
      suffix = "" if i == 0 else str(i + 1)
      z = [[chosen[level].get((recipe, round(size * config.grid_features)), {}).get(key) for level in config.levels]
           for size in config.sizes]
      data.append({"type": "heatmap", "z": z, "zmin": 0, "zmax": 1, "colorscale": "Viridis", "showscale": i == n - 1,
                   "texttemplate": "%{z:.2f}", "textfont": {"size": 9}, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}",
                   "x": [f"{level:g}" for level in config.levels], "y": [f"{size:g}" for size in config.sizes]})
      layout[f"xaxis{suffix}"] = {"domain": [i / n, (i + 0.88) / n], "anchor": f"y{suffix}", "type": "category",
                                  "title": {"text": "features that fire"}}
      layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "type": "category", "showticklabels": i == 0}
      layout["annotations"].append({"text": recipe, "x": (i + 0.44) / n, "y": 1.02, "xref": "paper", "yref": "paper",
                                    "showarrow": False, "yanchor": "bottom"})
    blocks.append(Picture(data, layout))
  return blocks


def _trees(points: Sequence[Point]) -> list[Block]:
  header = ("recipe", "features", "sparsity", "L0 (planted)", "MCC", "found", "F1", "uniqueness", "absorption", "dead")
  rows = [(p["recipe"], p["n_features"], p["sparsity"], f'{p["l0"]:.1f} ({p["true_l0"]:.1f})', p["mcc"], p["found"],
           p["f1"], p["uniqueness"], p["absorption"], p["dead_fraction"])
          for p in sorted(nearest_in_sparsity(points).values(), key=lambda p: (p["recipe"], p["n_features"]))]
  lines: dict[str, list[tuple[float, float]]] = {}
  for p in sorted(points, key=lambda p: p["l0"]):
    lines.setdefault(f'{p["recipe"]}, {p["n_features"]}', []).append((p["l0"], p["absorption"]))
  traces = [{"type": "scatter", "mode": "lines+markers", "name": name, "x": np.array(line)[:, 0],
             "y": np.array(line)[:, 1]} for name, line in sorted(lines.items())]
  return [
      Text("Here planted features form trees. On half of the rows on which a root fires, exactly one of its four "
           "children fires as well. Absorption is the fraction of a child's rows on which the learned feature for its "
           "parent is silent, less the fraction of the parent's other rows on which it is silent."),
      Table(header, rows, "Each recipe and size at the sparsity whose L0 is nearest the true number."),
      Picture(traces, {"xaxis": {"type": "log", "title": {"text": "L0"}}, "height": 460,
                       "yaxis": {"title": {"text": "absorption"}, "rangemode": "tozero"}})]
