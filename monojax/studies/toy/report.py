"""The report of the toy models of superposition: pictures of the models, and figures beside those of the paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from monojax.browser.report import Block, Picture, Table, Text
from monojax.pipeline.folder import RunFolder
from monojax.studies.toy import geometry as superposition
from monojax.studies.toy.study import load

_COLOURS = ["#1f6fb4", "#d1662a", "#3a9a4b", "#b3364f", "#7a56b0", "#8a6d3b", "#c26bb0", "#666666", "#20a0a0",
            "#e0b020"]
_BLUE_TO_RED = [[0, "#1f4e9c"], [0.5, "#ffffff"], [1, "#b02525"]]  # the smallest value, 0 and the largest

Arrays = Mapping[str, np.ndarray]
Trace = dict[str, Any]  # what Plotly draws as one line, heat map or set of bars


def sections(run: RunFolder, figures: Mapping[str, Any]) -> dict[str, list[Block]]:
  """The report of a finished study, for `monojax.browser.report.write_report`.

  Args:
    run: the study's folder.
    figures: the figures of its stages, by name.

  Returns:
    {heading: the blocks of the section}.
  """
  return {
      "Figures": [_table(figures)],
      "Which features are kept": _basic(load(run, "basic")),
      "Phases": _phases(load(run, "phase")),
      "The geometry of equal features": _geometry(load(run, "geometry")),
      "Five features, one of another frequency": _vectors_by_factor(load(run, "perturbation")),
      "Features that fire together, or never do": _sets(load(run, "sets")),
      "How it is learned": _dynamics(load(run, "dynamics")),
      "Neurons": _privileged(load(run, "privileged")) + _computation(load(run, "computation")),
      "A dictionary finds the features again": _recovery(load(run, "recovery"), figures),
  }


def _table(figures: Mapping[str, Any]) -> Table:
  value = lambda name: figures[f"toy/{name}"]
  return Table(("figure", "ours", "Toy Models of Superposition"), [
      ("part of the represented features whose dimensionality D is within .02 of 1, 3/4, 2/3, 1/2, 2/5 or 3/8 (at "
       "densities with 3/8 ≤ D* < 1)", value("fraction_on_predicted_dimensionality"), "most, read off the plot"),
      ("sticky point D* = 1: largest distance from it among the three models nearest to it", value("sticky_error_1"),
       "0, read off the plot"),
      ("sticky point D* = 1/2: the same", value("sticky_error_half"), "0, read off the plot"),
      ("polytopes that were found", value("polytopes_found"),
       "digon, triangle, tetrahedron, pentagon, square antiprism"),
      ("shape of five features in the plane that are equal and sparse", value("even_geometry"), "pentagon"),
      ("part of the phase diagram with the phase of the least expected loss", value("phase_agreement"),
       "theory and models agree"),
      ("part with superposition, of where the closed form says that an antipodal pair is best",
       value("phase_within_bound"), "all"),
      ("cosine between two features that fire together: when dense, when sparse",
       f'{value("correlated_cosine_dense"):.2f}, {value("correlated_cosine_sparse"):.2f}', "1 (merged), about 0"),
      ("cosine between two features that never fire together, when sparse", value("anticorrelated_cosine_sparse"),
       "-1 (antipodal)"),
      ("largest vulnerability, over that of the densest model", value("vulnerability_ratio"), "more than 3"),
      ("MCC of the features that an SAE finds in a hidden layer", value("recovery_mcc"), "not measured"),
  ])


def _density(value: float) -> str:
  """A density as titles of panels have it."""
  return f"1-S = {value:.3g}"


def _grid(panels: Sequence[tuple[str, list[Trace]]], n_columns: int, size: int,
          axis: Mapping[str, Any]) -> tuple[list[Trace], dict[str, Any]]:
  """Panels side by side, as Plotly's traces and layout.

  Args:
    panels: the title and the traces of each panel.
    n_columns: how many panels a row has.
    size: the width of a panel in pixels.
    axis: the settings of all axes.
  """
  n_rows = -(-len(panels) // n_columns)
  data: list[Trace] = []
  layout: dict[str, Any] = {"annotations": [], "showlegend": False}
  for i, (title, traces) in enumerate(panels):
    suffix, (row, column) = "" if i == 0 else str(i + 1), divmod(i, n_columns)
    x0, x1 = column / n_columns, (column + 0.88) / n_columns
    y0, y1 = 1 - (row + 0.82) / n_rows, 1 - row / n_rows
    data += [{**trace, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"} for trace in traces]
    layout[f"xaxis{suffix}"] = {"domain": [x0, x1], "anchor": f"y{suffix}", **axis}
    layout[f"yaxis{suffix}"] = {"domain": [y0, y1], "anchor": f"x{suffix}", **axis}
    layout["annotations"].append({"text": title, "x": (x0 + x1) / 2, "y": y1, "xref": "paper", "yref": "paper",
                                  "showarrow": False, "yanchor": "bottom", "font": {"size": 11}})
  return data, {**layout, "width": size * n_columns, "height": (size + 20) * n_rows + 60,
                "margin": {"l": 20, "r": 10, "t": 40, "b": 20}}


_BARE = {"showticklabels": False, "showgrid": False, "zeroline": False}


def _vectors(W_NM: np.ndarray) -> list[Trace]:
  """The directions of features in the plane, as traces."""
  return [{"type": "scatter", "mode": "lines+markers", "x": [0, float(x)], "y": [0, float(y)], "hoverinfo": "text",
           "text": f"feature {i}", "line": {"color": _COLOURS[i % len(_COLOURS)]}, "marker": {"size": [0, 7]}}
          for i, (x, y) in enumerate(W_NM)]


def _planes(W_LNM: np.ndarray, titles: Iterable[str], note: str, n_columns: int = 7) -> Picture:
  """A panel for each of several models with two hidden dimensions, which shows its features' directions."""
  data, layout = _grid([(title, _vectors(W_NM)) for title, W_NM in zip(titles, W_LNM, strict=True)], n_columns, 150,
                       {**_BARE, "range": [-1.4, 1.4], "zeroline": True})
  return Picture(data, layout, note)


def _basic(arrays: Arrays) -> list[Block]:
  blocks: list[Block] = []
  density_L = arrays["density_L"]
  for n in (20, 80):
    panels = []
    for variant in ("linear", "relu"):
      for density, W_NM in zip(density_L, arrays[f"{variant}_{n}_W_LNM"], strict=True):
        if variant == "relu" or density == density_L[0]:
          panels.append((f"{variant}, {_density(density)}", [{
              "type": "heatmap", "z": W_NM @ W_NM.T, "zmin": -1, "zmax": 1, "colorscale": _BLUE_TO_RED,
              "showscale": False}]))
    data, layout = _grid(panels, 4, 200, _BARE)
    for i in range(len(panels)):
      layout["yaxis" + ("" if i == 0 else str(i + 1))]["autorange"] = "reversed"
    blocks.append(Picture(data, layout, f"W Wᵀ of {n} features in {n // 4} dimensions, the most important feature "
                          "first; red is +1 and blue -1. The linear model keeps as many features as there are "
                          "dimensions. With a ReLU, the sparser features are, the more of them are kept."))
  return blocks


def _phases(arrays: Arrays) -> list[Block]:
  points = len(arrays["density_P"])
  blocks: list[Block] = []
  axes = {"xaxis": {"type": "log", "title": {"text": "density 1-S"}, "autorange": "reversed"},
          "yaxis": {"type": "log", "title": {"text": "importance of the extra feature"}}, "width": 560, "height": 460}
  picture = lambda phase_L: [{
      "type": "heatmap", "x": arrays["density_P"], "y": arrays["importance_P"], "z": phase_L.reshape(points, points).T,
      "zmin": 0, "zmax": 2, "colorscale": [[0, "#f2f2f2"], [0.5, "#d1662a"], [1, "#1f6fb4"]],
      "colorbar": {"tickvals": [0, 1, 2], "ticktext": ["left out", "superposed", "dedicated"]}}]
  for key, title in (("phase_2_L", "Two features in one dimension, trained"),
                     ("theory_2_L", "Two features in one dimension, predicted"),
                     ("phase_3_L", "Three features in two dimensions, trained")):
    blocks.append(Picture(picture(arrays[key]), {"title": {"text": title}, **axes}))
  blocks.append(Text("The prediction is the phase with the least expected loss. The expected loss is computed by "
                     "quadrature, and minimised over weights and biases from three starts: the first feature alone, "
                     "the second alone, and both in opposite directions."))
  return blocks


def _geometry(arrays: Arrays) -> list[Block]:
  density_L, W_LNM = arrays["density_L"], arrays["W_LNM"]
  x_L, D_LN = 1 / density_L, superposition.dimensionality(W_LNM)
  lines = [{"type": "scatter", "mode": "lines", "x": [x_L[0], x_L[-1]], "y": [value, value], "hoverinfo": "name",
            "name": name, "line": {"dash": "dot", "width": 1, "color": "#999"}, "showlegend": False}
           for name, value in superposition.PREDICTED.items()]
  names = [{"x": np.log10(x_L[-1]) + 0.03, "y": value, "text": name, "showarrow": False, "xanchor": "left",
            "font": {"size": 11}} for name, value in superposition.PREDICTED.items()]
  x_axis = {"type": "log", "title": {"text": "1/(1-S)"}}
  represented_LN = D_LN >= 0.02
  dots = {"type": "scattergl", "mode": "markers", "x": np.repeat(x_L, represented_LN.sum(1)), "y": D_LN[represented_LN],
          "marker": {"size": 3, "opacity": 0.4}, "name": "a feature", "hoverinfo": "skip"}
  star = {"type": "scatter", "mode": "lines+markers", "x": x_L, "y": superposition.dimensions_per_feature(W_LNM),
          "name": "D* = M / |W|²"}
  shapes: dict[str, np.ndarray] = {}
  for i, W_NM in enumerate(W_LNM):
    for n_features, n_dimensions, _ in superposition.polytopes(W_NM):
      name = superposition.name_of(n_features, n_dimensions)
      name = name if name in superposition.POLYTOPES else "other"
      shapes.setdefault(name, np.zeros(len(x_L)))[i] += n_features
  bars = [{"type": "bar", "x": [f"{x:.3g}" for x in x_L], "y": count_L, "name": name}
          for name, count_L in sorted(shapes.items())]
  attack = [{"type": "scatter", "mode": "lines+markers", "x": x_L, "y": arrays["vulnerability_L"] /
             arrays["vulnerability_L"][0], "name": "vulnerability"},
            {"type": "scatter", "mode": "lines+markers", "x": x_L, "name": "features a dimension",
             "y": 1 / superposition.dimensions_per_feature(W_LNM)}]
  return [
      Picture([*lines, dots, star], {"xaxis": x_axis, "yaxis": {"title": {"text": "dimensionality"}, "range": [0, 1.1]},
                                     "annotations": names, "height": 560, "margin": {"r": 130},
                                     "legend": {"orientation": "h"}},
              "400 equal features in 30 dimensions. Each dot is the dimensionality of a feature, which is its part of "
              "a dimension. Dotted lines are the dimensionalities of corners of polytopes."),
      Picture(bars, {"barmode": "stack", "xaxis": {"title": {"text": "1/(1-S)"}, "type": "category"},
                     "yaxis": {"title": {"text": "features"}}, "height": 420},
              "How many features belong to which polytopes, which are groups of features that share dimensions with "
              "each other and with no others."),
      Picture(attack, {"xaxis": x_axis, "yaxis": {"title": {"text": "over that of the densest model"}}, "height": 380},
              "Vulnerability is what the worst small change of the inputs adds to the loss. It grows with the number "
              "of features that share a dimension.")]


def _vectors_by_factor(arrays: Arrays) -> list[Block]:
  titles = [f"× {factor:.2f}" for factor in arrays["factor_L"]]
  loss = [{"type": "scatter", "mode": "lines+markers", "x": arrays["factor_L"], "y": arrays["loss_L"]}]
  return [_planes(arrays["W_LNM"], titles, "The title of a panel says how many times as frequent feature 0 (blue) is "
                                           "as each of the other four."),
          Picture(loss, {"xaxis": {"type": "log", "title": {"text": "frequency of feature 0 over that of the others"}},
                         "yaxis": {"title": {"text": "loss"}}, "height": 340})]


def _sets(arrays: Arrays) -> list[Block]:
  titles = [_density(density) for density in arrays["density_L"]]
  notes = {"correlated": "Two pairs of features that fire together: blue with orange, green with red. The features of "
                         "a pair are merged while they are dense, and at right angles when they are sparse.",
           "anticorrelated": "Two pairs of features that never fire together: they are put opposite each other.",
           "pairs": "Three pairs of features that fire together: they share three directions while they are dense, and "
                    "form a hexagon when they are sparse."}
  return [_planes(arrays[f"{name}_W_LNM"], titles, note, 6) for name, note in notes.items()]


def _dynamics(arrays: Arrays) -> list[Block]:
  blocks: list[Block] = []
  for name, note in (("sets", "Six features in three dimensions, in two sets of three features that fire together."),
                     ("even", "100 equal features in 10 dimensions.")):
    step_T, D_TN = arrays[f"{name}_step_T"], arrays[f"{name}_D_TN"]
    traces = [{"type": "scatter", "mode": "lines", "x": step_T, "y": D_N, "line": {"width": 1}, "opacity": 0.7,
               "showlegend": False} for D_N in D_TN.T]
    traces.append({"type": "scatter", "mode": "lines", "x": step_T, "y": arrays[f"{name}_loss_T"], "name": "loss",
                   "yaxis": "y2", "line": {"color": "#000", "width": 2}})
    blocks.append(Picture(traces, {"xaxis": {"title": {"text": "step"}},
                                   "yaxis": {"title": {"text": "dimensionality"}, "range": [0, 1.1]},
                                   "yaxis2": {"title": {"text": "loss"}, "overlaying": "y", "side": "right",
                                              "type": "log", "showgrid": False}, "height": 420}, note))
  return blocks


def _privileged(arrays: Arrays) -> list[Block]:
  panels = [(_density(density), [{"type": "heatmap", "z": W_NM, "zmin": -1.2, "zmax": 1.2,
                                  "colorscale": _BLUE_TO_RED, "showscale": False}])
            for density, W_NM in zip(arrays["density_L"], arrays["W_LNM"], strict=True)]
  data, layout = _grid(panels, 6, 150, {**_BARE})
  return [Picture(data, layout, "Weights from 10 features (rows, the most important at the bottom) to 5 neurons with a "
                  "ReLU, in the best of 50 instances. Each neuron serves one feature while features are dense, and "
                  "several when they are sparse.")]


def _computation(arrays: Arrays) -> list[Block]:
  lines = [{"type": "scatter", "mode": "lines+markers", "x": 1 / arrays["density_L"],
            "y": arrays[f"monosemantic_{n}_L"], "name": f"{n} features, {m} neurons"} for n, m in ((3, 6), (100, 40))]
  panels = [(_density(density), _stacked(W_NM, out_MN)) for density, W_NM, out_MN in
            zip(arrays["density_L"], arrays["W_100_LNM"], arrays["out_100_LMN"], strict=True)]
  data, layout = _grid(panels, 4, 230, _BARE)
  return [Picture(lines, {"xaxis": {"type": "log", "title": {"text": "1/(1-S)"}}, "height": 380,
                          "yaxis": {"title": {"text": "neurons that serve one feature"}, "range": [0, 1.05]}},
                  "The part of the neurons that serve one feature, in models that compute |x|. A neuron serves one "
                  "feature if that feature has more than nine tenths of its effect, which is the weight in times the "
                  "weight out."),
          Picture(data, {**layout, "barmode": "stack"}, "The effect of each of the 40 neurons. A bar is a neuron, and "
                  "the colours in it are features: one while features are dense, several when they are sparse.")]


def _stacked(W_NM: np.ndarray, out_MN: np.ndarray, n_parts: int = 6) -> list[Trace]:
  """A bar for each neuron, whose parts are its effects on features, the largest at the bottom."""
  effect_MN = np.abs(W_NM * out_MN.T).T
  order_MN = np.argsort(-effect_MN, axis=1)[:, :n_parts]
  return [{"type": "bar", "y": np.take_along_axis(effect_MN, order_MN[:, j:j + 1], 1)[:, 0],
           "marker": {"color": [_COLOURS[i % len(_COLOURS)] for i in order_MN[:, j]], "line": {"width": 0}}}
          for j in range(n_parts)]


def _recovery(arrays: Arrays, figures: Mapping[str, Any]) -> list[Block]:
  from monojax.analysis.recovery import cosines
  best_N = cosines(arrays["W_dec_FO"], arrays["W_NM"]).max(0)
  return [Picture([{"type": "histogram", "x": best_N, "xbins": {"start": 0, "end": 1.0001, "size": 0.02}}],
                  {"xaxis": {"title": {"text": "largest cosine with a feature of the dictionary"}, "range": [0, 1.02]},
                   "yaxis": {"title": {"text": "features of the model"}}, "height": 360},
                  "How well an SAE finds the features in the hidden layer of 80 features in 20 dimensions. Its MCC is "
                  f"{figures['toy/recovery_mcc']:.3f} over the {figures['toy/recovery_features']} features that the "
                  "layer represents.")]
