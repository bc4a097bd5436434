"""The losses of n-gram models, which a subject has to beat if it has learned more than pairs of neighbouring tokens."""

from collections.abc import Iterator

import numpy as np

from monojax.config import InputError

_CHUNK_TOKENS = 4_000_000  # how many tokens are counted at a time
_PIECE_TOKENS = 100_000  # the length of the pieces that are counted of a long training split


def unigram_bigram_loss(train_tokens_N: np.ndarray, val_tokens_CU: np.ndarray, vocab_size: int,
                        max_train_tokens: int = 50_000_000) -> tuple[float, float]:
  """The held-out losses of a unigram and a bigram model that are counted on training tokens, in nats per token.

  The unigram model is smoothed by adding one to each count. The bigram model is interpolated with it after Witten and
  Bell ("The Zero-Frequency Problem", 1991; Chen and Goodman 1999, section 2.6):
  p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), where c counts and t(h) is the number of different tokens seen after
  h. Both are evaluated on the same tokens, which are all but the first of each held-out context.

  Args:
    train_tokens_N: token ids of the training split; the array may be memory-mapped.
    val_tokens_CU: token ids of the held-out contexts, of at least two tokens each.
    vocab_size: the number of tokens that there are; ids are below it.
    max_train_tokens: how many training tokens are counted at most, which bounds memory. Of a longer split, pieces
      spread evenly over it are counted.

  Returns:
    (loss of the unigram model, loss of the bigram model).

  Raises:
    InputError: the held-out contexts hold no pair of neighbouring tokens.
  """
  n_contexts, width = val_tokens_CU.shape
  n_targets = n_contexts * (width - 1)
  if n_targets < 1:
    raise InputError(f"{n_contexts} held-out contexts of {width} tokens have no pair of neighbours: "
                     "give more text or a larger --tokens.val_fraction")
  unigram_V = np.zeros(vocab_size, np.int64)
  keys_P, counts_P = np.zeros(0, np.int64), np.zeros(0, np.int64)
  for tokens_N in _pieces(train_tokens_N, max_train_tokens):
    unigram_V += np.bincount(tokens_N, minlength=vocab_size)
    keys_P, counts_P = _merge(keys_P, counts_P, *_pairs(tokens_N, vocab_size))
  p_V = (unigram_V + 1) / (unigram_V.sum() + vocab_size)
  history_P = keys_P // vocab_size
  followers_V = np.bincount(history_P, minlength=vocab_size)
  history_V = np.bincount(history_P, weights=counts_P, minlength=vocab_size)

  unigram_loss = bigram_loss = 0.0
  per_chunk = max(1, _CHUNK_TOKENS // width)
  for first in range(0, n_contexts, per_chunk):
    keys_Q, times_Q = _pairs(val_tokens_CU[first:first + per_chunk], vocab_size)
    history_Q, next_Q = np.divmod(keys_Q, vocab_size)
    seen_Q = _lookup(keys_Q, keys_P, counts_P)
    # After a token that training never saw, c and t are 0; t = 1 makes the probability that of the unigram model.
    unseen_Q = np.maximum(followers_V[history_Q], history_V[history_Q] == 0)
    p_Q = (seen_Q + unseen_Q * p_V[next_Q]) / (history_V[history_Q] + unseen_Q)
    unigram_loss -= np.sum(times_Q * np.log(p_V[next_Q]))
    bigram_loss -= np.sum(times_Q * np.log(p_Q))
  return float(unigram_loss / n_targets), float(bigram_loss / n_targets)


def _pieces(tokens_N: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
  """Yields arrays that together hold all tokens, or `max_tokens` of them in pieces spread evenly over the split.

  Where one array ends and the next begins, a pair of neighbours is not counted. Where two pieces meet in an array, a
  pair is counted that is none. Both happen to about one pair in a hundred thousand, or fewer.
  """
  if len(tokens_N) <= max_tokens:
    for first in range(0, len(tokens_N), _CHUNK_TOKENS):
      yield np.asarray(tokens_N[first:first + _CHUNK_TOKENS])
    return
  n_pieces = max(1, max_tokens // _PIECE_TOKENS)
  width = max_tokens // n_pieces
  starts = np.linspace(0, len(tokens_N) - width, n_pieces).astype(np.int64)
  per_chunk = max(1, _CHUNK_TOKENS // width)
  for i in range(0, n_pieces, per_chunk):
    yield np.concatenate([tokens_N[start:start + width] for start in starts[i:i + per_chunk]])


def _pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """A table of the pairs of neighbours on the last axis: sorted keys, previous * vocab_size + next, and counts."""
  wide = tokens.astype(np.int64)
  return np.unique(wide[..., :-1] * vocab_size + wide[..., 1:], return_counts=True)


def _merge(keys_P: np.ndarray, counts_P: np.ndarray, more_keys_Q: np.ndarray,
           more_counts_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """One table, (sorted keys, counts), with the counts of two."""
  if not len(keys_P):
    return more_keys_Q, more_counts_Q
  keys_R = np.concatenate([keys_P, more_keys_Q])
  order_R = np.argsort(keys_R, kind="stable")  # merges two sorted sequences in linear time
  keys_R = keys_R[order_R]
  counts_R = np.concatenate([counts_P, more_counts_Q])[order_R]
  first_U = np.flatnonzero(np.diff(keys_R, prepend=-1))
  return keys_R[first_U], np.add.reduceat(counts_R, first_U)


def _lookup(keys_Q: np.ndarray, keys_P: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
  """The count of each key in `keys_Q`, which is 0 where the table of sorted `keys_P` lacks it."""
  if not len(keys_P):
    return np.zeros(len(keys_Q), np.int64)
  at_Q = np.minimum(np.searchsorted(keys_P, keys_Q), len(keys_P) - 1)
  return np.where(keys_P[at_Q] == keys_Q, counts_P[at_Q], 0)
