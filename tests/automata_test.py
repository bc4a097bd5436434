"""Loops of features: sums over sparse codes against loops over tokens, planted loops, and which of them are listed."""

import itertools
import json
import re
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest

import monojax
from monojax.analysis import automata, drawn_loops
from monojax.analysis.automata import Loop, State, Step
from monojax.analysis.codes import Codes
from monojax.analysis.config import AutomataConfig
from monojax.analysis.text import AnalysedText
from monojax.config import InputError
from monojax.pipeline import stages
from monojax.pipeline.folder import RunFolder

V = 30


def codes_of(f_NF):
  """The sparse activations of a dense array."""
  rows = [np.flatnonzero(f_N) for f_N in f_NF.T]
  return Codes(len(f_NF), np.concatenate([[0], np.cumsum([len(row_P) for row_P in rows])]),
               np.concatenate(rows).astype(np.int32),
               np.concatenate([f_N[row_P] for f_N, row_P in zip(f_NF.T, rows, strict=True)]).astype(np.float32))


def text_of(token_N, n_context=20, document_length=50, counts_N=None):
  places = np.arange(len(token_N))
  domain_N = (places // document_length % 2).astype(np.int32)
  return AnalysedText(token_N.astype(np.int32), (places // n_context).astype(np.int32), places // document_length,
                      domain_N, counts_N)


@pytest.fixture(scope="module")
def random_text():
  """(activations, text, logit weights, used tokens): 400 tokens, of which the first of each context does not count."""
  rng = np.random.default_rng(0)
  f_NF = rng.exponential(size=(400, 7)) * (rng.random((400, 7)) < 0.3)
  counts_N = np.arange(400) % 20 > 0
  f_NF[~counts_N] = 0
  return (f_NF.astype(np.float32), text_of(rng.integers(0, 12, 400), counts_N=counts_N),
          rng.normal(size=(7, V)).astype(np.float32), np.arange(V) != 3)


def by_hand(f_NF, text, v_FV, used_V, n_raised):
  """(T, score) of all steps between features, token by token."""
  n_features = f_NF.shape[1]
  pairs = [t for t in range(len(f_NF) - 1) if text.context_N[t] == text.context_N[t + 1]
           and text.document_N[t] == text.document_N[t + 1] and t % 20 > 0]
  after_NF = f_NF[[t + 1 for t in pairs]].astype(np.float64)
  weight_FF, score_FF = np.zeros((n_features, n_features)), np.zeros((n_features, n_features))
  for i, j in itertools.product(range(n_features), repeat=2):
    raised = sorted((k for k in range(V) if used_V[k] and v_FV[i, k] > 0), key=lambda k: -v_FV[i, k])[:n_raised]
    mean, typical = after_NF[:, j].mean(), after_NF[:, j].sum() / (after_NF[:, j] > 0).sum()
    for k in raised:
      there = [f_NF[t + 1, j] for t in pairs if f_NF[t, i] > 0 and text.token_N[t + 1] == k]
      expected = np.mean(there, dtype=np.float64) if there else mean
      weight_FF[i, j] += v_FV[i, k] * (expected if there else 0)
      score_FF[i, j] += v_FV[i, k] * (expected - mean) / (typical - mean)
    score_FF[i, j] /= sum(v_FV[i, k] for k in raised)
  return weight_FF, score_FF


@pytest.mark.parametrize("n_raised", [4, V])
def test_steps_are_the_sums_over_tokens(random_text, n_raised):
  f_NF, text, v_FV, used_V = random_text
  weight_FF, score_FF = by_hand(f_NF, text, v_FV, used_V, n_raised)
  steps = automata.steps_of(codes_of(f_NF), text)
  v_JV = automata.raised_tokens(lambda feature_J: v_FV[feature_J], np.arange(7), used_V, n_raised)
  found_FF, _, n_steps_F = automata.step_weights(steps, np.arange(7), v_JV)
  np.testing.assert_allclose(found_FF, weight_FF, rtol=1e-5)
  assert steps.documents_F.tolist() == [len(np.unique(text.document_N[f_NF[:, i] > 0])) for i in range(7)]
  config = AutomataConfig(n_raised=n_raised, min_steps=1)
  to_FK, best_FK = automata.best_steps(config, steps, lambda feature_J: v_FV[feature_J], used_V)
  table_FF = np.zeros((7, 7))
  for i in range(7):
    table_FF[i, to_FK[i][to_FK[i] >= 0]] = best_FK[i][to_FK[i] >= 0]
  leads_F = (score_FF > 0).any(1)  # a step to a feature from which none leads on is no part of a loop
  np.testing.assert_allclose(table_FF, np.maximum(score_FF, 0) * leads_F[None], atol=1e-6)
  few = int(np.median(n_steps_F))
  to_FK, _ = automata.best_steps(AutomataConfig(n_raised=n_raised, min_steps=few + 1), steps,
                                 lambda feature_J: v_FV[feature_J], used_V)
  assert (to_FK[n_steps_F <= few] == -1).all() and not np.isin(to_FK, np.flatnonzero(n_steps_F <= few)).any()


def planted():
  """A text with stretches of two automata in noise: tokens 0-4 -> 5-9 -> 10-14 -> 0-4, and tokens 15-19 among
  themselves. Features 0, 1, 2 fire on the groups of the first, 3 on those of the second; 4 fires everywhere, and 5 to 9
  at random, 5 on a third of all tokens."""
  rng = np.random.default_rng(1)
  tokens = []
  while len(tokens) < 6000:
    kind, length = rng.integers(0, 4), int(rng.integers(6, 15))
    if kind == 0:
      tokens += [int(rng.integers(5) + 5 * (t % 3)) for t in range(length)]
    elif kind == 1:
      tokens += rng.integers(15, 20, length).tolist()
    else:
      tokens += rng.integers(0, V, length).tolist()
  token_N = np.array(tokens[:6000])
  f_NF = np.zeros((6000, 10))
  for i, group in enumerate((0, 1, 2, 3)):
    f_NF[token_N // 5 == group, i] = 1
  f_NF *= rng.random((6000, 10)) < 0.9
  f_NF[:, 4] = 1
  f_NF[:, 5:] = rng.random((6000, 5)) < [0.33, 0.1, 0.05, 0.02, 0.01]
  f_NF *= rng.uniform(0.5, 2, (6000, 10))
  v_FV = 0.05 * rng.normal(size=(10, V))
  for i, raised in ((0, 1), (1, 2), (2, 0), (3, 3)):
    v_FV[i, 5 * raised:5 * raised + 5] += 1
  return f_NF.astype(np.float32), token_N, v_FV.astype(np.float32)


def test_planted_loops_are_found_and_no_others():
  f_NF, token_N, v_FV = planted()
  found = automata.of_codes(AutomataConfig(min_score=0.2), codes_of(f_NF), text_of(token_N, 100, 500),
                            lambda feature_J: v_FV[feature_J], np.ones(V, bool), [f"<{k}>" for k in range(V)],
                            ("even", "odd"))
  assert [tuple(state.feature for state in loop.states) for loop in found.loops] == [(3,), (0, 1, 2)]
  one, three = found.loops
  assert 0.5 < one.score < 1 and 0.5 < three.score < 1
  assert one.score == one.steps[0].score and three.score == min(step.score for step in three.steps)
  assert set(one.steps[0].tokens[:5]) == {f"<{k}>" for k in range(15, 20)}
  assert [set(step.tokens[:5]) for step in three.steps] == [
      {f"<{k}>" for k in range(first, first + 5)} for first in (5, 10, 0)]
  assert found.first(1) == found.loops and found.first(0) == []
  assert found.figures["loops_1"] == found.figures["loops_3"] == 1 and found.figures["loops_2"] == 0
  assert found.figures["best_3"] == three.score > 3 * found.figures["best_3_shuffled"]
  mass = [f_NF[token_N // 5 == 3, 3][(np.flatnonzero(token_N // 5 == 3) // 500) % 2 == side].sum() for side in (0, 1)]
  assert one.states[0].domain == ("even", "odd")[int(np.argmax(mass))]
  assert one.states[0].share == pytest.approx(max(mass) / sum(mass), rel=1e-4)
  assert re.match(r"0\.\d+  0 \(.*\) --'<.*--> 1 \(.*--> 2 .*--> 0$", str(three))
  json.dumps(found.to_dict())


def test_all_loops_along_the_steps_are_found():
  rng = np.random.default_rng(2)
  score_FF = rng.random((9, 9)) * (rng.random((9, 9)) < 0.7)
  to_FK = np.argsort(-score_FF, axis=1)
  found = automata.loops_among(to_FK, np.take_along_axis(score_FF, to_FK, axis=1), 4, 0.2)
  expected = {}
  for n in range(1, 5):
    for states in itertools.permutations(range(9), n):
      weakest = min(score_FF[states[i], states[(i + 1) % n]] for i in range(n))
      if states[0] == min(states) and weakest >= 0.2:
        expected[states] = weakest
  assert {states: score for score, states in found} == pytest.approx(expected)
  assert [score for score, _ in found] == sorted(expected.values(), reverse=True) and len(expected) > 50


def test_loops_that_shorter_ones_explain_are_left_out():
  """Three features of one kind, 0 to 2, lead to themselves and to each other; 3 and 4 only lead to one another, and 3
  to itself; 5, 6, 7, 8 make a circle, and 5, 6, 7, 9 a weaker one."""
  loops = [(0.6, (0,)), (0.5, (1,)), (0.45, (2,)), (0.4, (0, 1)), (0.4, (0, 1, 2)), (0.35, (3,)), (0.3, (3, 4)),
           (0.25, (5, 6, 7, 8)), (0.2, (5, 6, 7, 9)), (0.1, (2, 3))]
  kept = [states for _, states in automata.telling(loops)]
  assert kept == [(0,), (1,), (2,), (3,), (3, 4), (5, 6, 7, 8)]
  assert automata.telling([(0.4, (0, 1)), (0.3, (0,)), (0.3, (1,))])[0] == (0.4, (0, 1)), "it is stronger than they are"


def test_a_picture_has_every_feature_and_token(tmp_path):
  loops = [Loop(0.5, [State(7, "base64", 0.9)], [Step(0.5, ("<a&b>", "\n"))]),
           Loop(0.25, [State(1, "", 0.0), State(2, "html", 1.0)], [Step(0.3, ("x",)), Step(0.25, ())])]
  drawn_loops.draw_loops(loops, tmp_path / "loops.svg")
  texts = [element.text for element in xml.etree.ElementTree.parse(tmp_path / "loops.svg").iter() if element.text]
  assert {"7", "1", "2", "base64 90%", "html 100%", "“<a&b>” “\\n”", "“x”", "0.50", "0.25"} <= set(texts)


def test_loops_of_a_run(finished, tmp_path, capsys):
  """The command leaves what the library finds."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  settings = {"n_tokens": 4000, "min_score": 0.01, "min_steps": 5}
  stages.automata(RunFolder(workdir), AutomataConfig(**settings))
  printed = capsys.readouterr().out
  record = json.loads((workdir / "automata" / "automata.json").read_text())
  loaded = monojax.load(workdir)
  found = loaded.automata(**settings)
  assert record["loops"] == json.loads(json.dumps(found.to_dict()))["loops"] and record["figures"] == found.figures
  assert found.loops and f"{found.loops[0].score:.3f}" in printed and "shuffled" in printed
  assert (workdir / "automata" / "automata.svg").read_text().count("<circle") == sum(
      len(loop.states) for loop in found.first(10))
  with pytest.raises(InputError, match="n_states=5"):
    loaded.automata(n_states=5)
