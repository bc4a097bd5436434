"""Explanations by a language model behind any endpoint that speaks OpenAI's protocol of chats.

The protocol of the explanations is that of Towards Monosemanticity: the model sees examples with activations in ten
steps, 0 to 9, and says what the feature fires on. Then it sees only these words and other text, and gives a number from
0 to 9 for each token.

Letters: E examples, W tokens of an example's window.
"""

import dataclasses
import http.client
import json
import os
import time
import typing
import urllib.error
import urllib.request
from collections.abc import Sequence

import numpy as np

from monojax.analysis.config import ExplainConfig
from monojax.analysis.explanations import Explanation, Unreadable
from monojax.analysis.sampling import SHOWN, Amounts, Examples
from monojax.config import InputError, require

_STEPS = 9               # activations are told as whole numbers from 0 to this
_BUSY = (429, 500, 502, 503, 504)
_TRIES, _WAIT_S = 3, 1.0
_LONGEST_WORDS = 400     # characters of an explanation; more is reasoning that was not asked for

_EXPLAIN = """You study a unit of a neural network that reads text. You see passages, each as lines of a token and how
strongly the unit fires there, from 0 (not at all) to 9. Say in one short phrase what the unit fires on: a pattern, not
a list of tokens. Answer with JSON alone: {"explanation": "..."}"""
_SIMULATE = """You see what a unit of a neural network that reads text fires on, and numbered passages, each as a list
of tokens. Predict how strongly the unit fires on each token, as a whole number from 0 (not at all) to 9. On most tokens
units do not fire. Answer with JSON alone, an object with one list for each passage, by its number, that has as many
numbers as the passage has tokens: {"1": [0, 0, 7], "2": [0, 3]}"""

_JUDGE = """You see what a unit of a neural network that reads text fires on. When it fires, the unit makes some tokens
more likely to come next. You see numbered tokens. Say which are plausible as the next token after the unit has fired;
about half are. Answer with JSON alone, the numbers of these: {"plausible": [1, 4]}"""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A server and the model that is asked there.

  Attributes:
    url: its address, up to and including the version, such as http://localhost:8000/v1.
    model: the model's name.
    key: what the server asks for, "" if nothing.
    timeout_s: seconds that an answer may take.
  """
  url: str
  model: str
  key: str = dataclasses.field(default="", repr=False)
  timeout_s: float = 120.0

  @classmethod
  def of(cls, config: ExplainConfig) -> "Endpoint":
    """The endpoint that the settings name.

    Raises:
      InputError: the environment variable that is to hold the key is not set.
    """
    key = os.environ.get(config.key_variable, "") if config.key_variable else ""
    require(key or not config.key_variable, "--key_variable", config.key_variable,
            "there is no such environment variable, or it is empty: put the server's key there")
    return cls(config.url.rstrip("/"), config.model, key, config.timeout_s)

  def ask(self, system: str, user: str) -> str:
    """The model's answer to a message, at temperature 0.

    Raises:
      InputError: the server cannot be reached, refuses the key or the request, or answers with something else than a
        chat completion.
    """
    body = json.dumps({"model": self.model, "temperature": 0, "messages": [
        {"role": "system", "content": system}, {"role": "user", "content": user}]}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
    request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
    content = self._sent(request)
    try:
      answer = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
      raise self._wrong(f"answers with something else than a chat completion ({_short(content)}): give the address up "
                        "to and including the version, such as http://localhost:8000/v1") from error
    if not isinstance(answer, str):
      raise self._wrong(f"answers without text ({_short(content)}): ask another model")
    return answer

  def _sent(self, request: urllib.request.Request) -> bytes:
    """The content of the server's answer; a busy server is asked again."""
    for attempt in range(_TRIES):
      try:
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
          return response.read()
      except urllib.error.HTTPError as error:
        said = _short(error.read())
        if error.code in (401, 403):
          raise self._wrong(f"refuses the key, status {error.code} ({said}): name the environment variable that holds "
                            "the right one with --key_variable") from error
        if error.code not in _BUSY or attempt == _TRIES - 1:
          raise self._wrong(f"answers with status {error.code} ({said})") from error
      except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
          raise self._wrong(f"does not answer within {self.timeout_s:g} seconds: give it longer with "
                            "--timeout_s") from error
        raise self._wrong(f"cannot be reached ({reason}): start the server, or give another address") from error
      time.sleep(_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")

  def _wrong(self, what: str) -> InputError:
    return InputError(f"--url={self.url!r}: {what}")


def _short(content: bytes) -> str:
  """The beginning of what a server said, in one line."""
  text = " ".join(content.decode(errors="replace").split())
  return f"{text[:200]}…" if len(text) > 200 else text or "nothing"


@dataclasses.dataclass(frozen=True)
class ChatExplainer:
  """The explainer that asks a model, which sees as many examples as in the paper."""
  endpoint: Endpoint
  amounts: Amounts = SHOWN

  def explain(self, feature: int, examples: Examples) -> Explanation:
    """The model's phrase for a feature; see `explanations.Explainer`."""
    assert examples.act_EW is not None
    largest = max(float(examples.act_EW.max()), 1e-30)
    order = np.argsort(-examples.act_EW.max(axis=1), kind="stable")
    strings = examples.strings()
    passages = []
    for number, e in enumerate(order.tolist(), 1):
      acts = examples.act_EW[e][examples.token_EW[e] >= 0]
      lines = [f"{json.dumps(token, ensure_ascii=False)}\t{step}"
               for token, step in zip(strings[e], quantised(acts, largest).tolist(), strict=True)]
      passages.append("\n".join([f"Passage {number}", *lines]))
    answer = _object(self.endpoint.ask(_EXPLAIN, "\n\n".join(passages))).get("explanation")
    if not isinstance(answer, str) or not answer.strip() or len(answer) > _LONGEST_WORDS:
      raise Unreadable
    return Explanation(" ".join(answer.split()))


@dataclasses.dataclass(frozen=True)
class ChatSimulator:
  """The simulator that asks a model."""
  endpoint: Endpoint

  def simulate(self, explanation: Explanation, examples: Examples) -> np.ndarray:
    """The model's numbers for each token; see `explanations.Simulator`."""
    passages = [f"{number}: {json.dumps(tokens, ensure_ascii=False)}"
                for number, tokens in enumerate(examples.strings(), 1)]
    answer = _object(self.endpoint.ask(_SIMULATE, "\n".join([f"The unit fires on: {explanation.text}", "", *passages])))
    predicted_EW = np.zeros(examples.token_EW.shape, np.float32)
    for e, inside_W in enumerate(examples.token_EW >= 0):
      steps = answer.get(str(e + 1))
      if not isinstance(steps, list) or len(steps) != inside_W.sum() or not all(
          isinstance(step, int | float) and not isinstance(step, bool) and 0 <= step <= _STEPS for step in steps):
        raise Unreadable
      predicted_EW[e, inside_W] = steps
    return predicted_EW


@dataclasses.dataclass(frozen=True)
class ChatJudge:
  """The judge of the logits test that asks a model."""
  endpoint: Endpoint

  def plausible(self, explanation: Explanation, token_K: np.ndarray, strings: Sequence[str]) -> np.ndarray:
    """The model's choice among the tokens; see `logit_tests.Judge`."""
    listed = [f"{number}: {json.dumps(token, ensure_ascii=False)}" for number, token in enumerate(strings, 1)]
    answer = _object(self.endpoint.ask(_JUDGE, "\n".join([f"The unit fires on: {explanation.text}", "", *listed])))
    chosen = answer.get("plausible")
    if not isinstance(chosen, list) or not all(isinstance(number, int) and 1 <= number <= len(strings)
                                               for number in chosen):
      raise Unreadable
    return np.isin(np.arange(1, len(strings) + 1), chosen)


def quantised(acts_W: np.ndarray, largest: float) -> np.ndarray:
  """Activations as whole numbers: 0 where the feature does not fire, otherwise 1 to 9, which is the largest."""
  return np.where(acts_W > 0, np.clip(np.ceil(acts_W / largest * _STEPS), 1, _STEPS), 0).astype(int)


def _object(answer: str) -> dict[str, typing.Any]:
  """The JSON object that an answer is, or the last one in it, as behind a model's thoughts or in a block of code.

  Raises:
    Unreadable: there is none.
  """
  decoder, last, start = json.JSONDecoder(), None, answer.find("{")
  while start >= 0:
    try:
      last, end = decoder.raw_decode(answer, start)
    except ValueError:
      end = start + 1
    start = answer.find("{", end)
  if last is None:
    raise Unreadable
  return last
