"""Neuronpedia's export layout: the features of an analysed dictionary and their examples, in batches of JSON lines.

  exports/MODEL/LAYER-SET/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
                          features/batch-0.jsonl.gz, activations/batch-0.jsonl.gz, ...

Letters: F features, E examples of a feature, W tokens of an example's window, H bins of a histogram.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.analysis.tables import EXAMPLE_GROUPS, FeatureTables
from monojax.config import require
from monojax.interop.sites import hook_of, layer_of
from monojax.sae.dictionary import SAE

BATCH_FEATURES = 256  # features in a file
# What other analyses add and monojax does not compute: said as absent, because readers look for the fields.
_EMPTY: dict[str, list] = {name: [] for name in (
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "decoder_weights_dist")}


def export(sae: SAE, features: FeatureTables, directory: str | os.PathLike[str], model_name: str, set_name: str,
           release: str = "", vectors: bool = True) -> pathlib.Path:
  """Writes an analysed dictionary in the layout of Neuronpedia's exports.

  Args:
    sae: the dictionary, of one site; for instance `run.sae` of a loaded run.
    features: the tables of its analysis, with examples; for instance `run.features`.
    directory: receives the folder `exports/`.
    model_name: the subject's name, such as gpt2-small: Neuronpedia's modelId.
    set_name: what these dictionaries are called at every layer, such as res-mine: the source set.
    release: the name of the release; by default `set_name`.
    vectors: whether each feature's direction is written, which is most of the bytes.

  Returns:
    The folder of this dictionary, `exports/MODEL/LAYER-SET`.

  Raises:
    InputError: the dictionary writes several sites, or its site has no layer; the analysis is of other features, or has
      no examples.
  """
  require(len(sae.writes) == 1, "sae", ", ".join(sae.writes), "Neuronpedia's features are of one site: name it in "
          "sae.sites")
  layer = layer_of(sae.writes[0])
  require(layer is not None, "site", sae.writes[0], "Neuronpedia's features are of a layer, as in layer.3.resid")
  require(features.n_features == sae.n_features, "features", features.n_features,
          f"the analysis is of another dictionary than this one of {sae.n_features}")
  require(features.has("example_tokens_FEW"), "features", "an analysis", "has no examples: Neuronpedia shows them")
  for name, value in (("model_name", model_name), ("set_name", set_name)):
    require(re.fullmatch(r"[\w.][\w.-]*", value), name, value, "must be of letters, digits, dots, dashes, underlines")
  source = f"{layer}-{set_name}"
  home = pathlib.Path(directory) / "exports" / model_name / source
  common = {"modelId": model_name, "layer": source}
  release = release or set_name
  records: dict[str, dict[str, Any]] = {
      "release": {"name": release, "description": ""}, "model": {"id": model_name, "displayName": model_name},
      "sourceset": {"modelId": model_name, "name": set_name, "releaseName": release, "hasDashboards": True},
      "source": {"id": source, "modelId": model_name, "setName": set_name, "hookName": hook_of(sae.writes[0]),
                 "nFeatures": sae.n_features, "nTokens": features.summary.get("n_tokens")}}
  for name, record in records.items():
    _write_lines(home / f"{name}.jsonl", [record])
  direction_FO = sae.direction_FO if vectors else None
  for batch, first in enumerate(range(0, sae.n_features, BATCH_FEATURES)):
    part = range(first, min(first + BATCH_FEATURES, sae.n_features))
    _write_lines(home / "features" / f"batch-{batch}.jsonl.gz",
                 (feature_record(features, i, direction_FO, hook_of(sae.writes[0]), common) for i in part))
    _write_lines(home / "activations" / f"batch-{batch}.jsonl.gz",
                 (record for i in part for record in activation_records(features, i, common)))
  return home


def feature_record(features: FeatureTables, feature: int, direction_FO: np.ndarray | None, hook_name: str,
                   common: Mapping[str, Any]) -> dict[str, Any]:
  """What Neuronpedia keeps of a feature; bars of histograms stand at the middles of their bins."""
  largest = float(features.max_act_F[feature])
  record = {**common, "index": str(feature), "hookName": hook_name, "maxActApprox": largest,
            "frac_nonzero": float(features.density_F[feature]), "hasVector": direction_FO is not None,
            "vector": [] if direction_FO is None else direction_FO[feature].tolist(),
            "vectorDefaultSteerStrength": largest,
            "neuron_alignment_indices": features.top_neuron_ids_FN[feature].tolist(),
            "neuron_alignment_values": features.top_neuron_weights_FN[feature].tolist(),
            "neuron_alignment_l1": features.top_neuron_l1_share_FN[feature].tolist(),
            **_bars("freq_hist_data", features.act_counts_FH[feature], 0.0, largest), **_EMPTY}
  if features.has("top_logit_ids_FK"):
    low, high = features.logit_range_F2[feature].tolist()
    record |= _bars("logits_hist_data", features.logit_counts_FH[feature], low, high)
  else:
    record |= {"logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": []}
  for theirs, ours in (("pos", "top"), ("neg", "bottom")):
    known = features.has(f"{ours}_logit_ids_FK")
    ids_K = features.columns[f"{ours}_logit_ids_FK"][feature] if known else np.zeros(0, int)
    values_K = features.columns[f"{ours}_logit_values_FK"][feature] if known else np.zeros(0)
    listed = ids_K >= 0
    record |= {f"{theirs}_str": [features.token_strings[i] for i in ids_K[listed]],
               f"{theirs}_values": values_K[listed].tolist()}
  return record


def _bars(name: str, counts_H: np.ndarray, low: float, high: float) -> dict[str, list[float]]:
  """A histogram of equal bins as the heights of its bars and the places where they stand."""
  edges = np.linspace(low, high, len(counts_H) + 1)
  return {f"{name}_bar_heights": counts_H.tolist(), f"{name}_bar_values": ((edges[1:] + edges[:-1]) / 2).tolist()}


def activation_records(features: FeatureTables, feature: int, common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Each example of a feature: its tokens, the activation on each, and the range of activations that it stands for.

  The examples that fire most are of no range, which -1 says. Where no activation of a feature is in a range, the
  nearest ones, which are shown for it elsewhere, are of another range and left out here.
  """
  first = 0
  for group, (_, size) in enumerate(EXAMPLE_GROUPS):
    of_range = _bin(features, feature, group)
    for e in range(first, first + size):
      ids_W, acts_W = features.example_tokens_FEW[feature, e], features.example_acts_FEW[feature, e]
      middle = len(ids_W) // 2
      stray = of_range["binMax"] > 0 and not of_range["binMin"] <= acts_W[middle] <= of_range["binMax"]
      if ids_W[middle] < 0 or stray:
        continue
      inside = ids_W >= 0
      values = acts_W[inside]
      record = {**common, "index": str(feature), "tokens": [features.token_strings[i] for i in ids_W[inside]],
                "values": values.tolist(), "maxValue": float(values.max()), "minValue": float(values.min()),
                "maxValueTokenIndex": int(values.argmax()), "qualifyingTokenIndex": int(inside[:middle].sum()),
                **of_range}
      record["id"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]
      yield record
    first += size


def _bin(features: FeatureTables, feature: int, group: int) -> dict[str, float]:
  """The range of activations around those that a group of examples is chosen for, and the fraction of tokens in it.

  Interval i is of activations near (10 - i) / 11 of the largest (`monojax.analysis.examples`): its range reaches half
  way to its neighbours'. The fraction is counted by the bars of the histogram whose middles are in the range.
  """
  n_intervals = len(EXAMPLE_GROUPS) - 2
  density, largest = float(features.density_F[feature]), float(features.max_act_F[feature])
  if group == 0:
    return {"binMin": -1.0, "binMax": -1.0, "binContains": -1.0}
  if group > n_intervals:
    return {"binMin": 0.0, "binMax": 0.0, "binContains": 1.0 - density}
  anchor, half = (n_intervals - group) / n_intervals * largest, largest / n_intervals / 2
  low, high = max(0.0, anchor - half), anchor + half
  counts_H = features.act_counts_FH[feature]
  middle_H = (np.arange(len(counts_H)) + 0.5) / len(counts_H) * largest
  inside = int(counts_H[(middle_H >= low) & (middle_H < high)].sum())
  return {"binMin": low, "binMax": high, "binContains": inside / max(int(features.n_fires_F[feature]), 1) * density}


def _write_lines(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
  """Writes records as JSON lines, gzipped where the name says so; the same records give the same bytes."""
  lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
  content = lines.encode("utf-8", errors="backslashreplace")
  with files.replacing(path) as file:
    file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
