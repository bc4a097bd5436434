"""The page of the synthetic study: heat maps of what each recipe recovers, and where it splits or absorbs."""

import numpy as np

from monojax import files
from monojax.browser.report import Picture, Table, Text
from monojax.studies.synthetic.study import nearest_in_sparsity

_SCORES = (("mcc", "MCC"), ("found", "planted features found (cosine above .9)"), ("f1", "F1 as detectors"),
           ("explained_variance", "explained variance"), ("uniqueness", "uniqueness (below 1: split or repeated)"),
           ("dead_fraction", "dead features"))


def sections(run, config, figures):
  """{heading: blocks} of the report of a finished study; see `monojax.browser.report.write_report`."""
  levels = {level: files.read_json(run.directory / f"level_{level:g}" / "points.json") for level in config.levels}
  return {
      "Figures": [_table(figures)],
      "What is found, by how often it fires": [_by_frequency(files.read_npz(run.directory / "main" / "scores.npz"))],
      "Where recipes recover the truth": _maps(config, levels),
      "Where they split and absorb": _trees(files.read_json(run.directory / "trees" / "points.json")),
  }


def _table(figures):
  value = lambda name: figures.get(f"synthetic/{name}")
  seed = "not measured"
  return Table(("figure", "ours", "seed", "target"), [
      ("explained variance", value("explained_variance"), '"91.12 % reconstruction accuracy", undefined', "≥ 0.99"),
      ("MCC", value("mcc"), seed, "≥ 0.95"), ("L0 (truly)", f'{value("l0"):.2f} ({value("true_l0"):.2f})', seed, None),
      ("mean max cosine over planted features", value("mmcs_truth"), seed, None),
      ("over learned features", value("mmcs_learned"), seed, None), ("uniqueness", value("uniqueness"), seed, None),
      ("precision, recall, F1", ", ".join(f"{value(name):.3f}" for name in ("precision", "recall", "f1")), seed, None),
      ("shrinkage |x̂|/|x|", value("shrinkage"), seed, "1"), ("dead features", value("dead_fraction"), seed, "0")])


def _by_frequency(scores):
  return Picture([{"type": "scattergl", "mode": "markers", "x": scores["probability_N"], "y": scores["best_N"],
                   "marker": {"size": 5, "opacity": 0.6}}],
                 {"xaxis": {"type": "log", "title": {"text": "probability that a planted feature fires"}},
                  "yaxis": {"title": {"text": "largest cosine with a learned one"}, "range": [0, 1.02]}, "height": 400})


def _maps(config, levels):
  blocks = [Text(f"{config.grid_features} planted features in {config.grid_width} dimensions. Across: features that "
                 "fire on a row; up: features of the dictionary over planted ones. Of recipes with a penalty the "
                 "dictionary whose L0 is nearest the truth is shown; recipes with k have the true k.")]
  chosen = {level: nearest_in_sparsity(points) for level, points in levels.items()}
  for key, title in _SCORES:
    data, layout = [], {"annotations": [], "height": 330, "title": {"text": title}}
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


def _trees(points):
  header = ("recipe", "features", "sparsity", "L0 (truly)", "MCC", "found", "F1", "uniqueness", "absorption", "dead")
  rows = [(p["recipe"], p["n_features"], p["sparsity"], f'{p["l0"]:.1f} ({p["true_l0"]:.1f})', p["mcc"], p["found"],
           p["f1"], p["uniqueness"], p["absorption"], p["dead_fraction"])
          for p in sorted(nearest_in_sparsity(points).values(), key=lambda p: (p["recipe"], p["n_features"]))]
  lines = {}
  for p in sorted(points, key=lambda p: p["l0"]):
    lines.setdefault(f'{p["recipe"]}, {p["n_features"]}', []).append((p["l0"], p["absorption"]))
  traces = [{"type": "scatter", "mode": "lines+markers", "name": name, "x": np.array(line)[:, 0],
             "y": np.array(line)[:, 1]} for name, line in sorted(lines.items())]
  return [
      Text("Trees: a root fires on some rows, on half of them with one of its four children, which exclude each other. "
           "Absorption: the part of a child's rows on which its parent's detector is silent, beyond how often it is "
           "silent when the parent fires alone or with another child."),
      Table(header, rows, "The dictionaries whose L0 is nearest the truth."),
      Picture(traces, {"xaxis": {"type": "log", "title": {"text": "L0"}}, "height": 460,
                       "yaxis": {"title": {"text": "absorption"}, "rangemode": "tozero"}})]
