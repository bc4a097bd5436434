"""The losses of n-gram models: what a subject has to beat to have learned more than word pairs."""

import numpy as np

from monojax.config import InputError

_CHUNK_TOKENS = 4_000_000
_RUN_TOKENS = 100_000


def unigram_bigram_loss(train_tokens_N, val_tokens_CU, vocab_size, max_train_tokens=50_000_000):
  """Held-out losses, in nats per token, of a unigram and a bigram model counted on training tokens.

  The unigram is smoothed by adding one to each count. The bigram is interpolated with it after Witten
  and Bell ("The Zero-Frequency Problem", 1991; Chen and Goodman 1999, section 2.6):
  p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), where t(h) is the number of different tokens seen
  after h. Both are evaluated on the same tokens: all but the first of each held-out context.

  Args:
    train_tokens_N: ids, for instance memory-mapped.
    val_tokens_CU: ids of C held-out contexts, at least two tokens each.
    vocab_size: ids are below it.
    max_train_tokens: of a longer training split, this many in pieces spread evenly over it are counted,
      which bounds memory.

  Returns:
    (unigram_loss, bigram_loss).

  Raises:
    InputError: no pair of neighbours is held out.
  """
  n_contexts, width = val_tokens_CU.shape
  n_targets = n_contexts * (width - 1)
  if n_targets < 1:
    raise InputError(f"{n_contexts} held-out contexts of {width} tokens have no pair of neighbours: "
                     "give more text or a larger --text.val_fraction")
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
    unseen_Q = np.maximum(followers_V[history_Q], history_V[history_Q] == 0)  # 1 for a new history: p(w)
    p_Q = (seen_Q + unseen_Q * p_V[next_Q]) / (history_V[history_Q] + unseen_Q)
    unigram_loss -= np.sum(times_Q * np.log(p_V[next_Q]))
    bigram_loss -= np.sum(times_Q * np.log(p_Q))
  return float(unigram_loss / n_targets), float(bigram_loss / n_targets)


def _pieces(tokens_N, max_tokens):
  """Yields arrays that hold all of `tokens_N`, or `max_tokens` of them in runs spread evenly over it.

  The pairs that straddle two arrays are not counted, and those that straddle two runs are counted as
  if they were neighbours: one in a hundred thousand.
  """
  if len(tokens_N) <= max_tokens:
    for first in range(0, len(tokens_N), _CHUNK_TOKENS):
      yield np.asarray(tokens_N[first:first + _CHUNK_TOKENS])
    return
  n_runs = max(1, max_tokens // _RUN_TOKENS)
  width = max_tokens // n_runs
  starts = np.linspace(0, len(tokens_N) - width, n_runs).astype(np.int64)
  per_chunk = max(1, _CHUNK_TOKENS // width)
  for i in range(0, n_runs, per_chunk):
    yield np.concatenate([tokens_N[start:start + width] for start in starts[i:i + per_chunk]])


def _pairs(tokens, vocab_size):
  """(sorted keys previous * vocab_size + next, their counts) of the neighbours on the last axis."""
  wide = tokens.astype(np.int64)
  return np.unique(wide[..., :-1] * vocab_size + wide[..., 1:], return_counts=True)


def _merge(keys_P, counts_P, more_keys_Q, more_counts_Q):
  """Two sorted tables of counts as one."""
  if not len(keys_P):
    return more_keys_Q, more_counts_Q
  keys_R = np.concatenate([keys_P, more_keys_Q])
  order_R = np.argsort(keys_R, kind="stable")  # merges two sorted runs in linear time
  keys_R = keys_R[order_R]
  counts_R = np.concatenate([counts_P, more_counts_Q])[order_R]
  first_U = np.flatnonzero(np.diff(keys_R, prepend=-1))
  return keys_R[first_U], np.add.reduceat(counts_R, first_U)


def _lookup(keys_Q, keys_P, counts_P):
  """The count of each key in `keys_Q`, 0 where the sorted `keys_P` lack it."""
  if not len(keys_P):
    return np.zeros(len(keys_Q), np.int64)
  at_Q = np.minimum(np.searchsorted(keys_P, keys_Q), len(keys_P) - 1)
  return np.where(keys_P[at_Q] == keys_Q, counts_P[at_Q], 0)
