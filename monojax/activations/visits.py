"""Which contexts of a text a subject is run on, in which order, and which tokens of each context are kept.

A *context* is a piece of text of as many tokens as the subject is given to read at a time (`monojax.text.tokens`):
context 0 is the first T tokens of the text, context 1 the next T, and so on. To *visit* a context is to run the subject
on it. Contexts are visited in a random order that is a pure function of the seed, so that nothing has to be stored to
go on in the middle.

Letters: B contexts of a batch, C contexts of the text, T positions of a context, R positions kept of each, P places of
a row: its own position, and that of the earlier token whose activations are kept beside it, if any are.
"""

import dataclasses

import numpy as np

from monojax import shuffle
from monojax.activations.config import EARLIER, HarvestConfig
from monojax.activations.kept import Kept
from monojax.config import require
from monojax.text.tokens import Tokens

_CHUNK_CONTEXTS = 65_536  # whose tokens are looked at together
_MAY_MISS = 0.05  # the share of contexts that may have too few tokens that count, where none asks for a number of them


@dataclasses.dataclass(frozen=True)
class Visits:
  """A random order of contexts, in which the context of any visit is found from the visit's number alone.

  For instance, with 1,000 contexts in the text and n = 100, visits 0 to 99 are to a random hundred of them.

  Attributes:
    n: how many contexts are visited.
    n_contexts: how many contexts the text has of which enough tokens count; those visited are a random part of them.
    width: tokens in a context, T.
    per_context: tokens kept of each context, R.
    seed: seed of the order and of the choice of tokens.
    counts: which positions count.
    earlier: which earlier token is kept beside each, "previous" or "random"; "" for none. Positions without one are not
      kept.
    tokens: the text.
    context_C: the numbers of the `n_contexts` contexts; None where that is all contexts of the text.
  """
  n: int
  n_contexts: int
  width: int
  per_context: int
  seed: int
  counts: Kept
  earlier: str
  tokens: Tokens = dataclasses.field(repr=False, compare=False)
  context_C: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

  @classmethod
  def of(cls, config: HarvestConfig, tokens: Tokens, width: int) -> "Visits":
    """The visits that a configuration asks for, to contexts of `width` tokens.

    Where special tokens do not count, contexts differ in how many of their tokens do. As many are kept of each as is
    asked for, and contexts that have fewer are left out. If nothing is asked for, it is the number that all but a
    twentieth of the contexts reach.

    Raises:
      InputError: a context has fewer tokens that count than are to be kept, or the text is shorter than one.
    """
    counts, n_contexts = Kept.of(config, tokens.prefix, tokens.special_ids), tokens.contexts(width)
    earlier = config.earlier if any(site.endswith(EARLIER) for site in config.sites) else ""
    available = width - counts.first_position - bool(earlier)
    require(available > 0, "activations.first_position", counts.first_position, f"a context has {width} tokens")
    per_context, context_C = config.tokens_per_context or available, None
    behind = f", of which {available} count" if available < width else ""
    behind += " and have an earlier token" if earlier else ""
    require(per_context <= available, "activations.tokens_per_context", per_context,
            f"a context has {width} tokens{behind}")
    if counts.special_ids:
      n_counting_C = _counting(tokens, n_contexts, width, counts, earlier)
      per_context = config.tokens_per_context or int(np.quantile(n_counting_C, _MAY_MISS, method="lower"))
      context_C = np.flatnonzero(n_counting_C >= per_context)
      require(per_context > 0 and len(context_C), "activations.tokens_per_context", config.tokens_per_context,
              f"contexts have {n_counting_C.min()} to {n_counting_C.max()} tokens that are not special")
      n_contexts = len(context_C)
    n_visits = min(n_contexts, tokens.contexts(width, config.n_tokens))
    return cls(n_visits, n_contexts, width, per_context, config.seed, counts, earlier, tokens, context_C)

  @property
  def left_out(self) -> str:
    """A sentence that says which contexts are never visited; empty if all may be."""
    if self.context_C is None or len(self.context_C) == (n_all := self.tokens.contexts(self.width)):
      return ""
    return (f"activations: {n_all - len(self.context_C):,} of {n_all:,} contexts are left out, since fewer than "
            f"{self.per_context} of their tokens count (activations.skip_special, activations.tokens_per_context)")

  @property
  def n_rows(self) -> int:
    """How many activations the visits give, one for each token that is kept."""
    return self.n * self.per_context

  def context(self, visit_B: np.ndarray) -> np.ndarray:
    """The number, in the text, of the context that each visit goes to."""
    chosen_B = shuffle.permute(visit_B, self.n_contexts, self.seed)
    return chosen_B if self.context_C is None else self.context_C[chosen_B]

  def kept(self, context_B: np.ndarray) -> np.ndarray:
    """(B, R) positions that are kept of each context, rising: all that count, or a random choice of these."""
    every_BT = np.broadcast_to(np.arange(self.width), (len(context_B), self.width))
    first = self.counts.first_position + bool(self.earlier)
    if self.per_context == self.width - first:
      return every_BT[:, first:]
    n_contexts = self.tokens.contexts(self.width)
    rank_BT = shuffle.permute(context_B[:, None] * self.width + every_BT, n_contexts * self.width, self.seed, 1)
    if self.earlier or not self.counts.all:
      keepable_BT = _keepable(self.counts.mask(self.tokens.context(context_B, self.width)), self.earlier)
      rank_BT = np.where(keepable_BT, rank_BT, np.iinfo(np.int64).max)
    return np.sort(np.argsort(rank_BT, axis=1)[:, :self.per_context], axis=1)

  def places(self, context_B: np.ndarray) -> np.ndarray:
    """(B, R, P) int32: the positions that are kept of each context, each with that of its earlier token, if any."""
    kept_BR = self.kept(context_B)
    if not self.earlier:
      return kept_BR[..., None].astype(np.int32)
    if self.earlier == "previous":
      return np.stack([kept_BR, kept_BR - 1], axis=-1).astype(np.int32)
    # Of the n positions that count before a row's own, one with a random rank below n.
    counts_BT = self.counts.mask(self.tokens.context(context_B, self.width))
    n_before_BR = np.take_along_axis(np.cumsum(counts_BT, axis=1) - counts_BT, kept_BR, axis=1)
    size = self.tokens.contexts(self.width) * self.width
    drawn_BR = shuffle.permute(context_B[:, None] * self.width + kept_BR, size, self.seed, 6)
    rank_BR = (drawn_BR / size * n_before_BR).astype(np.int64)
    counting_BT = np.argsort(~counts_BT, axis=1, kind="stable")  # the positions that count come first, rising
    return np.stack([kept_BR, np.take_along_axis(counting_BT, rank_BR, axis=1)], axis=-1).astype(np.int32)

  def positions(self, context_B: np.ndarray) -> np.ndarray:
    """(B, R) int64: where in the text the tokens that are kept of each context are."""
    return np.take_along_axis(self.tokens.positions(context_B, self.width), self.kept(context_B), axis=1)


def _keepable(counts_BT: np.ndarray, earlier: str) -> np.ndarray:
  """Of positions that count, those that have the earlier token that is to be kept beside them, (B, T) bool."""
  if earlier == "previous":
    return counts_BT & np.pad(counts_BT, ((0, 0), (1, 0)))[:, :-1]
  return counts_BT & (np.cumsum(counts_BT, axis=1) > 1) if earlier else counts_BT


def _counting(tokens: Tokens, n_contexts: int, width: int, counts: Kept, earlier: str) -> np.ndarray:
  """How many tokens of each context of a text can be kept, (C,)."""
  chunks = np.array_split(np.arange(n_contexts), -(-n_contexts // _CHUNK_CONTEXTS))
  return np.concatenate([_keepable(counts.mask(tokens.context(chunk_B, width)), earlier).sum(1) for chunk_B in chunks])
