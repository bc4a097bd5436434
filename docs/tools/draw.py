"""Draws the pictures of the site's concept pages again, from a finished demo and from a toy model.

  make demo
  python docs/tools/draw.py --workdir=runs/demo

Each function below draws one file of docs/pictures/. `browser.png` is a screenshot, made by
`python tests/browser_fixture.py runs/demo/browser/site docs/pictures/browser.png '#/feature/12'`. Two pictures are of
docs/results/recipes.json, the `benchmark/points.json` of the run that the commands in docs/results/recipes.md make.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

import monojax  # noqa: E402
from monojax.analysis.pictures import draw_benchmark  # noqa: E402
from monojax.analysis.tables import FAINT, REGULAR, ULTRALOW  # noqa: E402
from monojax.studies.recipes.scores import SCORES  # noqa: E402
from monojax.studies.toy.model import ToyConfig, draw, forward, inputs_of, train_toys  # noqa: E402

PICTURES = pathlib.Path(__file__).parent.parent / "pictures"
RECIPES = PICTURES.parent / "results" / "recipes.json"
BLUE, ORANGE, GREEN, RED, VIOLET, GREY = "#1f6fb4", "#d1662a", "#3a9a4b", "#b3364f", "#7a56b0", "#8a8a8a"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", default="runs/demo", help="a finished run of the preset demo")
  plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 130,
                       "axes.titlesize": 9.5, "legend.frameon": False})
  run = monojax.load(parser.parse_args().workdir)
  draw_one_token(run)
  draw_densities(run)
  draw_measures()
  draw_recipes()
  draw_superposition()


def save(figure, name):
  """Writes a figure as docs/pictures/NAME.png, without a date, so that the same figure is the same file."""
  figure.tight_layout()
  figure.savefig(PICTURES / f"{name}.png", metadata={"Software": None})
  plt.close(figure)
  print(PICTURES / f"{name}.png")


def draw_one_token(run, text="TGACGCGGGAAATCAACATTCCG", token=6):
  """One row of activations, the features that fire on it, and the sum of their directions."""
  tokens, f_TF = run.encode(text)
  _, sites = run.subject.apply({"params": run.subject_params}, np.asarray([run.token_ids(text)], np.int32))
  x_M = np.asarray(sites[run.reads[0]])[0, token].astype(np.float32)
  f_F = f_TF[token]
  y_M = run.sae.decode(f_F[None])[0]
  fires = np.flatnonzero(f_F)[np.argsort(-f_F[np.flatnonzero(f_F)])]
  tables = run.features
  figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 5.6), height_ratios=(1, 1.4, 1))
  limits = (0, 1.08 * max(x_M.max(), y_M.max()))
  for axis, values, colour, title in (
      (top, x_M, BLUE, f"activations at the token {tokens[token]!r} of a DNA sequence: {(x_M > 0).sum()} of "
                       f"{len(x_M)} neurons are not 0"),
      (bottom, y_M, ORANGE, "the sum of those features' directions, each times its activation, and the bias")):
    axis.bar(np.arange(len(values)), np.maximum(values, 0), width=1.6, color=colour)
    axis.set(title=title, ylim=limits, xlim=(-1, len(values)))
    axis.set_xlabel("neuron")
  domain_F = [tables.domains[i] for i in tables.domain_share_FD.argmax(1)]
  middle.bar(np.arange(len(fires)), f_F[fires], color=VIOLET, width=0.7)
  middle.set_xticks(np.arange(len(fires)), [f"{i}\n{domain_F[i]}" for i in fires], fontsize=6.5, rotation=30)
  middle.set_title(f"the {len(fires)} of {len(f_F)} features that fire there; below each, the domain where it is most "
                   "active")
  save(figure, "one_token")


def draw_densities(run):
  """How often the demo's features fire, and how strongly they ever do."""
  tables = run.features
  kinds = (("regular", REGULAR, GREEN), ("faint", FAINT, GREY), ("ultralow", ULTRALOW, RED))
  names, of_kind, colours = zip(*((name, tables.status_F == code, colour) for name, code, colour in kinds), strict=True)
  log_densities = [np.log10(tables.density_F[is_one_F]) for is_one_F in of_kind]
  figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.5))
  left.hist(log_densities, np.arange(-6, 0.01, 0.25), stacked=True, color=colours, label=names)
  for log_density, is_one_F, colour in zip(log_densities, of_kind, colours, strict=True):
    right.scatter(log_density, tables.max_act_F[is_one_F], s=7, color=colour)
  right.set(yscale="log", xlabel="log₁₀ density", ylabel="largest activation")
  for axis in (left, right):
    axis.axvline(-5, color=RED, linewidth=0.8, linestyle=":")
    axis.axvline(-1, color=ORANGE, linewidth=0.8, linestyle=":")
    axis.set_xlim(-6, 0)
  top = left.get_ylim()[1]
  left.text(-5.05, 0.5 * top, "ultralow", color=RED, rotation=90, ha="right", va="center")
  left.text(-0.95, 0.5 * top, "dense", color=ORANGE, rotation=90, ha="left", va="center")
  left.set(xlabel="log₁₀ density: fraction of tokens on which a feature fires", ylabel="features")
  left.legend(loc="upper left", fontsize=8)
  save(figure, "densities")


def draw_recipes():
  """All scores of the recipes compared, against L0."""
  draw_benchmark(json.loads(RECIPES.read_text()), SCORES, PICTURES / "recipes.png")
  print(PICTURES / "recipes.png")


def draw_measures():
  """Explained variance against cross-entropy recovered, of the larger dictionaries of the recipes compared."""
  points = json.loads(RECIPES.read_text())
  largest = max(point["n_features"] for point in points)
  points = [point for point in points if point["n_features"] == largest]
  l0, variance, recovered = np.array([[point["l0"], point["explained_variance"], 100 * point["ce_recovered_zero"]]
                                      for point in points]).T
  figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
  left.scatter(l0, recovered, s=14, color=BLUE)
  left.set(xlabel="L0: features that fire on a token", ylabel="cross-entropy recovered, %",
           title="more features a token, more of the loss back")
  right.scatter(variance, recovered, s=14, color=BLUE)
  right.set(xlabel="explained variance", ylabel="cross-entropy recovered, %",
            title="a tenth of the variance is missing where 98 % is back")
  save(figure, "measures")


def draw_superposition():
  """Five features in two dimensions at three densities, and what an SAE of eight features finds in the last of them."""
  densities = (1.0, 0.2, 0.05)
  toy = ToyConfig(n_features=5, n_hidden=2, n_steps=4000, batch_rows=1024, learning_rate=5e-3)
  n_restarts = 8
  importance_IN = np.tile(0.9 ** np.arange(5), (len(densities) * n_restarts, 1))
  probability_IN = np.repeat(np.array(densities)[:, None] * np.ones((1, 5)), n_restarts, 0)
  best = train_toys(toy, importance_IN, probability_IN).lowest(len(densities))
  figure, axes = plt.subplots(1, 4, figsize=(9.4, 2.9))
  colours = (BLUE, ORANGE, GREEN, RED, VIOLET)
  for axis, W_NM, density in zip(axes, best.params["W_NM"], densities, strict=False):
    for direction_M, colour in zip(W_NM, colours, strict=True):
      axis.annotate("", direction_M, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
    axis.set_title("all five fire\non every row" if density == 1 else f"each fires on\n{density:.0%} of the rows")
  rows = dataclasses.replace(toy, batch_rows=20_000, seed=1)
  W_NM = best.params["W_NM"][-1]
  x_NB = inputs_of(rows, draw(rows, jax.random.key(1)), np.full(5, densities[-1], np.float32))
  x_NB = x_NB[:, np.asarray(x_NB).any(0)]
  h_BM = np.asarray(forward("relu", {"W_NM": W_NM, "b_N": best.params["b_N"][-1]}, x_NB)[1]).T
  sae = monojax.train(h_BM, recipe="topk", n_features=8, k=1, n_steps=1500)
  axes[3].scatter(*h_BM[:3000].T, s=1, color="#bbbbbb")
  for direction_M in np.asarray(sae.params["W_dec_FO"]):
    axes[3].annotate("", direction_M, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 2})
  axes[3].set_title("what an SAE of eight features\nfinds in those rows")
  for axis in axes:
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#dddddd", linewidth=0.8, zorder=0)
  save(figure, "superposition")


if __name__ == "__main__":
  main()
