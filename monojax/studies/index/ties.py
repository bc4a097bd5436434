"""Index arithmetic: which features tell the task's variables, and what features do when they are changed.

Letters: B rows, F features, H neurons, L labels, K features of a readout, P pairs of a row and a feature, V variables.
"""

import numpy as np

from monojax import files
from monojax.analysis import patching
from monojax.studies.index import task as index_task
from monojax.studies.index import variables as tell
from monojax.studies.index.study import Features, Subject

ORDERED = ("v1", "v2", "difference")  # variables whose thresholds are labels, too
SHOWN_NEURONS, SHOWN_FEATURES = 16, 24
_TIED_ROWS, _FITTED_ROWS, _DRAWN_PAIRS, _PAIRS, _ABLATED_ROWS = 40_000, 30_000, 10_000, 8000, 2000


def tie_features(run, config):
  """Which features carry the task's variables: by what changing them does, and by what they tell.

  Leaves `ties.npz` and `effects.npz` (`measured_effects`). The first holds of labels "variable_L", "relation_L" and
  "value_L", "chosen_LK" (the features of their readouts), "auroc_L", "neuron_auroc_L" and "auroc_FL"; "information_VF";
  "rows_F", on how many of the 10,000 judged rows each feature fires; and what `causal_sets` returns.
  """
  def work(directory, identity):
    subject = Subject(run, config)
    features = Features.of_run(run, config)
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


def causal_sets(config, subject, features):
  """The features that carry each variable, and what they do when they take the values of a row in which it differs.

  Rows are paired with ones that differ in the variable and as little else as possible (`index_task.changed`), and with
  another answer. On half of the pairs features are ranked by their mean contribution towards the other row's answer
  (`patching.attributions`); on the others the first of them are patched.

  Returns:
    ({"set_VS", the variables' features, the strongest first; "share_VV", the share of the move when the first variable
    changes and the second's features are patched}, {figure: value}). For each variable "causal" is the part of pairs
    whose prediction moves towards the other answer; "moved" the median of the move over the difference of the answers;
    "control" "causal" of as many features outside of the set, those nearest in how often they fire; "active" and
    "control_active" how many of the set, and of the control, fire on a row.
  """
  pairs = {name: _pairs(config, subject, features, name) for name in index_task.VARIABLES}
  sets = []
  for x_BM, f_BF, other_BF, wanted_B in pairs.values():
    half = slice(0, len(wanted_B) // 2)
    part_BF = patching.attributions(subject.tail, features.W_dec_FO, x_BM[half], f_BF[half], other_BF[half])
    towards_F = (part_BF * np.sign(wanted_B[half])[:, None]).mean(0)
    sets.append(np.argsort(-towards_F)[:config.variable_features])
  figures, share_VV = {}, np.zeros((len(sets), len(sets)))
  for variable, (name, (x_BM, f_BF, other_BF, wanted_B)) in enumerate(pairs.items()):
    judged = slice(len(wanted_B) // 2, None)

    def moves(set_S):
      before_BO, after_BO = patching.patched(subject.tail, features.W_dec_FO, x_BM[judged], f_BF[judged],
                                             other_BF[judged], set_S)
      return np.asarray(after_BO - before_BO)[:, 0] / wanted_B[judged]
    for other, set_S in enumerate(sets):
      share_B = moves(set_S)
      share_VV[variable, other] = np.median(share_B)
      if other == variable:
        figures |= {f"{name}_causal": float((share_B > 0).mean()), f"{name}_moved": float(np.median(share_B))}
    density_F = (f_BF > 0).mean(0)
    control_S = _as_frequent(sets[variable], density_F)
    figures |= {f"{name}_control": float((moves(control_S) > 0).mean()),
                f"{name}_active": float(density_F[sets[variable]].sum()),
                f"{name}_control_active": float(density_F[control_S].sum())}
  return {"set_VS": np.stack(sets), "share_VV": share_VV}, figures


def _pairs(config, subject, features, variable):
  """(x_BM, f_BF, features of the paired rows, differences of the answers), of pairs whose answers differ."""
  rows_BI = config.rows("patched", _DRAWN_PAIRS)
  other_BI = index_task.changed(rows_BI, variable, np.random.default_rng(config.seed))
  wanted_B = index_task.answers(other_BI) - index_task.answers(rows_BI)
  counts = np.flatnonzero(wanted_B)[:_PAIRS]  # as many for each variable
  x_BM, other_BM = subject.activations(rows_BI[counts]), subject.activations(other_BI[counts])
  return x_BM, features.encode(x_BM), features.encode(other_BM), wanted_B[counts]


def _as_frequent(set_F, density_F):
  """For each feature of a set another one, outside of it, that fires about as often; no feature twice."""
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


def measured_effects(config, subject, features):
  """What is drawn of causes and effects: each edge is the change of one thing when another is changed.

  Returns:
    Of some rows: "rows_BI", "found_B" (the prediction) and "spliced_B" (with the reconstruction in the layer's place);
    "row_P", "feature_P", "value_P" and "effect_P", the change of the prediction when a feature that fires is removed.
    Of edges, mean absolute changes over rows, 0 for rows that do not concern the edge: "pointer_value", of the
    prediction when a pointer that selects this value moves; "value_neuron", of a neuron when the selected digit
    changes; "neuron_feature", of a feature when a neuron is silenced; "feature_output", of the prediction when a
    feature is removed, by its rounded value. "neuron_N" and "shown_F" are the neurons and features with the largest
    effects on the prediction, "effect_share" the shown features' part of all features' effects.
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
