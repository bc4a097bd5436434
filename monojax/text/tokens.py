"""Token files, read memory-mapped; `prepare.py` writes them."""

import dataclasses
import pathlib

import numpy as np

from monojax import files
from monojax.config import InputError
from monojax.shuffle import permute

SPLITS = ("train", "val")
DOCUMENT = np.dtype([("start", "<u8"), ("domain", "<i4")])  # packed: 12 bytes
NO_DOMAIN = -1


@dataclasses.dataclass(frozen=True)
class Tokens:
  """One split of a finished `tokens` folder.

  Attributes:
    split: "train" or "val".
    tokens_N: all ids, memory-mapped, uint16 or uint32.
    start_D: int64, for each document the position of its end-of-text id.
    domain_D: int32, for each document the index into `domains`, or `NO_DOMAIN`.
    domains: names.
    vocab_size: ids are below it.
    eot_id: the id that precedes each document.
    text_bytes: UTF-8 bytes of the split's text.
  """
  split: str
  tokens_N: np.ndarray
  start_D: np.ndarray
  domain_D: np.ndarray
  domains: tuple
  vocab_size: int
  eot_id: int
  text_bytes: int

  @classmethod
  def open(cls, directory, split):
    """Opens a split that `prepare` wrote.

    Raises:
      InputError: the folder holds no finished tokens.
    """
    directory = pathlib.Path(directory)
    meta = files.read_json(directory / "meta.json")
    if meta is None:
      raise InputError(f"{directory} holds no finished tokens: run the tokens stage first")
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    path = directory / f"{split}.bin"
    tokens_N = np.memmap(path, dtype, "r") if meta["n_tokens"][split] else np.zeros(0, dtype)
    if len(tokens_N) != meta["n_tokens"][split]:
      raise InputError(f"{path} has {len(tokens_N)} tokens, meta.json says {meta['n_tokens'][split]}: "
                       "copy it again, or delete the folder and run the tokens stage")
    documents = np.fromfile(directory / f"{split}.documents.bin", DOCUMENT)
    return cls(split, tokens_N, documents["start"].astype(np.int64), documents["domain"].astype(np.int32),
               tuple(meta["domains"]), meta["vocab_size"], meta["eot_id"], meta["text_bytes"][split])

  @property
  def n_tokens(self):
    """How many tokens the split has."""
    return len(self.tokens_N)

  def _windows(self, n_needed):
    """How many windows of `n_needed` tokens lie side by side.

    Raises:
      InputError: the split is shorter than one.
    """
    if self.n_tokens < n_needed:
      remedy = "a larger --tokens.val_fraction, " if self.split == "val" else ""
      raise InputError(f"{self.split} has {self.n_tokens} tokens, needs at least {n_needed}: give more text, "
                       f"{remedy}or a smaller --subject.n_context")
    return self.n_tokens // n_needed

  def batch(self, step, batch_contexts, n_context, seed):
    """The training batch of a step: a pure function of (seed, step).

    An epoch cuts the split into windows side by side, from an offset of its own below one window, and
    visits each once in an order of its own. The offset leaves out fewer than two windows' tokens.

    Args:
      step: which batch, from 0.
      batch_contexts: B.
      n_context: inputs to a context.
      seed: keys offsets and orders.

    Returns:
      int32 tokens_BT with T = n_context + 1: inputs are [:, :-1], targets [:, 1:].

    Raises:
      InputError: the split is shorter than one window.
    """
    width = n_context + 1
    self._windows(width)
    n_windows = max(1, (self.n_tokens - n_context) // width)  # fit behind any offset
    n_offsets = min(width, self.n_tokens - n_windows * width + 1)
    index_B = step * batch_contexts + np.arange(batch_contexts, dtype=np.int64)
    epoch_B, window_B = np.divmod(index_B, n_windows)
    start_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
      here_B = epoch_B == epoch
      offset = permute(0, n_offsets, seed, epoch, 1)
      start_B[here_B] = offset + width * permute(window_B[here_B], n_windows, seed, epoch)
    return self._gather(start_B, width)

  def contexts(self, n_context, n_tokens=0):
    """How many contexts `context` can be asked for, or how many of them hold about `n_tokens` tokens.

    Raises:
      InputError: the split is shorter than one.
    """
    n_contexts = self._windows(n_context)
    return min(n_contexts, max(1, n_tokens // n_context)) if n_tokens else n_contexts

  def choose(self, n_context, n_tokens, seed=0):
    """int64 numbers, rising, of random different contexts that hold about `n_tokens` tokens; 0 takes all.

    A random part, since documents lie in the order of the files, often one domain after another.

    Raises:
      InputError: the split is shorter than one context.
    """
    chosen = np.arange(self.contexts(n_context, n_tokens))
    return np.sort(permute(chosen, self.contexts(n_context), seed, 7))

  def context(self, index_B, n_context):
    """int32 tokens_BT of the fixed contexts `index_B`: positions index * n_context + 0..n_context-1."""
    return self._gather(np.asarray(index_B, np.int64) * n_context, n_context)

  def _gather(self, start_B, width):
    return self.tokens_N[start_B[:, None] + np.arange(width)].astype(np.int32)

  def position_document(self, position_N):
    """The index of the document in which each position lies, its end-of-text id included."""
    return np.searchsorted(self.start_D, position_N, side="right") - 1

  def position_domain(self, position_N):
    """The index into `domains` of each position's document, or `NO_DOMAIN`."""
    return self.domain_D[self.position_document(position_N)]
