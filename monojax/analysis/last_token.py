"""Activations at the last token of each of many texts, which have different lengths.

Letters: N texts, B texts of a batch, T positions, M width of the sites side by side.
"""

import collections
import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from monojax import metrics
from monojax.config import require
from monojax.subjects.subject import LoadedSubject, Subject

_SHORTEST = 16  # positions; shorter texts are padded to so many
_BATCH_TOKENS = 8192  # of a batch, padding included


def last_activations(subject: LoadedSubject, reads: Sequence[str], ids: Sequence[Sequence[int]],
                     description: str = "activations") -> np.ndarray:
  """The activations of some sites, side by side, at the last token of each text: (N, M), float32.

  Texts of about the same length are computed together, each padded on its right to a power of two, so that few
  programs are compiled. Where what stands behind a text changes its activations, as in an encoder, only texts of equal
  length are computed together.

  Args:
    subject: the subject.
    reads: the sites.
    ids: the token ids of each text, at least one.
    description: what the progress bar calls this.

  Raises:
    InputError: a text has no token, or more than the subject can read.
  """
  limit = subject.model.max_context
  for number, text in enumerate(ids):
    require(len(text) > 0, "texts", number, "this text has no token")
    require(limit is None or len(text) <= limit, "texts", number,
            f"this text has {len(text)} tokens, and the subject reads at most {limit}")
  run = _make_last(subject.model, tuple(reads))
  padded = not _sees_what_follows(run, subject, ids)
  by_width: dict[int, list[int]] = collections.defaultdict(list)
  for number, text in enumerate(ids):
    by_width[_width(len(text), limit) if padded else len(text)].append(number)
  found: np.ndarray | None = None
  with metrics.progress(len(ids), "texts", description) as bar:
    for width, numbers in sorted(by_width.items()):
      size = max(1, _BATCH_TOKENS // width)
      for first in range(0, len(numbers), size):
        chosen = numbers[first:first + size]
        x_BM = run(subject.params, *_batch([ids[i] for i in chosen], width, size))
        found = np.empty((len(ids), x_BM.shape[1]), np.float32) if found is None else found
        found[chosen] = np.asarray(x_BM)[:len(chosen)]
        bar.update(len(chosen))
  require(found is not None, "texts", 0, "there are none")
  return typing.cast(np.ndarray, found)


def _width(length: int, limit: int | None) -> int:
  """The positions that a text of a length is padded to: a power of two, or all that the subject can read."""
  width = max(_SHORTEST, 1 << (length - 1).bit_length())
  return width if limit is None else min(width, limit)


def _batch(texts: Sequence[Sequence[int]], width: int, size: int, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(tokens_BT, last_B) of `size` rows of `width` positions; rows beyond the texts are padding."""
  tokens_BT, last_B = np.full((size, width), padding, np.int32), np.zeros(size, np.int32)
  for row, text in enumerate(texts):
    tokens_BT[row, :len(text)], last_B[row] = text, len(text) - 1
  return tokens_BT, last_B


def _sees_what_follows(run: typing.Callable, subject: LoadedSubject, ids: Sequence[Sequence[int]]) -> bool:
  """Whether the activations at a text's last token depend on which token stands behind it; it is tried on one text."""
  padding = lambda text: _width(len(text), subject.model.max_context) - len(text)
  shortest = min(filter(padding, ids), key=len, default=None)
  if shortest is None:
    return False
  width = len(shortest) + padding(shortest)
  size = max(1, _BATCH_TOKENS // width)
  one, other = (np.asarray(run(subject.params, *_batch([shortest], width, size, token))[0])
                for token in (0, subject.model.n_vocab - 1))
  return not np.array_equal(one, other)


@functools.lru_cache(maxsize=8)
def _make_last(subject: Subject, reads: tuple[str, ...]) -> typing.Callable:
  """The compiled function (params, tokens_BT, last_B) -> x_BM: the sites' activations at one position of each row."""
  @jax.jit
  def run(params, tokens_BT, last_B):
    _, sites = subject.apply({"params": params}, tokens_BT, wanted=reads)
    rows_B = jnp.arange(len(last_B))
    return jnp.concatenate([sites[name][rows_B, last_B].astype(jnp.float32) for name in reads], axis=-1)
  return run
