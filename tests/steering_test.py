"""Steering by sets of features: by hand with edits of the subject, at some positions, with and without a cache."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_models
import pytest
from tiny_run import run

import monojax
from monojax.analysis import interventions, steering
from monojax.analysis.config import SteerConfig
from monojax.analysis.interventions import Change
from monojax.config import InputError
from monojax.pipeline import stages
from monojax.pipeline.folder import RunFolder
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring
from monojax.sae.recipes import make_recipe
from monojax.subjects import subject as subjects
from monojax.subjects.config import SubjectConfig

TEXT = "In the beginning God created"


@pytest.fixture(scope="module")
def loaded(finished):
  return monojax.load(finished[0])


def changed_by_hand(f_TF, changes):
  """The features that changes put in the place of others, position by position."""
  new_TF = np.array(f_TF, np.float64)
  for change in changes:
    start, stop = change.positions or (0, None)
    for t in range(start, len(f_TF) if stop is None else min(stop, len(f_TF))):
      new_TF[t, change.feature] = {"pin": lambda f: change.value, "scale": lambda f: change.value * f,
                                   "ablate": lambda f: 0.0}[change.kind](f_TF[t, change.feature])
  return new_TF


@functools.lru_cache
def adding(subject, site):
  """The compiled subject with something added to a site's activations: (logits, what is there then)."""
  return jax.jit(lambda params, ids_1T, add_TM: subject.apply({"params": params}, ids_1T, {
      site: lambda x: x + add_TM[None]}, wanted=(site,)))


def logits_by_hand(loaded, ids, changes):
  """Logits after the last token, with the site set to what features changed in NumPy give."""
  (site,) = loaded.reads
  apply = lambda params, add_TM: adding(loaded.subject, site)(params, np.array([ids]), add_TM)
  x_TM = np.asarray(apply(loaded.subject_params, np.zeros((len(ids), 48), np.float32))[1][site])[0]
  f_TF = np.asarray(loaded.sae.encode(x_TM), np.float64)
  add_TM = (changed_by_hand(f_TF, changes) - f_TF) @ loaded.sae.direction_FO
  return np.asarray(apply(loaded.subject_params, add_TM.astype(np.float32))[0])[0, -1], f_TF


def strongest(loaded, n):
  """The features that fire most on the last token of TEXT."""
  return [one.feature for one in loaded.top_features(TEXT, n=n)]


def test_changes_of_every_kind_are_those_made_by_hand(loaded):
  ids = loaded.token_ids(TEXT)
  a, b, _ = strongest(loaded, 3)
  silent = int(np.flatnonzero(loaded.encode(TEXT).f_TF[-1] == 0)[0])
  for changes in ([Change(a, "ablate"), Change(b, "ablate")], [Change(a, "scale", 3.0), Change(silent, "pin", 2.0)],
                  [Change(a, "scale", -2.0), Change(b, "pin", 1.5)]):
    expected, _ = logits_by_hand(loaded, ids, changes)
    clean, found = interventions.next_token_logits(loaded._subject, loaded.sae, ids, changes)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(found - clean).max() > 1e-2


def test_positions_are_respected(loaded):
  """In a subject of one layer, what is changed in the MLP at a position changes the prediction there alone."""
  ids, (a, b) = loaded.token_ids(TEXT), strongest(loaded, 2)
  last = len(ids) - 1
  here = [Change(a, "scale", 4.0, (last, None)), Change(b, "pin", 3.0, (2, last))]
  expected, _ = logits_by_hand(loaded, ids, here)
  clean, found = interventions.next_token_logits(loaded._subject, loaded.sae, ids, here)
  np.testing.assert_allclose(found, expected, atol=2e-4)
  with_a = lambda *spans: interventions.next_token_logits(
      loaded._subject, loaded.sae, ids, [Change(a, "scale", 4.0, span) for span in spans])[1]
  np.testing.assert_allclose(found, with_a((0, last), (last, None)), atol=1e-5)
  np.testing.assert_allclose(with_a((0, 2), (3, last)), clean, atol=1e-5)


def test_a_continuation_is_steered_from_the_position_on_at_which_the_change_begins(loaded):
  feature = int(loaded.features.top_logit_values_FK[:, 0].argmax())
  ids = loaded.token_ids(TEXT)
  start = len(ids) + 3
  write = lambda features: interventions.steer(loaded._subject, loaded.sae, ids, features, 8)
  plain, changed = write([Change(feature, "scale", 1.0)]), write([Change(feature, "pin", 1000.0, (start, None))])
  # The token at `start` is written from the position before it, which is not changed yet.
  assert changed[:start + 1] == plain[:start + 1] and changed[start + 1] != plain[start + 1]
  assert len(changed) == len(plain) == len(ids) + 8
  assert write([Change(feature, "pin", 1000.0)]) == write({feature: 1000.0})


def test_a_list_of_pins_is_the_dict(loaded):
  (a,) = strongest(loaded, 1)
  assert loaded.steer(TEXT, {a: 2.0}, 8, seed=3) == loaded.steer(TEXT, [Change(a, value=2.0)], 8, seed=3)
  assert loaded._changes([Change(a)]) == [Change(a, "pin", float(loaded.features.max_act_F[a]))]


def test_both_columns_and_the_next_token(loaded):
  (a,) = strongest(loaded, 1)
  found = loaded.compare_steering(TEXT, [Change(a, "scale", 5.0)], n=2, n_tokens=8, seed=4)
  for i in range(2):
    assert TEXT + found.changed[i] == loaded.steer(TEXT, [Change(a, "scale", 5.0)], 8, seed=4 + i)
    assert TEXT + found.plain[i] == loaded.steer(TEXT, [Change(a, "scale", 1.0)], 8, seed=4 + i)
  clean, changed = logits_by_hand(loaded, loaded.token_ids(TEXT), [])[0], logits_by_hand(
      loaded, loaded.token_ids(TEXT), found.changes)[0]
  p, q = (np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum() for z in (clean, changed))
  assert found.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-2)
  strings = loaded.tokenizer.token_strings()
  rise = np.argsort(p - q, kind="stable")[:len(found.raised)]
  assert [moved.token for moved in found.raised] == [strings[i] for i in rise]
  assert [moved.after for moved in found.raised] == pytest.approx(q[rise].tolist(), rel=1e-2)
  assert all(moved.after < moved.before for moved in found.lowered)
  json.dumps(found.to_dict())


def test_moved_tokens_of_three():
  raised, lowered, kl = steering.moved_tokens(np.log([0.5, 0.3, 0.2]), np.log([0.1, 0.3, 0.6]), ["a", "b", "c"], 5)
  assert raised[0].token == "c" and raised[0].after == pytest.approx(0.6) and lowered[0].token == "a"
  assert kl == pytest.approx(0.5 * np.log(5) + 0.2 * np.log(1 / 3))


def test_a_cache_changes_no_token(tmp_path):
  """A pretrained transformer of two layers, of which features of the first are changed at some positions."""
  pretrained_models.write(tmp_path / "model", dict(pretrained_models.LLAMA, num_hidden_layers=2))
  subject = subjects.load_pretrained(SubjectConfig(weights=str(tmp_path / "model"), n_context=48))
  config = SAEConfig(recipe="tm2023", n_features=32).resolved()
  model = make_recipe(config, Wiring((64,), (0,), (0,)), jnp.float32).model
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64))))["params"]
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
  sae = SAE(config, model, params, ("layer.0.resid",))
  changes = [Change(3, "pin", 8.0, (4, 20)), Change(5, "scale", -6.0), Change(3, "ablate", None, (22, None))]
  assert interventions.reads_first(interventions.wired(sae), subject.model)
  prompt = [1, 5, 9, 40, 77]
  write = lambda changes, **how: interventions.steer(subject, sae, prompt, changes, 30, 1, 1.0, **how)
  found = write(changes)
  assert found == write(changes, use_cache=False) and len(found) == 35
  later = [changes[0], Change(5, "scale", -6.0, (21, None)), changes[2]]
  nothing = [Change(feature, "scale", 1.0) for feature in (3, 5, 7)]
  assert found != write(later) and write(later) != write(nothing)


@pytest.mark.parametrize("kwargs, match", [
    ({"kind": "hold", "value": 1.0}, "kind='hold'"), ({"kind": "scale"}, "multiplied"),
    ({"kind": "ablate", "value": 1.0}, "value=1.0"), ({"value": float("nan")}, "finite"),
    ({"value": 1.0, "positions": (5, 5)}, "positions"), ({"value": 1.0, "positions": (-1, None)}, "positions")])
def test_changes_that_make_no_sense_are_refused(kwargs, match):
  with pytest.raises(InputError, match=match):
    Change(0, **kwargs)


def test_what_cannot_be_steered_is_said(loaded):
  with pytest.raises(InputError, match="feature=3.*same positions"):
    loaded.steer("a", [Change(3, "ablate"), Change(3, "pin", 1.0, (4, 9))])
  with pytest.raises(InputError, match="feature=64"):
    loaded.steer("a", [Change(64, "ablate")])
  with pytest.raises(InputError, match="behind the subject's context"):
    loaded.compare_steering("a", [Change(3, "ablate", None, (32, None))])
  with pytest.raises(InputError, match="32 tokens"):
    loaded.compare_steering(TEXT * 9, {3: 1.0})
  dead = np.flatnonzero(loaded.features.max_act_F == 0)
  if len(dead):
    with pytest.raises(InputError, match="never fires"):
      loaded.steer("a", [Change(int(dead[0]))])


def test_the_texts_of_the_command_line():
  config = SteerConfig(pin=("3", "4=max", "5=-1.5"), scale=("6=2",), ablate=("7",), positions="4:")
  assert config.changes == [(3, "pin", None), (4, "pin", None), (5, "pin", -1.5), (6, "scale", 2.0),
                            (7, "ablate", None)]
  assert config.span == (4, None) and SteerConfig(positions=":9").span == (0, 9) and SteerConfig().span is None
  for wrong, match in (({"pin": ("x",)}, "pin='x'"), ({"pin": ("3=high",)}, "FEATURE=max"),
                       ({"scale": ("3",)}, "FEATURE=NUMBER"), ({"ablate": ("3=0",)}, "ablate='3=0'"),
                       ({"positions": "7"}, "START:STOP"), ({"positions": "7:7"}, "smaller"),
                       ({"pin": ("3",), "ablate": ("3",)}, "feature=3")):
    with pytest.raises(InputError, match=match):
      SteerConfig(**wrong)


def test_the_command_prints_both_columns(finished, loaded, tmp_path, capsys):
  (a,) = strongest(loaded, 1)
  stages.steer(RunFolder(finished[0]), SteerConfig(prompt=TEXT, pin=(str(a),), n=1, n_tokens=8, positions="2:",
                                                   out=str(tmp_path / "steered.json")))
  expected = loaded.compare_steering(TEXT, [Change(a, positions=(2, None))], 1, 8)
  written, printed = json.loads((tmp_path / "steered.json").read_text()), capsys.readouterr().out
  assert written["changed"] == expected.changed and written["kl"] == expected.kl
  assert f"feature {a} held at" in printed and "from token 2 on" in printed and "AS IT IS" in printed
  result = run("steer", finished[0], f"--prompt={TEXT}")
  assert result.returncode == 2 and "--pin" in result.stderr and result.stderr.count("\n") == 1
