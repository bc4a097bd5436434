"""The text that features are measured on: for each row of activations the token it was taken at, and where that is.

Letters: N rows, B contexts of a batch, T positions of a context, C contexts.
"""

import dataclasses
import functools
import typing

import numpy as np

from monojax.activations.kept import EVERY, Kept
from monojax.text.tokens import Tokens

UNKNOWN = -1  # a token, document or domain that is not known


@dataclasses.dataclass(frozen=True)
class AnalysedText:
  """One row a token. Rows of one context are neighbours, in the order of the text.

  Attributes:
    token_N: int32 token ids.
    context_N: int32 number of the context that each row is of: what the subject had read before a token is within it.
    document_N: int64 number of the document.
    domain_N: int32 index of the document's domain; `UNKNOWN` on rows that do not count.
    counts_N: whether each row counts (see `monojax.activations.kept`); None where all do. No feature fires on the
      others, which are there to be read beside the rows around them.
    position_N: int64 position of each token in the split of the text, or in its document where activations came with
      their places; `UNKNOWN` for a prefix. None where it is not known of any row.
  """
  token_N: np.ndarray
  context_N: np.ndarray
  document_N: np.ndarray
  domain_N: np.ndarray
  counts_N: np.ndarray | None = None
  position_N: np.ndarray | None = None

  @property
  def n_rows(self) -> int:
    """N."""
    return len(self.token_N)

  @functools.cached_property
  def counted_N(self) -> np.ndarray:
    """The numbers of the rows that count, rising."""
    return np.arange(self.n_rows) if self.counts_N is None else np.flatnonzero(self.counts_N)

  def sample(self, n_rows: int) -> np.ndarray:
    """The numbers of about `n_rows` rows, rising: whole contexts, evenly spread, since texts come domain after domain.

    All rows if there are no more. For instance, of 9 contexts of 100 rows, with `n_rows=300`, the first, fourth and
    seventh.
    """
    every = -(-self.n_rows // n_rows)
    return np.flatnonzero(self.context_N % every == 0)

  def rows_at(self, position: np.ndarray) -> np.ndarray:
    """The rows of tokens by their positions in the split, which must all be there; -1 for position -1."""
    assert self.position_N is not None
    order_N = np.argsort(self.position_N, kind="stable")
    row = order_N[np.searchsorted(self.position_N, position, sorter=order_N)]
    return np.where(position < 0, -1, row)


def of_contexts(tokens: Tokens, context_C: np.ndarray, n_context: int, kept: Kept = EVERY) -> AnalysedText:
  """The text of some contexts of `n_context` tokens, one after the other, of which the positions `kept` count.

  The prefix of a context is of the document whose text follows it.
  """
  tokens_CT, position_CT = tokens.context(context_C, n_context), tokens.positions(context_C, n_context)
  first_C1 = position_CT[:, len(tokens.prefix), None]
  document_N = tokens.position_document(np.where(position_CT < 0, first_C1, position_CT).reshape(-1))
  domain_N, counts_N = tokens.domain_D[document_N], None
  if not kept.all:
    counts_N = kept.mask(tokens_CT).reshape(-1)
    domain_N = np.where(counts_N, domain_N, UNKNOWN).astype(np.int32)
  return AnalysedText(tokens_CT.reshape(-1), np.repeat(np.arange(len(context_C), dtype=np.int32), n_context),
                      document_N, domain_N, counts_N, position_CT.reshape(-1))


def of_places(places_N4: np.ndarray) -> tuple[AnalysedText, np.ndarray]:
  """The text that a store's places tell of, put back in order.

  A context is a stretch of one document without a gap. For instance rows at document 5, positions 0, 1, 2 and 7 are two
  contexts, of three tokens and of one.

  Args:
    places_N4: as `ActivationStore.places` gives them, in the order of the store.

  Returns:
    (the text, rank_N: the row of the text that each row of the store has become).
  """
  token_N, document_N, position_N, domain_N = places_N4.T
  order_N = np.lexsort((position_N, document_N))
  rank_N = np.empty(len(order_N), np.int64)
  rank_N[order_N] = np.arange(len(order_N))
  document_N, position_N = document_N[order_N], position_N[order_N]
  begins_N = np.ones(len(order_N), bool)
  begins_N[1:] = (np.diff(document_N) != 0) | (np.diff(position_N) != 1) | (document_N[1:] == UNKNOWN)
  context_N = np.cumsum(begins_N).astype(np.int32) - 1
  text = AnalysedText(token_N[order_N], context_N, document_N.astype(np.int64), domain_N[order_N],
                      position_N=position_N.astype(np.int64))
  return text, rank_N


def batches(tokens: Tokens, context_C: np.ndarray, n_context: int,
            batch_contexts: int) -> typing.Iterator[tuple[np.ndarray, int]]:
  """Yields (tokens_BT, how many of its rows count) for all contexts; the last batch is filled up with its last one."""
  for first in range(0, len(context_C), batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
    yield tokens.context(padded_B, n_context), len(index_B) * n_context
