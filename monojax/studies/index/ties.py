"""The stage `features` of the index-arithmetic study: ties features to the variables of the task.

A feature is tied to a variable in two ways. One is causal: features are given the values that they have on a row in
which the variable differs, and the prediction should move accordingly (`causal_sets`). The other asks what features
tell: how well the variable's value can be read off them (`variables.py`). Besides, the stage measures what each feature
does to predictions (`measured_effects`).

Letters: B rows, I the numbers of a row, M neurons of the layer, F features, O the prediction (of length 1), L labels, K
features of a readout, P pairs of a row and a feature that fires there, N shown neurons. In this module V is variables
and S the features of a set.
"""

import pathlib
from typing import Any

import numpy as np

from monojax import files
from monojax.analysis import patching
from monojax.pipeline.folder import RunFolder
from monojax.studies.index import task as index_task
from monojax.studies.index import variables as tell
from monojax.studies.index.study import Features, IndexStudyConfig, Subject

ORDERED = ("v1", "v2", "difference")  # the variables that have labels of the kind "v1 >= 5", too
SHOWN_NEURONS, SHOWN_FEATURES = 16, 24  # how many neurons and features the report draws
# Readouts are made on 40,000 rows, of which the first 30,000 fit them and the others judge them.
_TIED_ROWS, _FITTED_ROWS = 40_000, 30_000
# Of the pairs of rows that are drawn, 8,000 with different answers are used. Features are removed on 2,000 rows.
_DRAWN_PAIRS, _PAIRS, _ABLATED_ROWS = 10_000, 8000, 2000

Arrays = dict[str, np.ndarray]


def tie_features(run: RunFolder, config: IndexStudyConfig) -> dict[str, Any]:
  """The stage `features`: finds out which features carry which variable, and what features do.

  It writes `effects.npz`, the arrays of `measured_effects`, and `ties.npz`, which holds the arrays of `causal_sets` and

  * "variable_L", "relation_L", "value_L": the labels, for instance v1, >= and 5;
  * "chosen_LK", "auroc_L": the features of each label's readout, and how well it tells the label on the judged rows;
  * "neuron_auroc_L": the same of a readout of as many neurons;
  * "auroc_FL": how well each feature by itself tells each label;
  * "information_VF": the mutual information between each variable and each feature, in bits;
  * "rows_F": on how many of the judged rows each feature fires.

  Args:
    run: the study's folder.
    config: its settings.

  Returns:
    The stage's record. For each variable, such as v1, its figures include "v1_auroc", of the readout of the value that
    is told best; "v1_median_auroc", over all of its labels; "v1_neuron_auroc" and "v1_single_auroc", by neurons and by
    one feature; and "v1_single_information", the mutual information of the feature that has most, over the variable's
    entropy.
  """
  def work(directory: pathlib.Path, identity: str) -> dict[str, Any]:
    subject = Subject(run, config)
    features = Features.of_run(run)
    arrays, figures = causal_sets(config, subject, features)
    rows_BI = config.rows("tied", _TIED_ROWS)
    values = index_task.variables(rows_BI)
    names, label_BL = tell.labels_of(values, ORDERED)
    variable_L = np.array([name for name, *_ in names])
    x_BM = subject.activations(rows_BI)
    f_BF = features.encode(x_BM)
    chosen_LK, auroc_L = np.zeros((len(names), config.readout_features), int), np.zeros(len(names))
    for name, set_S in zip(index_task.VARIABLES, arrays["set_VS"], strict=True):
      of = variable_L == name
      chosen_SK, auroc_L[of] = tell.readouts(f_BF[:, set_S], label_BL[:, of], config.readout_features, _FITTED_ROWS)
      chosen_LK[of] = set_S[chosen_SK]
    neuron_auroc_L = tell.readouts(x_BM, label_BL, config.readout_features, _FITTED_ROWS)[1]
    auroc_FL = tell.aurocs(f_BF[_FITTED_ROWS:], label_BL[_FITTED_ROWS:])
    for name in index_task.VARIABLES:
      of = variable_L == name
      best = np.flatnonzero(of)[auroc_L[of].argmax()]
      figures |= {f"{name}_auroc": float(auroc_L[best]), f"{name}_median_auroc": float(np.median(auroc_L[of])),
                  f"{name}_neuron_auroc": float(neuron_auroc_L[best]),
                  f"{name}_single_auroc": float(0.5 + np.nanmax(np.abs(auroc_FL[:, best] - 0.5)))}
    information_VF = tell.mutual_information(f_BF, np.stack(list(values.values()), 1))
    for (name, value_B), information_F in zip(values.items(), information_VF, strict=True):
      figures[f"{name}_single_information"] = float(information_F.max() / tell.entropy(value_B))
    worst = lambda key: min(figures[f"{name}_{key}"] for name in index_task.VARIABLES)
    figures |= {"min_variable_auroc": worst("auroc"), "causal_agreement": worst("causal")}
    files.write_npz(directory / "ties.npz", arrays | {
        "variable_L": variable_L, "relation_L": np.array([relation for _, relation, _ in names]),
        "value_L": np.array([value for *_, value in names]), "chosen_LK": chosen_LK, "auroc_L": auroc_L,
        "neuron_auroc_L": neuron_auroc_L, "auroc_FL": auroc_FL,
        "information_VF": information_VF, "rows_F": (f_BF[_FITTED_ROWS:] > 0).sum(0)})
    files.write_npz(directory / "effects.npz", measured_effects(config, subject, features))
    return {f"index_arithmetic/{name}": value for name, value in figures.items()}
  return run.execute("features", {name: getattr(config, name)
                                  for name in ("seed", "variable_features", "readout_features")}, work)


def causal_sets(config: IndexStudyConfig, subject: Subject, features: Features) -> tuple[Arrays, dict[str, Any]]:
  """The features of each variable, and what happens when they take the values that they have where it differs.

  Each row is paired with a row in which the variable differs and as little else as possible (`index_task.changed`).
  Only pairs with different answers are used. On the first half of the pairs, features are ranked by how much they add
  to the change of the prediction towards the other row's answer (`patching.attributions`), and the first of them are
  the variable's set. On the second half, the features of the set take their values from the other row, which is called
  patching, and the prediction should move towards the other answer.

  Args:
    config: the study's settings.
    subject: the MLP.
    features: the dictionary.

  Returns:
    (arrays, figures). Of the arrays, "set_VS" is the features of each variable, the strongest first, and "share_VV" the
    median share of the move when the first variable changes and the set of the second is patched. The share of a move
    is the change of the prediction over the difference between the answers. The figures for each variable, such as v1,
    are

    * "v1_causal": the fraction of pairs in which patching the set moves the prediction towards the other answer;
    * "v1_moved": the median share of the move;
    * "v1_control": "v1_causal" for a control, which is as many features outside of the set that fire about as often;
    * "v1_active" and "v1_control_active": how many features of the set, and of the control, fire on a row on average.
  """
  pairs = {name: _pairs(config, subject, features, name) for name in index_task.VARIABLES}
  sets = []
  for x_BM, f_BF, other_BF, wanted_B in pairs.values():
    half = slice(0, len(wanted_B) // 2)
    part_BF = patching.attributions(subject.tail, features.W_dec_FO, x_BM[half], f_BF[half], other_BF[half])
    towards_F = (part_BF * np.sign(wanted_B[half])[:, None]).mean(0)
    sets.append(np.argsort(-towards_F)[:config.variable_features])
  figures: dict[str, Any] = {}
  share_VV = np.zeros((len(sets), len(sets)))
  for variable, (name, (x_BM, f_BF, other_BF, wanted_B)) in enumerate(pairs.items()):
    judged = slice(len(wanted_B) // 2, None)

    def moves(set_S: np.ndarray) -> np.ndarray:
      """The share of the move that patching some features makes, on each of the judged pairs."""
      before_BO, after_BO = patching.patched(subject.tail, features.W_dec_FO, x_BM[judged], f_BF[judged],
                                             other_BF[judged], set_S)
      return np.asarray(after_BO - before_BO)[:, 0] / wanted_B[judged]
    for other, set_S in enumerate(sets):
      share_B = moves(set_S)
      share_VV[variable, other] = np.median(share_B)
      if other == variable:
        figures |= {f"{name}_causal": float((share_B > 0).mean()), f"{name}_moved": float(np.median(share_B))}
    density_F = (f_BF > 0).mean(0)
    control_S = as_frequent(sets[variable], density_F)
    figures |= {f"{name}_control": float((moves(control_S) > 0).mean()),
                f"{name}_active": float(density_F[sets[variable]].sum()),
                f"{name}_control_active": float(density_F[control_S].sum())}
  return {"set_VS": np.stack(sets), "share_VV": share_VV}, figures


def _pairs(config: IndexStudyConfig, subject: Subject, features: Features,
           variable: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Pairs of rows that differ in a variable and have different answers.

  Returns:
    (x_BM, f_BF, other_BF, wanted_B): activations and features of the first rows, features of the second rows, and the
    second answers minus the first.
  """
  rows_BI = config.rows("patched", _DRAWN_PAIRS)
  other_BI = index_task.changed(rows_BI, variable, np.random.default_rng(config.seed))
  wanted_B = index_task.answers(other_BI) - index_task.answers(rows_BI)
  used = np.flatnonzero(wanted_B)[:_PAIRS]  # the same number of pairs for each variable
  x_BM, other_BM = subject.activations(rows_BI[used]), subject.activations(other_BI[used])
  return x_BM, features.encode(x_BM), features.encode(other_BM), wanted_B[used]


def as_frequent(set_F: np.ndarray, density_F: np.ndarray) -> np.ndarray:
  """For each feature of a set a feature outside of it that fires about as often; none of them twice."""
  free = np.ones(len(density_F), bool)
  free[set_F] = False
  found = []
  for feature in set_F[np.argsort(-density_F[set_F])]:
    if not free.any():
      break
    nearest = np.where(free, np.abs(density_F - density_F[feature]), np.inf).argmin()
    free[nearest] = False
    found.append(nearest)
  return np.array(found, int)


def measured_effects(config: IndexStudyConfig, subject: Subject, features: Features) -> Arrays:
  """What each feature does to predictions, and the graph of causes and effects that the report draws.

  Args:
    config: the study's settings.
    subject: the MLP.
    features: the dictionary.

  Returns:
    Arrays. On 2,000 rows,

    * "rows_BI", "found_B", "spliced_B": the rows, the MLP's predictions, and its predictions from reconstructions;
    * "row_P", "feature_P", "value_P", "effect_P": each pair of a row and a feature that fires there, its activation,
      and the change of the prediction when the feature is removed.

    "neuron_N" and "shown_F" are the neurons and the features whose removal changes predictions most, and "effect_share"
    is the part of all features' effects that is due to those features. The edges of the graph lead between pointers,
    selected digits, these neurons, these features and predictions. An edge is the mean over rows of an absolute change,
    where a row that does not concern the edge counts as 0:

    * "pointer_value": the change of the prediction when the pointer, which selects this digit, is moved;
    * "value_neuron": the change of the neuron when the selected digit is another;
    * "neuron_feature": the change of the feature when the neuron is set to 0;
    * "feature_output": the change of the prediction, which rounds to this digit, when the feature is removed.
  """
  rng = np.random.default_rng(config.seed)
  rows_BI = config.rows("ablated", _ABLATED_ROWS)
  values, x_BM = index_task.variables(rows_BI), subject.activations(rows_BI)
  f_BF, found_B = features.encode(x_BM), subject.output(x_BM)
  row_P, feature_P, effect_PO = patching.ablation_effects(subject.tail, features.W_dec_FO, x_BM, f_BF)
  effect_P = effect_PO[:, 0]
  total_F = np.bincount(feature_P, np.abs(effect_P), features.n_features)
  shown_F = np.argsort(-total_F)[:SHOWN_FEATURES]
  neurons = patching.ablation_effects(subject.tail, np.eye(x_BM.shape[1], dtype=np.float32), x_BM, x_BM)
  neuron_N = np.argsort(-np.bincount(neurons[1], np.abs(neurons[2][:, 0]), x_BM.shape[1]))[:SHOWN_NEURONS]

  pointer_value, value_neuron = np.zeros((2, 4, 10)), np.zeros((2, 10, len(neuron_N)))
  for side, (pointer, value) in enumerate((("p1", "v1"), ("p2", "v2"))):
    moved_B = subject.output(subject.activations(index_task.changed(rows_BI, pointer, rng)))
    np.add.at(pointer_value[side], (values[pointer], values[value]), np.abs(moved_B - found_B))
    other_BM = subject.activations(index_task.changed(rows_BI, value, rng))
    np.add.at(value_neuron[side], values[value], np.abs(other_BM - x_BM)[:, neuron_N])
  neuron_feature = np.zeros((len(neuron_N), len(shown_F)))
  for i, neuron in enumerate(neuron_N):
    silenced_BM = x_BM.copy()
    silenced_BM[:, neuron] = 0
    neuron_feature[i] = np.abs(features.encode(silenced_BM) - f_BF)[:, shown_F].sum(0)
  feature_output = np.zeros((len(shown_F), index_task.N_DIGITS))
  place_F = np.full(features.n_features, -1)
  place_F[shown_F] = np.arange(len(shown_F))
  of_shown_P = place_F[feature_P] >= 0
  rounded_P = np.clip(np.round(found_B), 0, 9).astype(int)[row_P]
  np.add.at(feature_output, (place_F[feature_P[of_shown_P]], rounded_P[of_shown_P]), np.abs(effect_P[of_shown_P]))
  edges = {"pointer_value": pointer_value, "value_neuron": value_neuron, "neuron_feature": neuron_feature,
           "feature_output": feature_output}
  return {"rows_BI": rows_BI, "found_B": found_B, "spliced_B": subject.output(features.reconstruct(x_BM)),
          "row_P": row_P, "feature_P": feature_P, "value_P": f_BF[row_P, feature_P], "effect_P": effect_P,
          **{name: edge / len(rows_BI) for name, edge in edges.items()}, "neuron_N": neuron_N, "shown_F": shown_F,
          "effect_share": total_F[shown_F].sum() / max(total_F.sum(), 1e-9)}
