"""A picture of several dictionaries: sparsity against fidelity, one line a recipe."""

PANELS = (("ce_recovered_zero", "cross-entropy recovered"), ("explained_variance", "explained variance"))


def draw_frontier(points, path):
  """Draws L0 against cross-entropy recovered and against explained variance.

  Args:
    points: dicts with name, recipe, n_features, l0, ce_recovered_zero, explained_variance.
    path: the picture's file; its ending says the format.

  Returns:
    Whether it was drawn: not where matplotlib (extra `report`) is missing.
  """
  try:
    import matplotlib
  except ImportError:
    return False
  matplotlib.use("Agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 4.5), layout="constrained")
  several_sizes = len({point["n_features"] for point in points}) > 1
  lines = {}
  for point in sorted(points, key=lambda point: point["l0"]):
    label = f"{point['recipe']}, {point['n_features']:,}" if several_sizes else point["recipe"]
    lines.setdefault(label, []).append(point)
  for axis, (column, title) in zip(axes, PANELS, strict=True):
    for label, line in sorted(lines.items()):
      shown = [point for point in line if point[column] is not None]
      axis.plot([point["l0"] for point in shown], [point[column] for point in shown], "o-", label=label, markersize=4)
    axis.set(xlabel="L0 (features a token)", ylabel=title, xscale="log")
    axis.grid(alpha=0.3)
  axes[-1].legend(fontsize=8)
  figure.savefig(path, dpi=130)
  pyplot.close(figure)
  return True
