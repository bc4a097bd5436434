"""Which contexts of a text a subject is run on, in which order, and which tokens of each context are kept.

A *context* is a piece of text of as many tokens as the subject is given to read at a time: context 0 is the first T
tokens of the text, context 1 the next T, and so on. To *visit* a context is to run the subject on it. Contexts are
visited in a random order that is a pure function of the seed, so that nothing has to be stored to go on in the middle.

Letters: B contexts of a batch, T positions of a context, R positions kept of each.
"""

import dataclasses

import numpy as np

from monojax import shuffle
from monojax.activations.config import HarvestConfig
from monojax.config import require
from monojax.text.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Visits:
  """A random order of contexts, in which the context of any visit is found from the visit's number alone.

  For instance, with 1,000 contexts in the text and n = 100, visits 0 to 99 are to a random hundred of them.

  Attributes:
    n: how many contexts are visited.
    n_contexts: how many contexts the text has; those visited are a random part of them.
    width: tokens in a context, T.
    per_context: tokens kept of each context, R.
    seed: seed of the order and of the choice of tokens.
  """
  n: int
  n_contexts: int
  width: int
  per_context: int
  seed: int

  @classmethod
  def of(cls, config: HarvestConfig, tokens: Tokens, width: int) -> "Visits":
    """The visits that a configuration asks for, to contexts of `width` tokens.

    Raises:
      InputError: a context has fewer tokens than are to be kept, or the text is shorter than one.
    """
    per_context = config.tokens_per_context or width
    require(per_context <= width, "activations.tokens_per_context", per_context, f"a context has {width} tokens")
    return cls(tokens.contexts(width, config.n_tokens), tokens.contexts(width), width, per_context, config.seed)

  @property
  def n_rows(self) -> int:
    """How many activations the visits give, one for each token that is kept."""
    return self.n * self.per_context

  def context(self, visit_B: np.ndarray) -> np.ndarray:
    """The number, in the text, of the context that each visit goes to."""
    return shuffle.permute(visit_B, self.n_contexts, self.seed)

  def kept(self, context_B: np.ndarray) -> np.ndarray:
    """(B, R) positions that are kept of each context, rising: all of them, or a random choice without replacement."""
    every_BT = np.broadcast_to(np.arange(self.width), (len(context_B), self.width))
    if self.per_context == self.width:
      return every_BT
    rank_BT = shuffle.permute(context_B[:, None] * self.width + every_BT, self.n_contexts * self.width, self.seed, 1)
    return np.sort(np.argsort(rank_BT, axis=1)[:, :self.per_context], axis=1)
