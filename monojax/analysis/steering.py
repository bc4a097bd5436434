"""What changing features does to what a subject writes: continuations side by side, and the next token's distribution.

Letters: V tokens of the vocabulary.
"""

import dataclasses
import typing

import jax
import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.analysis import interventions
from monojax.analysis.interventions import Change
from monojax.config import require
from monojax.sae.dictionary import SAE
from monojax.subjects.sample import sample
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokenizer import Tokenizer


class Moved(typing.NamedTuple):
  """A token, and its probability right after the prompt: in the subject as it is, and with features changed."""
  token: str
  before: float
  after: float


@dataclasses.dataclass(frozen=True)
class Steered:
  """A prompt continued by a subject as it is and with some of its features changed.

  Attributes:
    prompt: the text.
    changes: what was done to features.
    plain: continuations of the subject as it is, without the prompt.
    changed: those with features changed. Numbers i of the two lists were drawn with the same random numbers.
    raised: the tokens whose probability right after the prompt rises most, the largest rise first.
    lowered: those whose probability falls most.
    kl: KL(as it is || changed) of the distribution of the token after the prompt, in nats, at temperature 1. It is 0 if
      features are changed only at positions after the prompt.
  """
  prompt: str
  changes: tuple[Change, ...]
  plain: list[str]
  changed: list[str]
  raised: list[Moved]
  lowered: list[Moved]
  kl: float

  def to_dict(self) -> dict[str, typing.Any]:
    """All of it, ready for JSON."""
    return {**dataclasses.asdict(self), "raised": [moved._asdict() for moved in self.raised],
            "lowered": [moved._asdict() for moved in self.lowered]}


class Drawn(typing.NamedTuple):
  """How continuations are drawn: how many, of how many tokens, from which seed on, and at which temperature."""
  n: int = 4
  n_tokens: int = 64
  seed: int = 0
  temperature: float = 0.8


def compare(subject: LoadedSubject, sae: SAE, tokenizer: Tokenizer, prompt: str, ids: list[int],
            changes: list[Change], drawn: Drawn, kept: Kept = EVERY, n_listed: int = 10) -> Steered:
  """Continues a prompt with and without changes of features.

  Args:
    subject, sae: the subject and its dictionary.
    tokenizer: which turns tokens to text.
    prompt: the text that is continued.
    ids: its token ids, with what stands in front of it.
    changes: what is done to features; all values are given.
    drawn: how continuations are drawn.
    kept: the positions that count: features are changed at these alone.
    n_listed: how many tokens are listed whose probability moves.

  Raises:
    InputError: the subject predicts no tokens; the prompt fills its context; or a change begins behind the context.
  """
  require(subject.model.output == "logits", "subject", "an encoder", "predicts no tokens, and so cannot be steered")
  require(len(ids) < subject.n_context, "prompt", prompt,
          f"has at least the {subject.n_context} tokens that fit into the subject's context: give a shorter one")
  for change in changes:
    require(change.span[0] < subject.n_context, "positions", change.positions,
            f"begin behind the subject's context of {subject.n_context} tokens")
  logits = interventions.next_token_logits(subject, sae, ids, changes, kept)
  plain, changed = [], []
  for seed in range(drawn.seed, drawn.seed + drawn.n):
    as_it_is = sample(subject, ids, drawn.n_tokens, jax.random.key(seed), drawn.temperature)
    steered = interventions.steer(subject, sae, ids, changes, drawn.n_tokens, seed, drawn.temperature, kept)
    plain.append(tokenizer.decode(as_it_is[len(ids):]))
    changed.append(tokenizer.decode(steered[len(ids):]))
  raised, lowered, kl = moved_tokens(*logits, tokenizer.token_strings(), n_listed)
  return Steered(prompt, tuple(changes), plain, changed, raised, lowered, kl)


def moved_tokens(clean_V: np.ndarray, changed_V: np.ndarray, token_strings: list[str],
                 n_listed: int) -> tuple[list[Moved], list[Moved], float]:
  """(tokens whose probability rises most, those whose falls most, KL(clean || changed)) of two sets of logits.

  Args:
    clean_V, changed_V: logits. There may be more of them than tokens.
    token_strings: the tokens.
    n_listed: how many tokens at most; only those that rise, or fall, are listed.
  """
  log_p_V, log_q_V = (log_softmax(logits_V) for logits_V in (clean_V, changed_V))
  p_V, q_V = np.exp(log_p_V), np.exp(log_q_V)
  change_V = (q_V - p_V)[:len(token_strings)]
  order_V = np.argsort(-change_V, kind="stable")
  listed = lambda ids: [Moved(token_strings[i], float(p_V[i]), float(q_V[i])) for i in ids]
  raised = [i for i in order_V[:n_listed].tolist() if change_V[i] > 0]
  lowered = [i for i in order_V[::-1][:n_listed].tolist() if change_V[i] < 0]
  return listed(raised), listed(lowered), float((p_V * (log_p_V - log_q_V)).sum())


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
  """Logarithms of the probabilities with these logits, float64."""
  shifted_V = np.asarray(logits_V, np.float64)
  shifted_V = shifted_V - shifted_V.max()
  return shifted_V - np.log(np.exp(shifted_V).sum())
