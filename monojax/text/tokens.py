"""The tokens of a run, read through a memory map from the files that `prepare.py` writes.

A *context* is what a subject reads at a time: the tokens of a stretch of the text, behind a *prefix*, which is empty
or the one token that the subject expects in front of everything (BOS). The stretches lie side by side in the text. For
instance, with a prefix and contexts of 128 tokens, context 2 is the prefix and the tokens at positions 254 to 380.

Letters: N tokens of a split, B contexts of a batch, T tokens of a context.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from monojax import files
from monojax.config import InputError, require
from monojax.shuffle import permute

SPLITS = ("train", "val")
# What is kept of each document, 12 bytes: the position of its end-of-text id in the split, and its domain's index.
DOCUMENT = np.dtype([("start", "<u8"), ("domain", "<i4")])
NO_DOMAIN = -1  # the index of a document without a domain
NO_POSITION = -1  # the position in the text of a context's prefix, which is not in it


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
    prefix: the ids that stand in front of the text of every context, none or one.
    special_ids: the ids of tokens that are no text, rising; none in folders of version 0.1.
  """
  split: str
  tokens_N: np.ndarray
  start_D: np.ndarray
  domain_D: np.ndarray
  domains: tuple[str, ...]
  vocab_size: int
  eot_id: int
  text_bytes: int
  prefix: tuple[int, ...] = ()
  special_ids: tuple[int, ...] = ()

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
               tuple(meta["domains"]), meta["vocab_size"], meta["eot_id"], meta["text_bytes"][split],
               prefix_of(meta), tuple(meta.get("special_ids", ())))

  @property
  def n_tokens(self) -> int:
    """How many tokens the split has."""
    return len(self.tokens_N)

  def _stride(self, n_context: int) -> int:
    """How many tokens of the text a context of `n_context` tokens has.

    Raises:
      InputError: it has none.
    """
    require(n_context > len(self.prefix), "subject.n_context", n_context,
            f"a context begins with {len(self.prefix)} token that is not of the text, and must have more")
    return n_context - len(self.prefix)

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
      tokens_BT, int32, with T = n_context + 1: inputs are [:, :-1] and targets [:, 1:]. The first are the prefix.

    Raises:
      InputError: the split is shorter than one window.
    """
    width = self._stride(n_context + 1)
    self._windows(width)
    n_windows = max(1, (self.n_tokens - width + 1) // width)  # so many fit after any offset
    n_offsets = min(width, self.n_tokens - n_windows * width + 1)
    index_B = step * batch_contexts + np.arange(batch_contexts, dtype=np.int64)
    epoch_B, window_B = np.divmod(index_B, n_windows)
    start_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
      here_B = epoch_B == epoch
      offset = permute(0, n_offsets, seed, epoch, 1)
      start_B[here_B] = offset + width * permute(window_B[here_B], n_windows, seed, epoch)
    return self._read(start_B[:, None] + np.arange(width))

  def contexts(self, n_context: int, n_tokens: int = 0) -> int:
    """How many contexts of `n_context` tokens the split holds side by side, or about how many hold `n_tokens` tokens.

    Raises:
      InputError: the split is shorter than one context.
    """
    stride = self._stride(n_context)
    n_contexts = self._windows(stride)
    return min(n_contexts, max(1, n_tokens // stride)) if n_tokens else n_contexts

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
    """The tokens of contexts by their numbers, tokens_BT, int32: the prefix and what `positions` says."""
    return self._read(self._positions(index_B, n_context))

  def positions(self, index_B: Any, n_context: int) -> np.ndarray:
    """Where in the text the tokens of contexts are, by the contexts' numbers: (B, T) int64, `NO_POSITION` for a prefix.

    The text of context i begins at position i * (n_context - length of the prefix).
    """
    position_BT = self._positions(index_B, n_context)
    return np.pad(position_BT, ((0, 0), (len(self.prefix), 0)), constant_values=NO_POSITION)

  def _positions(self, index_B: Any, n_context: int) -> np.ndarray:
    """`positions` without those of the prefix."""
    stride = self._stride(n_context)
    return np.asarray(index_B, np.int64)[:, None] * stride + np.arange(stride)

  def _read(self, position_BT: np.ndarray) -> np.ndarray:
    """The prefix and the tokens at some positions, int32."""
    tokens_BT = self.tokens_N[position_BT].astype(np.int32)
    if not self.prefix:
      return tokens_BT
    return np.concatenate([np.full((len(tokens_BT), 1), self.prefix, np.int32), tokens_BT], axis=1)

  def position_document(self, position_N: np.ndarray) -> np.ndarray:
    """The index of the document that each position belongs to; a document begins with its end-of-text id."""
    return np.searchsorted(self.start_D, position_N, side="right") - 1

  def position_domain(self, position_N: np.ndarray) -> np.ndarray:
    """The index in `domains` of the domain of each position's document, or `NO_DOMAIN`."""
    return self.domain_D[self.position_document(position_N)]


def prefix_of(meta: Mapping[str, Any]) -> tuple[int, ...]:
  """The ids in front of every context, none or one, by the content of a folder's meta.json."""
  return () if meta.get("bos_id") is None else (meta["bos_id"],)
