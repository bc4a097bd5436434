"""The report of the index-arithmetic study: a page, tables of single rows (CSV and .xlsx), and what a probe prints.

A probe is a row that a user gives, for which the study prints the prediction and the features that fire.

Letters: B rows, I the numbers of a row, M neurons of the layer, F features, O the prediction (of length 1), L labels, P
pairs of a row and a feature that fires there.
"""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monojax import files
from monojax.analysis.patching import ablation_effects
from monojax.browser.report import Block, Picture, Table, Text
from monojax.pipeline.folder import RunFolder
from monojax.studies.index import task as index_task
from monojax.studies.index.single import QUANTITIES, STATEMENTS
from monojax.studies.index.study import Features, IndexStudyConfig, Subject

_SYMBOLS = {"p1": "p1", "p2": "p2", "v1": "v1", "v2": "v2", "difference": "|v1 - v2|"}
_QUANTITIES = {"p1": "p1", "p2": "p2", "v1": "v1", "v2": "v2", "less": "amount of v1 < v2", "more": "amount of v1 > v2"}
_SIGNS = ("v1 < v2", "v1 = v2", "v1 > v2")
# A feature's AUROC is shown if it fires on this many rows, and if the AUROC is at least so far from 0.5.
_FIRED_ROWS, _TELLING = 50, 0.05
TRACED_FEATURES = 10  # how many features are listed for each row, those with the largest effects


def label_name(variable: str, relation: str, value: int) -> str:
  """A label as people read it, for instance "p1 = 2", "v1 >= 5" or "v1 < v2"."""
  return _SIGNS[value] if variable == "sign" else f"{_SYMBOLS[variable]} {relation} {value}"


class Ties:
  """What the stage `features` left in the study's folder (see `ties.py`), with the names of labels.

  Attributes:
    arrays: the arrays of `ties.npz`.
    effects: the arrays of `effects.npz`.
    label_L: the names of the labels.
  """

  def __init__(self, run: RunFolder) -> None:
    """Reads the files of the stage."""
    run.require_stage("features")
    self.arrays = files.read_npz(run.made("features", "ties.npz"))
    self.effects = files.read_npz(run.made("features", "effects.npz"))
    self.label_L = [label_name(*label) for label in zip(
        self.arrays["variable_L"].tolist(), self.arrays["relation_L"].tolist(), self.arrays["value_L"].tolist(),
        strict=True)]

  def told(self, feature: int) -> str:
    """The label that a feature by itself tells best, with its AUROC, as text."""
    auroc_L = self.arrays["auroc_FL"][feature]
    if self.arrays["rows_F"][feature] < _FIRED_ROWS or not np.isfinite(auroc_L).any():
      return "fires too rarely to say"
    label = int(np.nanargmax(np.abs(auroc_L - 0.5)))
    if abs(auroc_L[label] - 0.5) < _TELLING:
      return "tells nothing by itself"
    sign = "" if auroc_L[label] > 0.5 else "not "
    return f"{sign}{self.label_L[label]} ({max(auroc_L[label], 1 - auroc_L[label]):.2f})"


def sections(run: RunFolder, figures: Mapping[str, Any]) -> dict[str, list[Block]]:
  """The report of a finished study, for `monojax.browser.report.write_report`.

  Args:
    run: the study's folder.
    figures: the figures of its stages, by name.

  Returns:
    {heading: the blocks of the section}.
  """
  ties = Ties(run)
  rows = _rows(ties)
  found: dict[str, list[Block]] = {
      "Figures": [_table(figures)],
      "Which features tell which variable": _variables(ties, figures),
      "What single features tell and move": _single(files.read_npz(run.made("single", "single.npz"))),
      "From inputs to features": [_detectors(ties), _combinations(ties)],
      "What removing a feature does": [_bells(ties)],
      "From index to output": [_sankey(ties)],
      "Row by row": [Text("The file trace.csv beside this page has a line for each of "
                          f"{len(rows)} rows: its variables, the predictions, and the {TRACED_FEATURES} features whose "
                          "removal changes the prediction most. Where openpyxl is installed, trace.xlsx has the same."),
                     _examples(rows)],
  }
  if run.stage("sweep"):
    found["Other recipes and sizes"] = _sweep(files.read_json(run.made("sweep", "points.json")))
  return found


def _table(figures: Mapping[str, Any]) -> Table:
  value = lambda name: figures.get(f"index_arithmetic/{name}")
  percent = lambda name: f"{100 * figures[f'index_arithmetic/{name}']:.2f} %"
  return Table(("figure", "ours", "published", "target"), [
      ("MLP's accuracy on new rows, rounded", percent("test_accuracy"), "85.9 %", "≥ 99.9 %"),
      ("accuracy from the layer's reconstruction", percent("spliced_accuracy"), "61.9 %", "≥ 99 %"),
      ("features that fire on a row (L0)", value("l0"), "72", "≤ 20"),
      ("neurons that fire on a row", value("neurons_l0"), "69.8", None),
      ("features that never fire", percent("dead_fraction"), "43 %", "≤ 1 %"),
      ("features that fire on less than one row in 10,000", percent("rare_fraction"), "not measured", None),
      ("explained variance of the layer", value("explained_variance"), "0.987", None),
      ("accuracy from the layer's mean activation", percent("ablated_accuracy"), "not measured", None),
      ("AUROC of a readout for the value of a variable that is told best, worst variable", value("min_variable_auroc"),
       "not measured", "≥ 0.99"),
      ("pairs whose prediction moves the right way when features are patched, worst variable",
       percent("causal_agreement"), "not measured", "≥ 95 %"),
      ("AUROC of one feature for a pointer's value or for a sign, worst of them", value("one_auroc"), "not measured",
       "≥ 0.95"),
      ("selectivity of a pointer's or a sign's own features, worst of them", value("selectivity"), "not measured",
       "≥ 0.9"),
      ("seconds for the whole study", value("seconds"), "1,269", "≤ 180")])


def _variables(ties: Ties, figures: Mapping[str, Any]) -> list[Block]:
  """Which features tell and carry each variable: a table, and pictures of the sets' overlap and of all labels."""
  rows = []
  for name in index_task.VARIABLES:
    value = lambda key, name=name: figures[f"index_arithmetic/{name}_{key}"]
    of_L = np.flatnonzero(ties.arrays["variable_L"] == name)
    best = of_L[ties.arrays["auroc_L"][of_L].argmax()]
    rows.append((name, ties.label_L[best], value("auroc"), value("median_auroc"), value("neuron_auroc"),
                 value("single_auroc"), f'{100 * value("single_information"):.0f} %', f'{100 * value("causal"):.1f} %',
                 value("moved"), value("active"), f'{100 * value("control"):.1f} %', value("control_active")))
  n_read, n_set = ties.arrays["chosen_LK"].shape[1], ties.arrays["set_VS"].shape[1]
  header = ("variable", "label told best", f"AUROC, {n_read} features", "median over labels",
            f"AUROC, {n_read} neurons", "AUROC, one feature", "information", "patched: moves the right way",
            "share of the move", "features that fire", "control: moves the right way", "control's features that fire")
  labels = Picture([
      {"type": "bar", "name": f"{n_read} {what}", "x": ties.label_L, "y": ties.arrays[key]}
      for what, key in (("features", "auroc_L"), ("neurons", "neuron_auroc_L"))] + [
      {"type": "bar", "name": "one feature", "x": ties.label_L, "y": np.nanmax(ties.arrays["auroc_FL"], 0)}],
      {"yaxis": {"title": {"text": "AUROC on held-out rows"}, "range": [0.5, 1]}, "height": 460, "bargap": 0.15,
       "margin": {"l": 60, "r": 20, "t": 50, "b": 120}, "xaxis": {"tickangle": 90},
       "legend": {"orientation": "h", "y": 1.12}},
      "How well each label is told: every value of every variable, and thresholds where values have an order.")
  names = list(index_task.VARIABLES)
  shares = Picture([{"type": "heatmap", "x": [f"{name}'s" for name in names], "y": names,
                     "z": ties.arrays["share_VV"].round(3), "zmin": 0, "zmax": 1,
                     "colorscale": [[0, "#ffffff"], [1, "#1f6fb4"]], "texttemplate": "%{z:.2f}"}],
                   {"height": 380, "yaxis": {"autorange": "reversed", "title": {"text": "what changes"}},
                    "xaxis": {"title": {"text": "whose features are patched"}},
                    "title": {"text": "Share of the move that a variable's features bring about"}},
                   "The sets of features overlap: when a pointer changes, the digit that it selects changes, too, and "
                   "features that are computed from both columns carry the variables of both.")
  return [Text(f"The {n_set} features of a variable are those that contribute most to the change of the prediction "
               "when the variable changes, by integrated gradients on pairs of rows that differ in the variable and, "
               "if possible, in nothing else. On other such pairs these features are patched: they take the values "
               "that they have on the second row, and the prediction should move towards the second row's answer. The "
               "share of the move is the change of the prediction over the difference between the answers, as a "
               "median. The control patches as many features that are not among the variable's and fire about as "
               "often; fewer of them fire, since the variable's features include most of those that fire. Patching "
               "shows that these features suffice to move a prediction, not that they serve one variable only."),
          Text("A readout of a label is a weighted sum of a few of the variable's features, or of neurons, that tells "
               "whether the label is true. It is fitted to three quarters of some further rows and judged on the rest. "
               "The information is the mutual information between the variable and the feature that has most of it, "
               "over the variable's entropy."),
          Table(header, rows), shares, labels]


def _single(single: Mapping[str, np.ndarray]) -> list[Block]:
  """The best single feature for each value of a pointer and each sign, and what moves when own features are patched."""
  statements = [(name, label_name(variable, "=", value)) for name, about in STATEMENTS.items()
                for variable, value in about]
  names, layers = list(STATEMENTS), single["layer_Z"].tolist()
  told = [(text, layer, int(single["feature_ZL"][z, label]), single["auroc_ZL"][z, label],
           int(single["neuron_ZL"][z, label]), single["neuron_auroc_ZL"][z, label])
          for label, (_, text) in enumerate(statements) for z, layer in enumerate(layers)]
  moved = [(_QUANTITIES[name], layer, "yes" if single["place_V"][i] == z else "", single["selectivity_ZV"][z, i],
            single["selectivity_control_ZV"][z, i], single["selectivity_neurons_ZV"][z, i],
            f'{100 * single["agreement_ZV"][z, i]:.1f} %')
           for i, name in enumerate(names) for z, layer in enumerate(layers)]
  dues = single["due_ZVN"].reshape(-1, len(QUANTITIES))
  picture = Picture([{"type": "heatmap", "x": [_QUANTITIES[name] for name in QUANTITIES],
                      "y": [f"{_QUANTITIES[name]}, layer {layer}" for layer in layers for name in names],
                      "z": dues.round(3), "zmin": -1, "zmax": 1, "texttemplate": "%{z:.2f}",
                      "colorscale": [[0, "#d1662a"], [0.5, "#ffffff"], [1, "#1f6fb4"]]}],
                    {"height": 160 + 30 * len(dues), "margin": {"l": 200, "r": 30, "t": 50, "b": 80},
                     "yaxis": {"autorange": "reversed", "title": {"text": "whose own features are patched"}},
                     "xaxis": {"title": {"text": "whose change the move is due to"}},
                     "title": {"text": "What patching own features changes"}},
                    "Features that carry one quantity and nothing else have a 1 in its column and 0 in all others. "
                    "Features may tell a quantity and carry another one: a unit that is v1 if p1 = 2, and else 0, "
                    "tells p1 and carries v1.")
  return [Text("For each value of a pointer, and for each sign, this is the feature of each layer that tells it best, "
               "chosen on half of the rows and judged by its AUROC on the other half, and the neuron that does."),
          Table(("statement", "layer", "feature", "its AUROC", "neuron", "its AUROC"), told),
          Text("The own features of a quantity are those of its statements in the table above: four for a pointer, and "
               "one each for the amount by which v1 < v2 and the amount by which v1 > v2. (The sign by itself cannot "
               "be patched, as the answer is the same for either sign; the answer is the sum of these two amounts.) "
               "They take their values from another row, which has nothing to do with the first, and the prediction "
               "should move as the answer does if this quantity alone is that of the other row. Selectivity is 1 minus "
               "the sum of what moves are wrong by, over the sum of the moves that should be: 1 if predictions move in "
               "this way and in no other, 0 if they do not move. In the layer that is marked as chosen, selectivity is "
               "largest on other pairs of rows. The control patches as many other features of the dictionary that fire "
               "about as often."),
          Table(("quantity", "layer", "chosen", "selectivity", "control", "best neurons",
                 "predictions that round to the answer with it alone changed"), moved), picture]


def _detectors(ties: Ties) -> Picture:
  """How well each of the strongest features tells each label."""
  effects = ties.effects
  shown_F = effects["shown_F"]
  z = ties.arrays["auroc_FL"][shown_F].T
  return Picture([{"type": "heatmap", "z": np.where(np.isfinite(z), z, 0.5), "zmin": 0, "zmax": 1,
                   "colorscale": [[0, "#d1662a"], [0.5, "#ffffff"], [1, "#1f6fb4"]],
                   "x": [f"#{feature}" for feature in shown_F], "y": ties.label_L,
                   "hovertemplate": "%{y}, feature %{x}: AUROC %{z:.3f}<extra></extra>"}],
                 {"height": 900, "yaxis": {"autorange": "reversed", "dtick": 1, "tickfont": {"size": 10}},
                  "xaxis": {"type": "category", "tickangle": 90}, "margin": {"l": 120, "r": 30, "t": 50, "b": 80},
                  "title": {"text": "AUROC of single features for each label"}},
                 "These are the features whose removal changes predictions most, the strongest on the left. Blue ones "
                 "fire where the label is true, orange ones where it is false.")


def _combinations(ties: Ties) -> Picture:
  """How much features change predictions, for each combination of pointers and answer."""
  effects = ties.effects
  rows_BI = effects["rows_BI"]
  values = index_task.variables(rows_BI)
  cell_B = 4 * values["p1"] + values["p2"]
  z, text = np.full((10, 16), np.nan), [[""] * 16 for _ in range(10)]
  size_P = np.abs(effects["effect_P"])
  for answer in range(10):
    for cell in range(16):
      of_B = (values["difference"] == answer) & (cell_B == cell)
      if not of_B.any():
        continue
      of_P = of_B[effects["row_P"]]
      z[answer, cell] = size_P[of_P].sum() / of_B.sum()
      total_F = np.bincount(effects["feature_P"][of_P], size_P[of_P])
      strongest = np.argsort(-total_F)[:5]
      text[answer][cell] = "<br>".join(f"#{f}: {total_F[f] / of_B.sum():.2f}, {ties.told(f)}" for f in strongest)
  return Picture([{"type": "heatmap", "z": [[None if np.isnan(v) else round(float(v), 3) for v in row] for row in z],
                   "text": text, "colorscale": "Viridis",
                   "x": [f"({i}, {j})" for i in range(4) for j in range(4)], "y": [str(answer) for answer in range(10)],
                   "hovertemplate": "pointers %{x}, answer %{y}: %{z:.2f}<br>%{text}<extra></extra>"}],
                 {"height": 460, "title": {"text": "Sum of features' effects by pointers and answer"},
                  "xaxis": {"title": {"text": "(p1, p2)"}, "type": "category"},
                  "yaxis": {"title": {"text": "answer"}, "type": "category"}},
                 "Each feature that fires on a row is removed by itself, and the absolute changes of the prediction "
                 "are added up. Move the pointer over a cell to see its five strongest features.")


def _bells(ties: Ties) -> Picture:
  """How removing each of the strongest features changes predictions, as distributions over rows."""
  effects = ties.effects
  values = index_task.variables(effects["rows_BI"])
  data = []
  for sign, colour in ((2, "#1f6fb4"), (0, "#d1662a")):
    for place, feature in enumerate(effects["shown_F"]):
      of_P = (effects["feature_P"] == feature) & (values["sign"][effects["row_P"]] == sign)
      points = effects["effect_P"][of_P][:300]
      data.append({"type": "violin", "name": _SIGNS[sign], "legendgroup": _SIGNS[sign], "showlegend": place == 0,
                   "x": [f"#{feature}"] * len(points), "y": points.round(3), "width": 0.9, "spanmode": "hard",
                   "side": "positive" if sign == 2 else "negative", "scalegroup": f"{feature} {sign}",
                   "line": {"color": colour, "width": 1}, "points": False, "meanline": {"visible": True}})
  return Picture(data, {"height": 460, "violinmode": "overlay", "violingap": 0.1,
                        "xaxis": {"type": "category", "tickangle": 90},
                        "yaxis": {"title": {"text": "change of the prediction"}},
                        "title": {"text": "Distribution of effects, on rows where the feature fires"},
                        "legend": {"orientation": "h", "y": 1.12}},
                 "Each feature has two halves: rows where v1 > v2 and rows where v1 < v2. Removing a feature that adds "
                 "to v1 lowers the prediction on the former and raises it on the latter. A half has at most 300 rows, "
                 "and its line is their mean.")


def _sankey(ties: Ties) -> Picture:
  """The graph of causes and effects from pointers to predictions."""
  effects = ties.effects
  neurons, shown_F = effects["neuron_N"], effects["shown_F"]
  names = ([f"p1 = {i}" for i in range(4)] + [f"p2 = {i}" for i in range(4)] + [f"v1 = {v}" for v in range(10)]
           + [f"v2 = {v}" for v in range(10)] + [f"neuron {n}" for n in neurons]
           + [f"#{f}: {ties.told(f)}" for f in shown_F] + [f"predicts {v}" for v in range(10)])
  first = {"pointer": 0, "value": 8, "neuron": 28, "feature": 28 + len(neurons)}
  first["output"] = first["feature"] + len(shown_F)
  blocks = [(first["pointer"] + 4 * side, first["value"] + 10 * side, effects["pointer_value"][side], 0)
            for side in (0, 1)]
  blocks += [(first["value"] + 10 * side, first["neuron"], effects["value_neuron"][side], 1) for side in (0, 1)]
  blocks += [(first["neuron"], first["feature"], effects["neuron_feature"], 2),
             (first["feature"], first["output"], effects["feature_output"], 3)]
  totals = [sum(block.sum() for *_, block, step in blocks if step == i) for i in range(4)]
  source, target, value = [], [], []
  for start, end, block, step in blocks:
    for i, j in np.argwhere(block > 1e-3 * totals[step]):
      source.append(int(start + i))
      target.append(int(end + j))
      value.append(round(float(block[i, j] / totals[step]), 5))
  colours = (["#1f6fb4"] * 8 + ["#3a9a4b"] * 20 + ["#888888"] * len(neurons) + ["#d1662a"] * len(shown_F)
             + ["#7a56b0"] * 10)
  return Picture([{"type": "sankey", "arrangement": "snap", "node": {"label": names, "color": colours, "pad": 6,
                                                                    "thickness": 12},
                   "link": {"source": source, "target": target, "value": value, "color": "rgba(120,120,120,.25)"}}],
                 {"height": 1100, "font": {"size": 10}, "title": {"text": "Index, value, neuron, feature, output"}},
                 "The width of an edge is a mean absolute change. From pointers to digits it is the change of the "
                 "prediction when the pointer, which selects the digit, is moved; from digits to neurons the change of "
                 "the neuron when the selected digit is another; from neurons to features the change of the feature "
                 "when the neuron is set to 0; from features to predictions the change of the prediction when the "
                 "feature is removed. The edges of each of these four steps add up to 1, and edges below a thousandth "
                 "are left out. The neurons and features are those with the largest effects; the features have "
                 f"{100 * effects['effect_share']:.0f} % of the effects of all features.")


def _sweep(points: Sequence[Mapping[str, Any]]) -> list[Block]:
  """The dictionaries of the sweep: accuracy from their reconstructions against L0."""
  header = ("recipe", "features", "sparsity", "spliced accuracy", "L0", "explained variance", "dead")
  rows = [(p["recipe"], p["n_features"], p["sparsity"], p["spliced_accuracy"], p["l0"], p["explained_variance"],
           p["dead_fraction"]) for p in points]
  lines: dict[str, list[tuple[float, float]]] = {}
  for point in sorted(points, key=lambda point: point["l0"]):
    lines.setdefault(f'{point["recipe"]}, {point["n_features"]}', []).append((point["l0"], point["spliced_accuracy"]))
  traces = [{"type": "scatter", "mode": "lines+markers", "name": name, "x": np.array(line)[:, 0],
             "y": np.array(line)[:, 1]} for name, line in sorted(lines.items())]
  return [Table(header, rows),
          Picture(traces, {"height": 420, "xaxis": {"title": {"text": "L0"}},
                           "yaxis": {"title": {"text": "spliced accuracy"}}})]


def _examples(rows: Sequence[Mapping[str, Any]]) -> Table:
  """The first twelve rows of the trace."""
  header = ("row", "v1", "v2", "answer", "prediction", "prediction from the reconstruction",
            "three strongest features: change of the prediction when removed, and what the feature tells")
  shown = []
  for row in rows[:12]:
    strongest = "; ".join(f"#{f}: {effect:+.2f}, {told}" for f, _, effect, told in row["features"][:3])
    shown.append((" ".join(map(str, row["inputs"])), row["v1"], row["v2"], row["difference"],
                  row["prediction"], row["spliced"], strongest))
  return Table(header, shown)


def _rows(ties: Ties, n_rows: int = 500) -> list[dict[str, Any]]:
  """What the trace says of each row: inputs, variables, predictions, and the features with the largest effects."""
  effects = ties.effects
  values = index_task.variables(effects["rows_BI"])
  bounds = np.searchsorted(effects["row_P"], np.arange(n_rows + 1))
  found = []
  for row in range(min(n_rows, len(effects["rows_BI"]))):
    of_P = np.arange(bounds[row], bounds[row + 1])
    of_P = of_P[np.argsort(-np.abs(effects["effect_P"][of_P]))][:TRACED_FEATURES]
    found.append({"inputs": effects["rows_BI"][row].astype(int).tolist(),
                  **{name: int(value_B[row]) for name, value_B in values.items()},
                  "prediction": round(float(effects["found_B"][row]), 4),
                  "spliced": round(float(effects["spliced_B"][row]), 4),
                  "features": [(int(effects["feature_P"][i]), float(effects["value_P"][i]),
                                float(effects["effect_P"][i]), ties.told(effects["feature_P"][i])) for i in of_P]})
  return found


def write_trace(run: RunFolder) -> list[pathlib.Path]:
  """Writes the trace, a table with one line for each row.

  It is `report/trace.csv` in the study's folder and, where openpyxl is installed, `report/trace.xlsx`.

  Returns:
    The paths of the files that were written.
  """
  columns = [f"c1[{i}]" for i in range(4)] + ["p1"] + [f"c2[{i}]" for i in range(4)] + ["p2"]
  columns += ["v1", "v2", "sign", "answer", "prediction", "spliced"]
  columns += [f"{what}_{rank + 1}" for rank in range(TRACED_FEATURES)
              for what in ("feature", "activation", "effect", "tells")]
  lines = []
  for row in _rows(Ties(run)):
    line = [*row["inputs"], row["v1"], row["v2"], row["sign"] - 1, row["difference"], row["prediction"], row["spliced"]]
    for feature, activation, effect, told in row["features"]:
      line += [feature, round(activation, 4), round(effect, 4), told]
    lines.append(line)
  paths, book_path = [run.directory / "report" / "trace.csv"], run.directory / "report" / "trace.xlsx"
  text = io.StringIO()
  csv.writer(text).writerows([columns, *lines])
  if not files.write_unless_same(paths[0], text.getvalue().encode()) and book_path.exists():
    return [*paths, book_path]
  try:
    from openpyxl import Workbook
  except ImportError:
    return paths
  book = Workbook(write_only=True)
  sheet = book.create_sheet("trace")
  sheet.freeze_panes = "A2"
  for line in [columns, *lines]:
    sheet.append(line)
  with files.replacing(book_path) as file:
    book.save(file)
  return [*paths, book_path]


def probe(run: RunFolder, config: IndexStudyConfig, text: str) -> list[str]:
  """What the MLP predicts for one row, and the features that fire on it, as lines to print.

  Args:
    run: the folder of a finished study.
    config: its settings.
    text: the row, ten numbers with commas between them (see `index_task.parse`).
  """
  rows_BI = index_task.parse(text)
  subject = Subject(run, config)
  features, ties = Features.of_run(run), Ties(run)
  x_BM = subject.activations(rows_BI)
  f_BF = features.encode(x_BM)
  _, feature_P, effect_PO = ablation_effects(subject.tail, features.W_dec_FO, x_BM, f_BF)
  values = {name: int(value_B[0]) for name, value_B in index_task.variables(rows_BI).items()}
  lines = [f"c1[{values['p1']}] = {values['v1']}, c2[{values['p2']}] = {values['v2']}, answer {values['difference']}",
           f"prediction {subject.output(x_BM)[0]:.3f}, from the layer's reconstruction "
           f"{subject.output(features.reconstruct(x_BM))[0]:.3f}",
           f"{len(feature_P)} features fire ({int((x_BM > 0).sum())} neurons). The effect of a feature is the change "
           "of the prediction when it is removed:",
           f"{'feature':>8} {'activation':>11} {'effect':>8}  label that the feature tells best by itself (AUROC)"]
  for i in np.argsort(-np.abs(effect_PO[:, 0])):
    feature = feature_P[i]
    lines.append(f"{feature:>8} {f_BF[0, feature]:>11.3f} {effect_PO[i, 0]:>+8.3f}  {ties.told(feature)}")
  return lines
