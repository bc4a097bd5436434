"""The text that features are measured on: for each row of activations the token it was taken at, and where that is.

Letters: N rows, B contexts of a batch, T positions of a context, C contexts.
"""

import dataclasses
import typing

import numpy as np

from monojax.text.tokens import Tokens

UNKNOWN = -1  # a token, document or domain that is not known


@dataclasses.dataclass(frozen=True)
class AnalysedText:
  """One row a token. Rows of one context are neighbours, in the order of the text.

  Attributes:
    token_N: int32 token ids.
    context_N: int32 number of the context that each row is of: what the subject had read before a token is within it.
    document_N: int64 number of the document.
    domain_N: int32 index of the document's domain.
  """
  token_N: np.ndarray
  context_N: np.ndarray
  document_N: np.ndarray
  domain_N: np.ndarray

  @property
  def n_rows(self) -> int:
    """N."""
    return len(self.token_N)


def of_contexts(tokens: Tokens, context_C: np.ndarray, n_context: int) -> AnalysedText:
  """The text of some contexts of `n_context` tokens, one after the other."""
  position_N = (context_C[:, None] * n_context + np.arange(n_context)).reshape(-1)
  document_N = tokens.position_document(position_N)
  return AnalysedText(np.asarray(tokens.tokens_N[position_N]).astype(np.int32),
                      np.repeat(np.arange(len(context_C), dtype=np.int32), n_context), document_N,
                      tokens.domain_D[document_N])


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
  return AnalysedText(token_N[order_N], context_N, document_N.astype(np.int64), domain_N[order_N]), rank_N


def batches(tokens: Tokens, context_C: np.ndarray, n_context: int,
            batch_contexts: int) -> typing.Iterator[tuple[np.ndarray, int]]:
  """Yields (tokens_BT, how many of its rows count) for all contexts; the last batch is filled up with its last one."""
  for first in range(0, len(context_C), batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
    yield tokens.context(padded_B, n_context), len(index_B) * n_context
