"""The page of the index-arithmetic study, its tables of single rows (CSV and .xlsx), and what a probe prints.

Letters: B rows, F features, L labels, P pairs of a row and a feature.
"""

import csv
import io

import numpy as np

from monojax import files
from monojax.analysis.patching import ablation_effects
from monojax.browser.report import Picture, Table, Text
from monojax.studies.index import task as index_task
from monojax.studies.index.study import Features, Subject

_SYMBOLS = {"p1": "p1", "p2": "p2", "v1": "v1", "v2": "v2", "difference": "|v1 - v2|"}
_SIGNS = ("v1 < v2", "v1 = v2", "v1 > v2")
_FIRED_ROWS, _TELLING = 50, 0.05  # what a feature needs for its AUROC to be worth showing: rows, distance from 0.5
TRACED_FEATURES = 10  # of each row, by their effect


def label_name(variable, relation, value):
  """A label as it is read: p1 = 2, v1 >= 5, v1 < v2."""
  return _SIGNS[value] if variable == "sign" else f"{_SYMBOLS[variable]} {relation} {value}"


class Ties:
  """What `index_ties.tie_features` has left, with names.

  Attributes:
    arrays: of `ties.npz`.
    effects: of `effects.npz`.
    label_L: names of the labels.
  """

  def __init__(self, run):
    """Reads the stage `features`."""
    run.require_stage("features")
    self.arrays = files.read_npz(run.directory / "features" / "ties.npz")
    self.effects = files.read_npz(run.directory / "features" / "effects.npz")
    self.label_L = [label_name(*label) for label in zip(
        self.arrays["variable_L"].tolist(), self.arrays["relation_L"].tolist(), self.arrays["value_L"].tolist(),
        strict=True)]

  def told(self, feature):
    """What a feature tells best, alone: a label and its AUROC."""
    auroc_L = self.arrays["auroc_FL"][feature]
    if self.arrays["rows_F"][feature] < _FIRED_ROWS or not np.isfinite(auroc_L).any():
      return "fires too rarely to say"
    label = int(np.nanargmax(np.abs(auroc_L - 0.5)))
    if abs(auroc_L[label] - 0.5) < _TELLING:
      return "nothing by itself"
    sign = "" if auroc_L[label] > 0.5 else "not "
    return f"{sign}{self.label_L[label]} ({max(auroc_L[label], 1 - auroc_L[label]):.2f})"


def sections(run, figures):
  """{heading: blocks} of the report of a finished study; see `monojax.browser.report.write_report`."""
  ties = Ties(run)
  rows = _rows(ties)
  found = {
      "Figures": [_table(figures)],
      "Which features tell which variable": _variables(ties, figures),
      "From inputs to features": [_detectors(ties), _combinations(ties)],
      "What removing a feature does": [_bells(ties)],
      "From index to output": [_sankey(ties)],
      "Row by row": [Text("trace.csv and, where openpyxl is installed, trace.xlsx beside this page: a line for each "
                          f"of {len(rows)} rows: variables, predictions, and the {TRACED_FEATURES} features "
                          "whose removal changes the prediction most."), _examples(rows)],
  }
  if run.stage("sweep"):
    found["Other recipes and sizes"] = _sweep(files.read_json(run.directory / "sweep" / "points.json"))
  return found


def _table(figures):
  value = lambda name: figures.get(f"index_arithmetic/{name}")
  percent = lambda name: f"{100 * value(name):.2f} %"
  return Table(("figure", "ours", "published", "target"), [
      ("MLP's accuracy on new rows, rounded", percent("test_accuracy"), "85.9 %", "≥ 99.9 %"),
      ("accuracy with the reconstruction in the layer's place", percent("spliced_accuracy"), "61.9 %", "≥ 99 %"),
      ("features that fire on a row (L0)", value("l0"), "72", "≤ 20"),
      ("neurons that fire on a row", value("neurons_l0"), "69.8", None),
      ("features that never fire", percent("dead_fraction"), "43 %", "≤ 1 %"),
      ("features that fire on less than one row in 10,000", percent("rare_fraction"), "not measured", None),
      ("explained variance of the layer", value("explained_variance"), "0.987", None),
      ("accuracy with the layer's mean in its place", percent("ablated_accuracy"), "not measured", None),
      ("AUROC of a few features for the best told value of a variable, worst variable", value("min_variable_auroc"),
       "not measured", "≥ 0.99"),
      ("patched features move the prediction rightly, worst variable", percent("causal_agreement"), "not measured",
       "≥ 95 %"),
      ("seconds for all of it", value("seconds"), "1,269", "≤ 180")])


def _variables(ties, figures):
  rows = []
  for name in index_task.VARIABLES:
    value = lambda key, name=name: figures[f"index_arithmetic/{name}_{key}"]
    of_L = np.flatnonzero(ties.arrays["variable_L"] == name)
    best = of_L[ties.arrays["auroc_L"][of_L].argmax()]
    rows.append((name, ties.label_L[best], value("auroc"), value("median_auroc"), value("neuron_auroc"),
                 value("single_auroc"), f'{100 * value("single_information"):.0f} %', f'{100 * value("causal"):.1f} %',
                 value("moved"), value("active"), f'{100 * value("control"):.1f} %', value("control_active")))
  n_read, n_set = ties.arrays["chosen_LK"].shape[1], ties.arrays["set_VS"].shape[1]
  header = ("variable", "told best", f"AUROC of {n_read} features", "all labels' median", f"{n_read} neurons",
            "one feature", "one feature's information", "patched rightly", "share of the move", "features that fire",
            "control", "its features that fire")
  labels = Picture([
      {"type": "bar", "name": f"{n_read} {what}", "x": ties.label_L, "y": ties.arrays[key]}
      for what, key in (("features", "auroc_L"), ("neurons", "neuron_auroc_L"))] + [
      {"type": "bar", "name": "one feature", "x": ties.label_L, "y": np.nanmax(ties.arrays["auroc_FL"], 0)}],
      {"yaxis": {"title": {"text": "AUROC on held-out rows"}, "range": [0.5, 1]}, "height": 460, "bargap": 0.15,
       "margin": {"l": 60, "r": 20, "t": 50, "b": 120}, "xaxis": {"tickangle": 90},
       "legend": {"orientation": "h", "y": 1.12}},
      "Every value of every variable, and thresholds of those that are numbers.")
  names = list(index_task.VARIABLES)
  shares = Picture([{"type": "heatmap", "x": [f"{name}'s" for name in names], "y": names,
                     "z": ties.arrays["share_VV"].round(3), "zmin": 0, "zmax": 1,
                     "colorscale": [[0, "#ffffff"], [1, "#1f6fb4"]], "texttemplate": "%{z:.2f}"}],
                   {"height": 380, "yaxis": {"autorange": "reversed", "title": {"text": "what changes"}},
                    "xaxis": {"title": {"text": "whose features are patched"}},
                    "title": {"text": "Share of the move that a variable's features bring about"}},
                   "The sets overlap: a pointer's change is a change of the digit that it selects, and what is "
                   "computed from both columns carries the variables of both.")
  return [Text(f"A variable's {n_set} features are those that contribute most to the change of the prediction when it "
               "changes (integrated gradients, on half of the pairs of rows that differ in it and, where possible, in "
               "nothing else). Patched: on the other half those features take the other row's values, and the "
               "prediction should move towards its answer. Share: of the difference between the answers, in the "
               "middle. Control: as many features outside of the set, those nearest in how often they fire; it fires "
               "less, since the set holds most of what fires. This says what suffices to move a prediction, not that "
               "it serves one variable only. Readouts are sums of a few of the variable's features (or of any "
               "neurons), fitted to three quarters of other rows and judged on the rest; information: mutual "
               "information of the feature that has most, over the variable's entropy."),
          Table(header, rows), shares, labels]


def _detectors(ties):
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
                 "The features whose removal changes predictions most, the strongest first. Blue: fires when the label "
                 "holds; orange: when it does not.")


def _combinations(ties):
  """The mean effect of features by pointers and answer, with the strongest of them."""
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
                 "Each feature that fires is removed by itself; absolute changes of the prediction are added up. Point "
                 "at a cell for its five strongest features.")


def _bells(ties):
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
                 "A feature that adds to v1 lowers the prediction when it is removed where v1 > v2, and raises it "
                 "where v1 < v2. At most 300 rows a curve; the line is the mean.")


def _sankey(ties):
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
                 "Every edge is the mean change of its right end when its left end is changed: the prediction, when a "
                 "pointer that selects the value moves; a neuron, when the selected digit is another; a feature, when "
                 "the neuron is silenced; the prediction, when the feature is removed. Each of the four steps adds up "
                 "to 1; edges below a thousandth of it are left out. Shown are the neurons and features with the "
                 f"largest effects; these features have {100 * effects['effect_share']:.0f} % of all features' effect.")


def _sweep(points):
  header = ("recipe", "features", "sparsity", "spliced accuracy", "L0", "explained variance", "dead")
  rows = [(p["recipe"], p["n_features"], p["sparsity"], p["spliced_accuracy"], p["l0"], p["explained_variance"],
           p["dead_fraction"]) for p in points]
  lines = {}
  for point in sorted(points, key=lambda point: point["l0"]):
    lines.setdefault(f'{point["recipe"]}, {point["n_features"]}', []).append((point["l0"], point["spliced_accuracy"]))
  traces = [{"type": "scatter", "mode": "lines+markers", "name": name, "x": np.array(line)[:, 0],
             "y": np.array(line)[:, 1]} for name, line in sorted(lines.items())]
  return [Table(header, rows),
          Picture(traces, {"height": 420, "xaxis": {"title": {"text": "L0"}},
                           "yaxis": {"title": {"text": "spliced accuracy"}}})]


def _examples(rows):
  header = ("row", "v1", "v2", "answer", "prediction", "spliced", "three strongest features: effect of removal, what "
            "it tells")
  shown = []
  for row in rows[:12]:
    strongest = "; ".join(f"#{f}: {effect:+.2f}, {told}" for f, _, effect, told in row["features"][:3])
    shown.append((" ".join(map(str, row["inputs"])), row["v1"], row["v2"], row["difference"],
                  row["prediction"], row["spliced"], strongest))
  return Table(header, shown)


def _rows(ties, n_rows=500):
  """What the trace says of each row."""
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


def write_trace(run):
  """Writes `report/trace.csv`, and `report/trace.xlsx` where openpyxl is installed: one line for each row.

  Returns:
    Paths of what was written.
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
  paths = [run.directory / "report" / "trace.csv"]
  text = io.StringIO()
  csv.writer(text).writerows([columns, *lines])
  with files.replacing(paths[0]) as file:
    file.write(text.getvalue().encode())
  try:
    from openpyxl import Workbook
  except ImportError:
    return paths
  book = Workbook(write_only=True)
  sheet = book.create_sheet("trace")
  sheet.freeze_panes = "A2"
  for line in [columns, *lines]:
    sheet.append(line)
  paths.append(run.directory / "report" / "trace.xlsx")
  with files.replacing(paths[1]) as file:
    book.save(file)
  return paths


def probe(run, config, text):
  """What the MLP and its features make of one input: lines to print.

  Args:
    run: `Run` of a finished study.
    config: its configuration.
    text: ten numbers; see `index_task.parse`.
  """
  rows_BI = index_task.parse(text)
  subject = Subject(run, config)
  features, ties = Features.of_run(run, config), Ties(run)
  x_BM = subject.activations(rows_BI)
  f_BF = features.encode(x_BM)
  _, feature_P, effect_PO = ablation_effects(subject.tail, features.W_dec_FO, x_BM, f_BF)
  values = {name: int(value_B[0]) for name, value_B in index_task.variables(rows_BI).items()}
  lines = [f"c1[{values['p1']}] = {values['v1']}, c2[{values['p2']}] = {values['v2']}, answer {values['difference']}",
           f"prediction {subject.output(x_BM)[0]:.3f}, with the reconstruction in the layer's place "
           f"{subject.output(features.reconstruct(x_BM))[0]:.3f}",
           f"{len(feature_P)} features fire ({int((x_BM > 0).sum())} neurons); by the effect of removing each:",
           f"{'feature':>8} {'activation':>11} {'effect':>8}  tells best, alone (AUROC)"]
  for i in np.argsort(-np.abs(effect_PO[:, 0])):
    feature = feature_P[i]
    lines.append(f"{feature:>8} {f_BF[0, feature]:>11.3f} {effect_PO[i, 0]:>+8.3f}  {ties.told(feature)}")
  return lines
