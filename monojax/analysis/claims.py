"""What Towards Monosemanticity reports of its dictionary A/1, and the same figures of a dictionary of one's own.

A figure of the paper is one that its text states, or was computed from the data of its public pages of A/1, which has
4,096 features of a one-layer transformer; `docs/results/reproduction.md` says which.

Letters: F features, E examples of a feature, W tokens of an example.
"""

import dataclasses
import typing
from collections.abc import Mapping

import numpy as np

from monojax.analysis.tables import DEAD, EXAMPLE_GROUPS, ULTRALOW, FeatureTables

_TOP = EXAMPLE_GROUPS[0][1]  # examples of the strongest group
_DENSE = 0.01                # features that fire on more of the tokens are called dense
_PROXIES = (("Arabic", 0.74), ("DNA", 0.80), ("base64", 0.38), ("Hebrew", 0.55))
_SPECIFICITY = {"Arabic": 0.81}  # of the tokens on which the feature fires, those that are of the kind

# The results of commands that some figures are read from, {name: record}; see `Claim.source`.
Records = Mapping[str, Mapping[str, typing.Any]]


@dataclasses.dataclass(frozen=True)
class Claim:
  """One figure.

  Attributes:
    section: what the figure is about.
    name: what it is.
    published: the paper's, None where it states none.
    value: the dictionary's, None where it is not defined or was not measured.
    source: what it is read from: "analysis", or the name of the command that has to be run for it.
    percent: whether it is a share.
    interval: the ends of its 95 % interval, where the command that measures it tells one.
  """
  section: str
  name: str
  published: float | None
  value: float | None
  source: str = "analysis"
  percent: bool = False
  interval: tuple[float, float] | None = None


def claims(tables: FeatureTables, figures: Mapping[str, typing.Any], direction_FO: np.ndarray,
           records: Records) -> list[Claim]:
  """The figures of a dictionary, in the order of the paper.

  Args:
    tables: its feature tables.
    figures: its figures on held-out text, {"ce_recovered_zero": 0.9, ...}.
    direction_FO: its features' directions.
    records: {"universality": ..., "explain": ..., "control": ..., "automata": ...}: what these commands have left, as
      far as they were run; "control" is what `explain` left of the dictionary of a subject with random weights.
  """
  return [*_reconstruction(tables, figures), *_directions(tables, direction_FO), *_effects(tables), *_proxies(tables),
          *_detectors(tables), *_universality(records), *_labels(records), *_automata(records)]


def _reconstruction(tables: FeatureTables, figures: Mapping[str, typing.Any]) -> list[Claim]:
  section = "Reconstruction and sparsity"
  real_F = ~np.isin(tables.status_F, (DEAD, ULTRALOW))
  share = lambda status: float((tables.status_F == status).mean())
  claim = lambda name, published, value, percent=False: Claim(section, name, published, value, percent=percent)
  return [
      claim("cross-entropy recovered, of zero-ablation", 0.79, figures.get("ce_recovered_zero"), True),
      claim("cross-entropy recovered, of mean-ablation", None, figures.get("ce_recovered_mean"), True),
      claim("features that fire on a token (L0)", 4.90, figures.get("l0")),
      claim("explained variance", None, figures.get("explained_variance"), True),
      claim("dead features", 0.041, share(DEAD), True),
      claim("ultralow features", 0.071, share(ULTRALOW), True),
      claim("density of the others, median", 8.1e-4, _median(tables.density_F[real_F])),
      claim("features on more than 1 % of the tokens", 0.001, float((tables.density_F > _DENSE).mean()), True),
      claim("largest activation, median", 8.29, _median(tables.max_act_F[real_F]))]


def _directions(tables: FeatureTables, direction_FO: np.ndarray) -> list[Claim]:
  section = "Features are not neurons"
  real_F = ~np.isin(tables.status_F, (DEAD, ULTRALOW))
  size_FO = np.abs(direction_FO[real_F])
  size_FO /= np.maximum(np.linalg.norm(size_FO, axis=1, keepdims=True), 1e-30)
  found = [Claim(section, "largest part of a direction of length 1, median", 0.243, _median(size_FO.max(1))),
           Claim(section, "sum of its parts' sizes, median", 13.8, _median(size_FO.sum(1)))]
  if tables.has("best_neuron_correlation_F"):
    found.append(Claim(section, "correlation with the most similar neuron, median", None,
                       _median(tables.best_neuron_correlation_F[real_F])))
  return found


def _effects(tables: FeatureTables) -> list[Claim]:
  section = "What features do"
  real_F = ~np.isin(tables.status_F, (DEAD, ULTRALOW))
  found = []
  if tables.has("example_tokens_FEW"):
    found.append(Claim(section, "features of a single token, of those with 20 examples", 0.567,
                       single_token_share(tables), percent=True))
  if tables.has("top_logit_values_FK"):
    largest_F, smallest_F = tables.top_logit_values_FK[real_F, 0], tables.bottom_logit_values_FK[real_F, 0]
    found += [Claim(section, "largest logit weight, median", 0.494, _median(largest_F)),
              Claim(section, "smallest logit weight, median", -0.390, _median(smallest_F))]
  if tables.has("example_effects_FEW"):
    effect_P = next_token_effects(tables)
    mean, above = (float(of_P.mean()) if len(of_P) else None for of_P in (effect_P, effect_P > 0))
    found += [Claim(section, "rise of the next loss without it, 20 top examples, mean", 2.01, mean),
              Claim(section, "rise of the next loss without it, median", 1.37, _median(effect_P)),
              Claim(section, "rise of the next loss without it, above 0", 0.801, above, percent=True)]
  return found


def single_token_share(tables: FeatureTables) -> float | None:
  """The share of features whose 20 strongest examples all have their largest activation on one and the same token.

  Features with fewer examples, and dead and ultralow ones, are left out. None where there are none others.
  """
  real_F = ~np.isin(tables.status_F, (DEAD, ULTRALOW))
  acts_FEW, tokens_FEW = tables.example_acts_FEW[real_F, :_TOP], tables.example_tokens_FEW[real_F, :_TOP]
  at_FE1 = acts_FEW.argmax(2)[..., None]
  token_FE = np.take_along_axis(tokens_FEW, at_FE1, 2)[..., 0]
  whole_F = (np.take_along_axis(acts_FEW, at_FE1, 2)[..., 0] > 0).all(1)
  return float((token_FE[whole_F] == token_FE[whole_F, :1]).all(1).mean()) if whole_F.any() else None


def next_token_effects(tables: FeatureTables) -> np.ndarray:
  """How much the loss of the token after each of the 20 strongest examples of each feature rises without the feature.

  One number for each example, in nats; those without a next token, and those of features whose effects were not
  measured, are left out.
  """
  after = tables.example_tokens_FEW.shape[2] // 2 + 1
  real_F = ~np.isin(tables.status_F, (DEAD, ULTRALOW))
  effect_FE = tables.example_effects_FEW[real_F, :_TOP, after]
  there_FE = (tables.example_tokens_FEW[real_F, :_TOP, after] >= 0) & np.isfinite(effect_FE)
  return effect_FE[there_FE].astype(np.float64)


def _proxies(tables: FeatureTables) -> list[Claim]:
  rows = {row["proxy"]: row for row in tables.summary.get("proxies", ()) if row["kind"] != "domain"}
  section, found = "The feature of a script or a format", []
  for name, published in _PROXIES:
    row = rows.get(name, {})
    found += [Claim(section, f"{name}: correlation with its proxy", published, row.get("pearson")),
              Claim(section, f"{name}: that of the best neuron", None, row.get("neuron_pearson")),
              Claim(section, f"{name}: that of all features specific to it, together", None,
                    row.get("pearson_together")),
              Claim(section, f"{name}: tokens of the kind, of those on which the feature fires",
                    _SPECIFICITY.get(name), row.get("specificity"), percent=True)]
  return found


def _detectors(tables: FeatureTables) -> list[Claim]:
  section = "The best detectors of a kind of text: F1 on held-out text"
  found = []
  for row in tables.summary.get("detectors", ()):
    feature, neuron = row["feature_f1"], row["neuron_f1"]
    found += [Claim(section, f"{row['class']}: feature", None, feature),
              Claim(section, f"{row['class']}: neuron", None, neuron),
              Claim(section, f"{row['class']}: feature less neuron", None, feature - neuron)]
  return found


def _universality(records: Records) -> list[Claim]:
  figures = records.get("universality", {}).get("figures", {})
  section = "The same features in a second subject"
  found = [Claim(section, f"best correlation of {what}, median", published, figures.get(f"{name}/median_a"),
                 "universality")
           for what, published, name in (("features", 0.72, "correlation"), ("neurons", 0.46, "correlation_neurons"),
                                         ("random directions", None, "correlation_random"))]
  for what, name in (("logit weights", "logit_similarity"), ("attributions", "attribution_similarity")):
    found += [Claim(section, f"{what} of matched features: correlation, median", None, figures.get(f"{name}/median"),
                    "universality"),
              Claim(section, f"{what}: how that goes with the correlation of activations (Pearson)", None,
                    figures.get(f"{name}/correlation_with_activation"), "universality")]
  return found


def _labels(records: Records) -> list[Claim]:
  found = []
  groups = records.get("explain", {}).get("groups", {})
  control = records.get("control", {}).get("groups", {}).get("features", {})
  section = "Labels"

  def of(title: str, published: float | None, group: Mapping, name: str, command: str) -> Claim:
    median, *ends = group.get(name) or [None]
    return Claim(section, title, published, median, command, interval=tuple(ends) if len(ends) == 2 else None)
  for title, group, logits, command in (
      ("features", groups.get("features", {}), 0.74, "explain"),
      ("neurons", groups.get("neurons", {}), 0.53, "explain"),
      ("random directions", groups.get("random", {}), None, "explain"),
      ("features with random weights", control, 0.50, "control")):
    found += [of(f"{title}: score (Spearman), median", None, group, "score", command),
              of(f"{title}: score, not of a single token", None, group, "score_others", command),
              of(f"{title}: right in the logits test, median", logits, group, "logits", command)]
  return found


def _automata(records: Records) -> list[Claim]:
  figures = records.get("automata", {}).get("figures", {})
  found = []
  for n in (1, 2, 3, 4):
    features = "feature that leads to itself" if n == 1 else f"loop of {n} features"
    for control, ending in (("", ""), (", weights shuffled", "_shuffled")):
      found.append(Claim("Automata", f"strongest {features}{control}", None, figures.get(f"best_{n}{ending}"),
                         "automata"))
  return found


def _median(values: np.ndarray) -> float | None:
  """The median of the finite values, None where there are none."""
  values = values[np.isfinite(values)]
  return float(np.median(values)) if len(values) else None
