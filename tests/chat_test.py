"""Explanations by a language model: the protocol against a stub on this machine, and what is said of bad servers."""

import json
import socket

import chat_stub
import numpy as np
import pytest

from monojax.analysis import chat, explanations, sampling
from monojax.analysis.chat import ChatExplainer, ChatSimulator, Endpoint
from monojax.analysis.codes import Codes
from monojax.analysis.config import ExplainConfig
from monojax.analysis.explanations import Explanation, Unreadable
from monojax.analysis.sampling import Examples, Sampler
from monojax.analysis.text import AnalysedText
from monojax.config import InputError

STRINGS = [" the", "\n", " of", '"', " Paris", "\tx", "é"]
N, T = 12_000, 24


@pytest.fixture
def stub():
  return chat_stub.Server(chat_stub.model)


@pytest.fixture
def url(stub):
  with chat_stub.serving(stub) as url:
    yield url


@pytest.fixture(scope="module")
def planted():
  """A text, and a feature that fires on the token 3, more strongly on some, beside one that fires at random."""
  rng = np.random.default_rng(0)
  token_N = rng.integers(0, len(STRINGS), N).astype(np.int32)
  context_N = (np.arange(N) // T).astype(np.int32)
  features = [(token_N == 3) * (1 + 0.1 * rng.random(N)), (rng.random(N) < 0.05) * rng.random(N)]
  rows = [np.flatnonzero(f_N) for f_N in features]
  codes = Codes(N, np.cumsum([0, *map(len, rows)]), np.concatenate(rows).astype(np.int32),
                np.concatenate([f_N[row_P] for f_N, row_P in zip(features, rows, strict=True)]).astype(np.float32))
  text = AnalysedText(token_N, context_N, context_N.astype(np.int64), np.zeros(N, np.int32))
  return codes, Sampler(text, sampling.halves(text, 0), STRINGS)


def labelled(url, planted, n_threads=1, key=""):
  endpoint = Endpoint(url, "stub", key)
  return explanations.label(*planted, ChatExplainer(endpoint), ChatSimulator(endpoint), [0, 1], seed=0,
                            n_threads=n_threads)


def test_a_model_explains_and_predicts_a_planted_feature(url, stub, planted):
  found = labelled(url, planted)
  assert found[0].text == 'the token "\\""' and found[0].score > 0.8 and found[0].pearson > 0.95
  assert abs(found[1].score) < 0.3
  assert str(labelled(url, planted, n_threads=3)) == str(found)
  explaining, simulating = stub.requests[0][1], stub.requests[1][1]
  assert explaining["model"] == "stub" and explaining["temperature"] == 0
  shown = [line.split("\t") for line in explaining["messages"][1]["content"].split("\n") if "\t" in line]
  assert {step for _, step in shown} <= set("0123456789") and "9" in {step for _, step in shown}
  assert {json.loads(token) for token, _ in shown} == set(STRINGS)
  # The simulator sees the explanation and tokens, and no activation.
  first, _, *passages = simulating["messages"][1]["content"].split("\n")
  assert first == 'The unit fires on: the token "\\""' and 30 <= len(passages) <= 60
  assert all(isinstance(json.loads(passage.partition(": ")[2])[0], str) for passage in passages)


def test_activations_become_ten_steps():
  steps = chat.quantised(np.array([0, 0.01, 0.5, 5, 9, 9.9]), 9.0)
  assert steps.tolist() == [0, 1, 1, 5, 9, 9]


def examples(n_tokens=3):
  ids = np.array([[0, 1, 2][:n_tokens] + [-1] * (3 - n_tokens), [3, 4, 5]], np.int32)
  return Examples(np.where(ids >= 0, ids, -1).astype(np.int64), ids, (ids == 4).astype(np.float32), np.ones(2), STRINGS)


@pytest.mark.parametrize("answer", [
    "no JSON", '{"1": [1, 2], "2": [1, 2, 3]}', '{"1": [0, 0, 0]}', '{"1": [0, 0, 10], "2": [0, 0, 0]}',
    '{"1": [0, 0, true], "2": [0, 0, 0]}', '{"1": [0, 0, "3"], "2": [0, 0, 0]}', "[[0, 0, 0], [0, 0, 0]]"])
def test_predictions_that_do_not_fit_are_not_used(url, stub, answer):
  stub.answer = lambda *_: answer
  with pytest.raises(Unreadable):
    ChatSimulator(Endpoint(url, "stub")).simulate(Explanation("x"), examples().hidden())


@pytest.mark.parametrize("answer", ["no JSON", '{"explanation": 3}', '{"explanation": " "}', '{"label": "x"}',
                                    json.dumps({"explanation": "x" * 500})])
def test_explanations_that_leak_or_are_missing_are_not_used(url, stub, answer, planted):
  stub.answer = lambda *_: answer
  with pytest.raises(Unreadable):
    ChatExplainer(Endpoint(url, "stub")).explain(0, examples())
  found = labelled(url, planted)
  assert [one.unreadable for one in found] == [True, True] and found[0].text == "" and np.isnan(found[0].score)
  assert explanations.summary(found)["unreadable"] == 2


@pytest.mark.parametrize("answer, found", [
    ('{"explanation": "empty braces {} in code"}', "empty braces {} in code"),
    ('I first thought {"explanation": "x"}, but: ```json\n{"explanation": "the set {1: {2: 3}}"}\n``` }',
     "the set {1: {2: 3}}"),
    ('{ not JSON {"explanation": "{ }"}', "{ }")])
def test_an_explanation_may_have_braces(url, stub, answer, found):
  stub.answer = lambda *_: answer
  assert ChatExplainer(Endpoint(url, "stub")).explain(0, examples()).text == found


def test_a_model_judges_tokens(url, stub):
  judge, asked = chat.ChatJudge(Endpoint(url, "stub")), (Explanation("x"), np.array([3, 4, 0]), ['"', " Paris", " the"])
  stub.answer = lambda *_: '{"plausible": [1, 3]}'
  assert judge.plausible(*asked).tolist() == [True, False, True]
  assert stub.requests[0][1]["messages"][1]["content"].split("\n")[2:] == ['1: "\\""', '2: " Paris"', '3: " the"']
  for answer in ('{"plausible": [0]}', '{"plausible": [4]}', '{"plausible": "1"}', "[1]", '{"plausible": ["1"]}'):
    stub.answer = lambda *_, answer=answer: answer
    with pytest.raises(Unreadable):
      judge.plausible(*asked)


def test_windows_that_are_cut_off_keep_their_places(url, stub):
  stub.answer = lambda *_: '{"1": [4, 5], "2": [0, 9, 0.5]}'
  found = ChatSimulator(Endpoint(url, "stub")).simulate(Explanation("x"), examples(2).hidden())
  assert found.tolist() == [[4, 5, 0], [0, 9, 0.5]]


def test_the_key_comes_from_the_environment(url, stub, monkeypatch):
  stub.key = "secret"
  config = ExplainConfig(url=url, model="stub", key_variable="MONOJAX_TEST_KEY")
  with pytest.raises(InputError, match="--key_variable='MONOJAX_TEST_KEY': there is no such environment variable"):
    Endpoint.of(config)
  monkeypatch.setenv("MONOJAX_TEST_KEY", "wrong")
  with pytest.raises(InputError, match="refuses the key, status 401 .*no such key.*--key_variable") as refused:
    Endpoint.of(config).ask("a", "ready")
  monkeypatch.setenv("MONOJAX_TEST_KEY", "secret")
  endpoint = Endpoint.of(config)
  assert endpoint.ask("a", "ready") == '{"ready": true}' and "secret" not in repr(endpoint)
  assert "wrong" not in str(refused.value) and "secret" not in json.dumps([body for _, body in stub.requests])


def test_what_is_wrong_with_a_server_is_said_in_one_line(url, stub, monkeypatch):
  monkeypatch.setattr(chat, "_WAIT_S", 0.01)
  ask = lambda url=url, timeout_s=5.0: Endpoint(url, "stub", "", timeout_s).ask("a", "ready")
  with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    free = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
  for status, body, call, message in (
      (None, b"", lambda: ask(free), "cannot be reached"),
      (None, b"", lambda: ask(url.removesuffix("/v1")), "answers with status 404"),
      (200, b"<html>\nhello</html>", ask, "something else than a chat completion .<html> hello</html>."),
      (200, b'{"choices": []}', ask, "something else than a chat completion"),
      (200, b'{"choices": [{"message": {"content": null}}]}', ask, "answers without text"),
      (403, b"go away", ask, "refuses the key, status 403 .go away."),
      (400, b'{"error": "no\nmodel"}', ask, "answers with status 400 .*no model"),
      (503, b"busy", ask, "answers with status 503")):
    stub.status, stub.body = status, body
    with pytest.raises(InputError, match=message) as error:
      call()
    assert "\n" not in str(error.value) and str(error.value).startswith("--url='http://127.0.0.1")
  stub.status, stub.sleep_s = None, 1.0
  with pytest.raises(InputError, match="does not answer within 0.2 seconds: give it longer with --timeout_s"):
    ask(timeout_s=0.2)


def test_a_busy_server_is_asked_again_and_an_error_ends_all(url, stub, planted, monkeypatch):
  monkeypatch.setattr(chat, "_WAIT_S", 0.01)
  stub.status, stub.n_failures = 429, 2
  assert Endpoint(url, "stub").ask("a", "ready") == '{"ready": true}' and len(stub.requests) == 3
  stub.status, stub.n_failures = 401, None
  with pytest.raises(InputError, match="refuses the key"):
    labelled(url, planted, n_threads=2)


@pytest.mark.parametrize("given, message", [
    ({"url": "localhost:8000", "model": "x"}, "--url='localhost:8000': must begin with http"),
    ({"url": "http://localhost"}, "--model='': say which"),
    ({"model": "x"}, "--model='x': is of a server: give --url"),
    ({"timeout_s": 0.0}, "timeout_s=0.0: must be above 0"),
])
def test_settings_that_contradict_each_other_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    ExplainConfig(**given)
