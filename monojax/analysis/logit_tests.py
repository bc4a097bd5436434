"""The logits test of explanations: do the words for what a feature fires on tell which tokens it makes likelier?

For each feature 100 tokens are put up, 50 of those that it raises most (places 10 to 59 of the logit weights, since an
explainer may have seen the first ten) and 50 random others. Who judges an explanation says of each whether it is
plausible as the next token after the feature has fired. By chance half of the answers are right.

Letters: J directions, V vocabulary, O width written, K tokens that are put up.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from monojax.analysis.explanations import Explanation
from monojax.analysis.logits import path_of, used_tokens
from monojax.analysis.matched_effects import logits_of
from monojax.sae.dictionary import SAE
from monojax.subjects.subject import LoadedSubject
from monojax.text.tokens import Tokens

FIRST, N_RAISED = 10, 50
_LEAST_COUNT = 10    # tokens that are rarer in the text take no part
_DIRECTIONS = 64     # at a time


@dataclasses.dataclass(frozen=True)
class PutUp:
  """The tokens that are put up for one feature, shuffled.

  Attributes:
    token_K: their ids.
    raised_K: bool, which of them the feature raises.
  """
  token_K: np.ndarray
  raised_K: np.ndarray


class Judge(typing.Protocol):
  """Says which tokens are plausible after a feature has fired, by its explanation alone."""

  def plausible(self, explanation: Explanation, token_K: np.ndarray, strings: Sequence[str]) -> np.ndarray:
    """Bool for each of some token ids, whose strings are given as well.

    Raises:
      Unreadable: it gives no answer that can be used.
    """
    ...


def put_up(direction_JO: np.ndarray, numbers: Sequence[int], subject: LoadedSubject, sae: SAE, tokens: Tokens,
           seed: int) -> Mapping[int, PutUp]:
  """The tokens for some directions at the sites that a dictionary writes; {} where these reach no logits directly.

  Args:
    direction_JO: features' directions, or those of controls.
    numbers: what each is called in the result.
    subject, sae: the models.
    tokens: the text that tells which tokens are in use.
    seed: of the random tokens.
  """
  found = path_of(subject, sae)
  used_V = used_tokens(tokens, subject.model.n_vocab, _LEAST_COUNT)
  if found is None or used_V.sum() < FIRST + 2 * N_RAISED:
    return {}
  path, columns = found
  of = logits_of(direction_JO[:, columns], path, used_V)
  used = np.flatnonzero(used_V)
  made = {}
  for first in range(0, len(direction_JO), _DIRECTIONS):
    part = np.arange(first, min(first + _DIRECTIONS, len(direction_JO)))
    for j, logit_V in zip(part.tolist(), of(part), strict=True):
      if not direction_JO[j, columns].any():  # it is of another site
        continue
      rng = np.random.default_rng([seed, 7, numbers[j]])
      falling = used[np.argsort(-logit_V[used], kind="stable")]
      raised = falling[FIRST:FIRST + N_RAISED]
      others = rng.choice(falling[FIRST + N_RAISED:], N_RAISED, replace=False)
      order = rng.permutation(2 * N_RAISED)
      made[numbers[j]] = PutUp(np.concatenate([raised, others])[order], (np.arange(2 * N_RAISED) < N_RAISED)[order])
  return made


def share_right(judge: Judge, explanation: Explanation, tokens: PutUp, token_strings: Sequence[str]) -> float:
  """The share of the tokens that are put up of which the judge is right."""
  plausible_K = judge.plausible(explanation, tokens.token_K, [token_strings[i] for i in tokens.token_K])
  return float(np.mean(np.asarray(plausible_K, bool) == tokens.raised_K))
