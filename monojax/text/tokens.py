"""The tokens of a run, read through a memory map from the files that `prepare.py` writes.

Letters: N tokens of a split, B contexts of a batch, T tokens of a context.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError
from monojax.shuffle import permute

SPLITS = ("train", "val")
# What is kept of each document, 12 bytes: the position of its end-of-text id in the split, and its domain's index.
DOCUMENT = np.dtype([("start", "<u8"), ("domain", "<i4")])
NO_DOMAIN = -1  # the index of a document without a domain


@dataclasses.dataclass(frozen=True)
class Tokens:
  """One split of the tokens in a finished folder.

  Attributes:
    split: "train" or "val".
    tokens_N: the ids of all documents one after the other, uint16 or uint32, memory-mapped.
    start_D: int64, for each document the position of its end-of-text id. Here D is documents.
    domain_D: int32, for each document the index of its domain in `domains`, or `NO_DOMAIN`.
    domains: the names of the domains.
    vocab_size: the number of tokens that there are; ids are below it.
    eot_id: the end-of-text id, which precedes each document.
    text_bytes: the bytes of the split's text in UTF-8.
  """
  split: str
  tokens_N: np.ndarray
  start_D: np.ndarray
  domain_D: np.ndarray
  domains: tuple[str, ...]
  vocab_size: int
  eot_id: int
  text_bytes: int

  @classmethod
  def open(cls, directory: str | os.PathLike[str], split: str) -> "Tokens":
    """Opens a split that `prepare` wrote into a folder.

    Raises:
      InputError: the folder holds no finished tokens, or a file of them is not as long as it was.
    """
    directory = pathlib.Path(directory)
    meta = files.read_json(directory / "meta.json")
    if meta is None:
      raise InputError(f"{directory} holds no finished tokens: run the tokens stage first")
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    path = directory / f"{split}.bin"
    tokens_N: np.ndarray = np.memmap(path, dtype, "r") if meta["n_tokens"][split] else np.zeros(0, dtype)
    if len(tokens_N) != meta["n_tokens"][split]:
      raise InputError(f"{path} has {len(tokens_N)} tokens, meta.json says {meta['n_tokens'][split]}: "
                       "copy it again, or delete the folder and run the tokens stage")
    documents = np.fromfile(directory / f"{split}.documents.bin", DOCUMENT)
    return cls(split, tokens_N, documents["start"].astype(np.int64), documents["domain"].astype(np.int32),
               tuple(meta["domains"]), meta["vocab_size"], meta["eot_id"], meta["text_bytes"][split])

  @property
  def n_tokens(self) -> int:
    """How many tokens the split has."""
    return len(self.tokens_N)

  def _windows(self, n_needed: int) -> int:
    """How many windows of `n_needed` tokens the split holds side by side.

    Raises:
      InputError: the split is shorter than one window.
    """
    if self.n_tokens < n_needed:
      remedy = "a larger --tokens.val_fraction, " if self.split == "val" else ""
      raise InputError(f"{self.split} has {self.n_tokens} tokens, needs at least {n_needed}: give more text, "
                       f"{remedy}or a smaller --subject.n_context")
    return self.n_tokens // n_needed

  def batch(self, step: int, batch_contexts: int, n_context: int, seed: int) -> np.ndarray:
    """The training batch of a step, a pure function of the arguments.

    In each epoch the split is cut into windows side by side, which are visited once each. The first window starts at an
    offset below one window's length, and both the offset and the order of the windows differ from epoch to epoch. Fewer
    than two windows' tokens are left out of an epoch.

    Args:
      step: the number of the step, from 0 on.
      batch_contexts: B, how many contexts the batch has.
      n_context: the tokens of a context that are read; each is to predict the token after it.
      seed: the seed of offsets and orders.

    Returns:
      tokens_BT, int32, with T = n_context + 1: inputs are [:, :-1] and targets [:, 1:].

    Raises:
      InputError: the split is shorter than one window.
    """
    width = n_context + 1
    self._windows(width)
    n_windows = max(1, (self.n_tokens - n_context) // width)  # so many fit after any offset
    n_offsets = min(width, self.n_tokens - n_windows * width + 1)
    index_B = step * batch_contexts + np.arange(batch_contexts, dtype=np.int64)
    epoch_B, window_B = np.divmod(index_B, n_windows)
    start_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
      here_B = epoch_B == epoch
      offset = permute(0, n_offsets, seed, epoch, 1)
      start_B[here_B] = offset + width * permute(window_B[here_B], n_windows, seed, epoch)
    return self._gather(start_B, width)

  def contexts(self, n_context: int, n_tokens: int = 0) -> int:
    """How many contexts of `n_context` tokens the split holds side by side, or about how many hold `n_tokens` tokens.

    Raises:
      InputError: the split is shorter than one context.
    """
    n_contexts = self._windows(n_context)
    return min(n_contexts, max(1, n_tokens // n_context)) if n_tokens else n_contexts

  def choose(self, n_context: int, n_tokens: int, seed: int = 0) -> np.ndarray:
    """The numbers of random contexts that hold about `n_tokens` tokens, for `context`.

    The choice is random because documents are in the order of the files, which is often one domain after another.

    Args:
      n_context: the tokens of a context.
      n_tokens: about how many tokens are wanted; 0 takes all contexts.
      seed: the seed of the choice.

    Returns:
      Rising numbers, int64, none of them twice.

    Raises:
      InputError: the split is shorter than one context.
    """
    chosen = np.arange(self.contexts(n_context, n_tokens))
    return np.sort(permute(chosen, self.contexts(n_context), seed, 7))

  def context(self, index_B: Any, n_context: int) -> np.ndarray:
    """The tokens of contexts by their numbers, tokens_BT, int32; context i begins at position i * n_context."""
    return self._gather(np.asarray(index_B, np.int64) * n_context, n_context)

  def _gather(self, start_B: np.ndarray, width: int) -> np.ndarray:
    return self.tokens_N[start_B[:, None] + np.arange(width)].astype(np.int32)

  def position_document(self, position_N: np.ndarray) -> np.ndarray:
    """The index of the document that each position belongs to; a document begins with its end-of-text id."""
    return np.searchsorted(self.start_D, position_N, side="right") - 1

  def position_domain(self, position_N: np.ndarray) -> np.ndarray:
    """The index in `domains` of the domain of each position's document, or `NO_DOMAIN`."""
    return self.domain_D[self.position_document(position_N)]
