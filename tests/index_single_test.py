"""Single features of the index-arithmetic study, on layers whose features are planted."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from monojax.config import InputError
from monojax.studies.index import single
from monojax.studies.index import task as index_task
from monojax.studies.index.study import IndexStudyConfig, preset


def measured(layer, tail):
  """The measurement where activations are `layer(rows_BI)`, each neuron is a feature, and `tail` makes the answers."""
  width = layer(index_task.parse("8,9,5,1,3,2,9,4,7,1")).shape[1]
  subject = types.SimpleNamespace(activations=layer, tail=tail)
  features = types.SimpleNamespace(encode=lambda x_BM: x_BM, W_dec_FO=np.eye(width, dtype=np.float32))
  found = single.measured(IndexStudyConfig(), subject, features)
  return {key: dict(zip(single.STATEMENTS, value, strict=True)) if "V" in key else value
          for key, value in found.items()}


def pointed_at(x_BI):
  """v1 and v2 of rows of symbols, by arithmetic that a pointer of any mixture of values goes through."""
  columns_B4 = [x_BI[:, first:first + 40].reshape(-1, 4, 10) @ jnp.arange(10.0) for first in (0, 44)]
  return [(column_B4 * x_BI[:, first:first + 4]).sum(1) for column_B4, first in zip(columns_B4, (40, 84), strict=True)]


def test_symbols_tell_the_pointers_and_carry_nothing_else():
  def tail(x_BI):
    v1_B, v2_B = pointed_at(x_BI)
    return jnp.abs(v1_B - v2_B)[:, None]
  found = measured(lambda rows_BI: np.asarray(index_task.symbols(rows_BI)), tail)
  assert found["feature_ZL"][:8].tolist() == [40, 41, 42, 43, 84, 85, 86, 87]
  np.testing.assert_allclose(found["auroc_ZL"][:8], 1)
  assert max(found["auroc_ZL"][8:]) < 0.7
  np.testing.assert_array_equal(found["feature_ZL"], found["neuron_ZL"])
  for i, name in enumerate(("p1", "p2")):
    assert found["selectivity_ZV"][name] == pytest.approx(1, abs=1e-5) and found["agreement_ZV"][name] == 1
    assert found["selectivity_control_ZV"][name] < 0.1
    np.testing.assert_allclose(found["due_ZVN"][name], np.eye(6)[i], atol=1e-4)


def test_gates_tell_the_pointers_and_carry_the_digits():
  """A unit for each place of a column, which is the digit there plus 1 if the pointer is there, and else 0."""
  def layer(rows_BI):
    return np.concatenate([(rows_BI[:, first:first + 4] + 1) * (rows_BI[:, [first + 4]] == np.arange(4)[None])
                           for first in (0, 5)], 1).astype(np.float32)
  found = measured(layer, lambda x_BM: jnp.abs(x_BM[:, :4].sum(1) - x_BM[:, 4:].sum(1))[:, None])
  np.testing.assert_allclose(found["auroc_ZL"][:8], 1)
  for i, name in enumerate(("p1", "p2")):
    np.testing.assert_allclose(found["due_ZVN"][name], np.eye(6)[2 + i], atol=1e-4)
    assert found["selectivity_ZV"][name] < 0.5
  # By brute force, p1: each pair by itself, on the half of the pairs that judges.
  pairs_BI = IndexStudyConfig().rows("paired", 16_000).astype(int)
  wrong = due = right = 0
  for row, other in zip(pairs_BI[4000:8000], pairs_BI[12_000:], strict=True):
    v2 = row[5:9][row[9]]
    before, patched = abs(row[row[4]] - v2), abs(other[other[4]] - v2)
    wanted = abs(row[other[4]] - v2)
    wrong, due, right = wrong + abs(patched - wanted), due + abs(wanted - before), right + (patched == wanted)
  assert found["selectivity_ZV"]["p1"] == pytest.approx(1 - wrong / due, abs=1e-4)
  assert found["agreement_ZV"]["p1"] == pytest.approx(right / 4000)


def test_amounts_tell_the_signs_and_carry_the_amounts():
  def layer(rows_BI):
    v1_B, v2_B = index_task.selected(rows_BI)
    noise_B = np.random.default_rng(0).random(len(rows_BI))
    return np.maximum(np.stack([v2_B - v1_B, v1_B - v2_B, noise_B], 1), 0).astype(np.float32)
  found = measured(layer, lambda x_BM: x_BM[:, :1] + x_BM[:, 1:2])
  assert found["feature_ZL"][8:].tolist() == [0, 1]
  np.testing.assert_allclose(found["auroc_ZL"][8:], 1)
  for i, name in ((4, "less"), (5, "more")):
    assert found["selectivity_ZV"][name] == pytest.approx(1) and found["agreement_ZV"][name] == 1
    np.testing.assert_allclose(found["due_ZVN"][name], np.eye(6)[i], atol=1e-4)
    assert found["selectivity_control_ZV"][name] < 0.1


def test_selectivity_of_half_and_of_no_moves():
  wanted_B = np.array([2.0, -3.0, 0.0, 1.0])
  assert single.selectivity(wanted_B, wanted_B) == 1 and single.selectivity(0 * wanted_B, wanted_B) == 0
  assert single.selectivity(wanted_B / 2, wanted_B) == 0.5
  assert single.selectivity(np.array([2.0, -3.0, 3.0, 1.0]), wanted_B) == 0.5  # moves where nothing should


def test_settings_of_layers_are_checked():
  assert preset("better") == IndexStudyConfig() and preset("specific").sae_of(2).k == 1
  for bad in ({"other_layers": (1,)}, {"other_layers": (0,), "other_k": (1, 2)}):
    with pytest.raises(InputError, match=list(bad)[-1]):
      IndexStudyConfig(**bad)
