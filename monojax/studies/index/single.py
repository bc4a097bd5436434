"""The stage `single` of the index-arithmetic study: what single features tell, and what only they move.

A feature is *specific* to a statement about a row, such as "p1 = 2" or "v1 > v2", if it tells by itself whether the
statement is true. The own features of a quantity are the best feature for each of its statements: four for a pointer,
and one each for "less", the amount by which v1 < v2, and "more", the amount by which v1 > v2. They carry the quantity,
and nothing else, if giving them their values on another row moves the prediction as changing that quantity alone would.

Both are asked of each hidden layer that has a dictionary: layer 1, whose dictionary the stage `sae` trained, and the
others of the study's settings, whose dictionaries are trained here.

Letters: B rows or pairs of rows, F features or neurons, L statements. In this module V is quantities whose features are
patched, N is quantities that a move may be due to, S the features of a set, and Z the layers.
"""

import pathlib
from typing import Any

import numpy as np

from monojax import files
from monojax.analysis import patching
from monojax.pipeline.folder import RunFolder
from monojax.studies.index import task as index_task
from monojax.studies.index import variables as tell
from monojax.studies.index.study import LAYER, Features, IndexStudyConfig, Subject, spliced_scores, train_one
from monojax.studies.index.ties import Arrays, as_frequent

# For each quantity the statements about it: (variable of the task, value).
STATEMENTS = {"p1": [("p1", value) for value in range(4)], "p2": [("p2", value) for value in range(4)],
              "less": [("sign", 0)], "more": [("sign", 2)]}
QUANTITIES = ("p1", "p2", "v1", "v2", "less", "more")  # what a move may be due to
_TOLD_ROWS, _PAIRS = 20_000, 8000  # half of each chooses, and the other half judges


def single_features(run: RunFolder, config: IndexStudyConfig) -> dict[str, Any]:
  """The stage `single`: trains the dictionaries of other layers, and measures the single features of each layer.

  It writes `single.npz`, which holds "layer_Z", the layers; for each of them the arrays of `measured`; and "place_V",
  the place among the layers of the one in which each quantity is most selective on the half of the pairs that chooses.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record. For each quantity, such as p1, its figures are, in the layer of "place_V", "p1_layer";
    "p1_one_auroc", the AUROC of the best single feature for a statement about it, for the worst of its statements;
    "p1_selectivity", see `selectivity`; "p1_selectivity_control" of as many other features; and
    "p1_selectivity_neurons" of the best neurons. "one_auroc" and "selectivity" are those of the worst quantity. Of
    other layers, "layer_0_l0" and so on are the figures of `spliced_scores`.
  """
  layers = (LAYER, *config.other_layers)

  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    found: list[Arrays] = []
    for layer in layers:
      subject = Subject(run, config, layer)
      if layer == LAYER:
        features = Features.of_run(run)
      else:
        features = train_one(config, subject, directory / f"layer_{layer}", identity)
        scores = spliced_scores(config, subject, features)
        figures |= {f"layer_{layer}_{name}": value for name, value in scores.items()}
      found.append(measured(config, subject, features))
    arrays = {name: np.stack([part[name] for part in found]) for name in found[0]}
    place_V = arrays["chooses_ZV"].argmax(0)
    for i, (name, place) in enumerate(zip(STATEMENTS, place_V.tolist(), strict=True)):
      figures |= {f"{name}_layer": layers[place],
                  f"{name}_one_auroc": float(arrays["auroc_ZL"][place][_of(name)].min()),
                  **{f"{name}_{key}": float(arrays[f"{key}_ZV"][place, i])
                     for key in ("selectivity", "selectivity_control", "selectivity_neurons")}}
    figures |= {key: min(figures[f"{name}_{key}"] for name in STATEMENTS) for key in ("one_auroc", "selectivity")}
    files.write_npz(directory / "single.npz", arrays | {"layer_Z": np.array(layers), "place_V": place_V})
    return {f"index_arithmetic/{name}": value for name, value in figures.items()}
  return run.execute("single", {"seed": config.seed, "saes": {f"layer_{layer}": config.sae_of(layer)
                                                              for layer in config.other_layers}}, work)


def _of(name: str) -> np.ndarray:
  """Which statements are about a quantity, (L,) bool."""
  return np.repeat([other == name for other in STATEMENTS], [len(about) for about in STATEMENTS.values()])


def measured(config: IndexStudyConfig, subject: Subject, features: Features) -> Arrays:
  """What single features of one layer tell and move.

  Args:
    config: the study's settings.
    subject: the MLP, made for the layer.
    features: a dictionary of the layer.

  Returns:
    The arrays of one layer, whose names have the letter Z of the layers nonetheless. On rows,

    * "feature_ZL", "auroc_ZL": the best feature for each statement, and its AUROC on rows that did not choose it;
    * "neuron_ZL", "neuron_auroc_ZL": the same for neurons.

    On pairs of rows that have nothing to do with each other,

    * "selectivity_ZV": the selectivity of each quantity's own features; "chooses_ZV" is the same on the pairs that
      choose a layer;
    * "selectivity_control_ZV", "selectivity_neurons_ZV": that of as many features that are not its own and fire about
      as often, and that of the best neurons;
    * "agreement_ZV": the fraction of pairs on which the patched prediction rounds to the answer with the quantity
      alone changed;
    * "due_ZVN": to the change of which of the `QUANTITIES` the move is due, see `due_to`.
  """
  rows_BI = config.rows("told", _TOLD_ROWS)
  values = index_task.variables(rows_BI)
  label_BL = np.stack([values[variable] == value for about in STATEMENTS.values() for variable, value in about], 1)
  x_BM = subject.activations(rows_BI)
  feature_L, auroc_L = best_features(features.encode(x_BM), label_BL)
  neuron_L, neuron_auroc_L = best_features(x_BM - np.minimum(x_BM.min(0), 0)[None], label_BL)

  rows_BI, other_BI = np.split(config.rows("paired", 2 * _PAIRS), 2)
  answer_B, changed = index_task.answers(rows_BI), index_task.answers_with_one_changed(rows_BI, other_BI)
  wanted_BN = np.stack([changed[name] for name in QUANTITIES], 1) - answer_B[:, None]
  x_BM, other_BM = subject.activations(rows_BI), subject.activations(other_BI)
  f_BF, other_BF = features.encode(x_BM), features.encode(other_BM)
  density_F = (f_BF > 0).mean(0)
  half = _PAIRS // 2

  def moves(W_dec_FO: Any, f_BF: np.ndarray, other_BF: np.ndarray, set_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the change of the prediction, the prediction) after patching a set, each (B,)."""
    before_BO, after_BO = patching.patched(subject.tail, W_dec_FO, x_BM, f_BF, other_BF, set_S)
    return np.asarray(after_BO - before_BO)[:, 0], np.asarray(after_BO)[:, 0]

  found: dict[str, list[Any]] = {}
  for name in STATEMENTS:
    own_S, wanted_B = np.unique(feature_L[_of(name)]), wanted_BN[:, QUANTITIES.index(name)]
    move_B, after_B = moves(features.W_dec_FO, f_BF, other_BF, own_S)
    control_B, _ = moves(features.W_dec_FO, f_BF, other_BF, as_frequent(own_S, density_F))
    neuron_B, _ = moves(np.eye(x_BM.shape[1], dtype=np.float32), x_BM, other_BM, np.unique(neuron_L[_of(name)]))
    right_B = np.round(after_B) == answer_B + wanted_B
    for key, value in (("chooses_ZV", selectivity(move_B[:half], wanted_B[:half])),
                       ("selectivity_ZV", selectivity(move_B[half:], wanted_B[half:])),
                       ("selectivity_control_ZV", selectivity(control_B[half:], wanted_B[half:])),
                       ("selectivity_neurons_ZV", selectivity(neuron_B[half:], wanted_B[half:])),
                       ("agreement_ZV", right_B[half:].mean()), ("due_ZVN", due_to(move_B[half:], wanted_BN[half:]))):
      found.setdefault(key, []).append(value)
  return {"feature_ZL": feature_L, "auroc_ZL": auroc_L, "neuron_ZL": neuron_L, "neuron_auroc_ZL": neuron_auroc_L,
          **{key: np.array(value) for key, value in found.items()}}


def best_features(f_BF: np.ndarray, label_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(feature_L, auroc_L): the feature with the highest AUROC for each label on the first half of the rows, and its
  AUROC on the second half.

  Args:
    f_BF: activations, which are not negative.
    label_BL: whether each row has each label, bool.
  """
  half = len(f_BF) // 2
  feature_L = np.nan_to_num(tell.aurocs(f_BF[:half], label_BL[:half])).argmax(0)
  auroc_LL = tell.aurocs(f_BF[half:, feature_L], label_BL[half:])
  return feature_L, auroc_LL.diagonal()


def selectivity(move_B: np.ndarray, wanted_B: np.ndarray) -> float:
  """How far predictions move as they should, and in no other way: 1 - sum |move - wanted| / sum |wanted|.

  It is 1 where each prediction moves as changing the quantity alone would move the answer. Half of each move gives 0.5,
  no move at all 0, and moves in the way of other quantities less than 0 where they are larger than what is achieved.
  """
  return float(1 - np.abs(move_B - wanted_B).sum() / np.abs(wanted_B).sum())


def due_to(move_B: np.ndarray, wanted_BN: np.ndarray) -> np.ndarray:
  """How much of a move is due to each quantity, (N,): weights with which their own moves add up to it best.

  Args:
    move_B: how predictions moved.
    wanted_BN: how the answer moves when each quantity alone is changed.
  """
  return np.linalg.lstsq(wanted_BN, move_B, rcond=None)[0]
