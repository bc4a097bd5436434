"""Which contexts of a text a subject is run on, in which order, and which of their tokens are kept.

Letters: B contexts of a batch, T positions of a context, R positions kept of each.
"""

import dataclasses

import numpy as np

from monojax import shuffle
from monojax.config import require


@dataclasses.dataclass(frozen=True)
class Visits:
  """A random order of contexts, as a pure function of the visit's number.

  Attributes:
    n: contexts visited.
    n_contexts: contexts of the text, of which the visited are a random part.
    width: tokens in a context, T.
    per_context: tokens kept of each, R.
    seed: of the order and of the choice of tokens.
  """
  n: int
  n_contexts: int
  width: int
  per_context: int
  seed: int

  @classmethod
  def of(cls, config, tokens, width):
    """Those that a `HarvestConfig` asks for.

    Raises:
      InputError: a context has fewer tokens than are to be kept, or the text is shorter than one.
    """
    per_context = config.tokens_per_context or width
    require(per_context <= width, "activations.tokens_per_context", per_context, f"a context has {width} tokens")
    return cls(tokens.contexts(width, config.n_tokens), tokens.contexts(width), width, per_context, config.seed)

  @property
  def n_rows(self):
    """Activations in one round of all visits."""
    return self.n * self.per_context

  def context(self, visit_B):
    """The contexts, numbered as in the text, of some visits."""
    return shuffle.permute(visit_B, self.n_contexts, self.seed)

  def kept(self, context_B):
    """Which positions of each context are kept, rising: all, or a random choice without replacement, (B, R)."""
    every_BT = np.broadcast_to(np.arange(self.width), (len(context_B), self.width))
    if self.per_context == self.width:
      return every_BT
    rank_BT = shuffle.permute(context_B[:, None] * self.width + every_BT, self.n_contexts * self.width, self.seed, 1)
    return np.sort(np.argsort(rank_BT, axis=1)[:, :self.per_context], axis=1)
