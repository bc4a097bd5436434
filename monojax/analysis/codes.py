"""Sparse activations of every feature over a set of tokens: what the feature tables are made from."""

import dataclasses

import numpy as np

from monojax import metrics
from monojax.host_memory import total_bytes

# What a non-zero activation takes while they are sorted.
BYTES_PER_ENTRY = 26


@dataclasses.dataclass(frozen=True)
class Codes:
  """Non-zero activations, feature by feature (a compressed sparse column matrix).

  Attributes:
    n_rows: N, tokens looked at; whole contexts, in order.
    n_context: tokens in a context: row i is token i % n_context of context i // n_context.
    position_N: int64, each row's position in its split.
    start_F: int64 (F + 1,), feature i's entries are start_F[i]..start_F[i + 1] - 1.
    row_P: int32, the row of each entry, ascending within a feature.
    value_P: float32, its activation.
  """
  n_rows: int
  n_context: int
  position_N: np.ndarray
  start_F: np.ndarray
  row_P: np.ndarray
  value_P: np.ndarray

  def feature(self, index):
    """(rows, values) of a feature's non-zero activations."""
    entries = slice(self.start_F[index], self.start_F[index + 1])
    return self.row_P[entries], self.value_P[entries]


def collect(encode, tokens, context_C, n_context, batch_contexts, description):
  """Encodes contexts and keeps what is not zero.

  Args:
    encode: (tokens_BT) -> array (B * T, F).
    tokens: `Tokens`.
    context_C: numbers of the contexts.
    n_context: tokens in each.
    batch_contexts: contexts in a forward pass.
    description: label of the progress bar.

  Returns:
    `Codes`, 8 bytes for each non-zero activation; while they are sorted, up to `BYTES_PER_ENTRY`.
  """
  rows, features, values = [], [], []
  bar = metrics.progress(len(context_C) * n_context, "tokens", description, scale=True)
  pending = None
  for first in range(0, len(context_C) + batch_contexts, batch_contexts):
    index_B = context_C[first:first + batch_contexts]
    coming = None
    if len(index_B):
      padded_B = np.pad(index_B, (0, batch_contexts - len(index_B)), mode="edge")
      coming = (first * n_context, len(index_B) * n_context, encode(tokens.context(padded_B, n_context)))
    if pending:
      start, n_used, f_NF = pending
      f_NF = np.asarray(f_NF)[:n_used]
      n_features = f_NF.shape[1]
      entry_P = np.flatnonzero(f_NF)
      row_P, feature_P = np.divmod(entry_P, n_features)
      rows.append((row_P + start).astype(np.int32))
      features.append(feature_P.astype(np.uint16 if n_features <= 65_536 else np.int32))
      values.append(f_NF.reshape(-1)[entry_P].astype(np.float32))
      bar.update(n_used)
    pending = coming
  bar.close()
  feature_P = _joined(features)
  start_F = np.concatenate([[0], np.cumsum(np.bincount(feature_P, minlength=n_features))])
  order_P = np.argsort(feature_P, kind="stable")
  del feature_P
  position_N = (context_C[:, None] * n_context + np.arange(n_context)).reshape(-1)
  return Codes(len(position_N), n_context, position_N, start_F.astype(np.int64),
               _joined(rows)[order_P], _joined(values)[order_P])


def tokens_that_fit(n_tokens, per_token, memory_bytes=None):
  """`n_tokens`, or fewer, with a message, where collecting the `Codes` of so many took a quarter of memory.

  A quarter, since an analysis holds up to five sets of codes, 8 bytes an entry, while it collects one.

  Args:
    n_tokens: tokens wanted.
    per_token: non-zero activations on a token, on average.
    memory_bytes: of the host; by default what `host_memory.total_bytes` says.
  """
  n_fitting = int((memory_bytes or total_bytes()) / 4 / BYTES_PER_ENTRY / max(per_token, 1e-9))
  if n_tokens <= n_fitting:
    return n_tokens
  print(f"analysing {n_fitting:,} tokens instead of {n_tokens:,}: with {per_token:,.0f} activations on each, "
        "more would not fit into memory", flush=True)
  return n_fitting


def _joined(parts):
  """The parts end to end, which are let go."""
  joined = np.concatenate(parts)
  parts.clear()
  return joined
