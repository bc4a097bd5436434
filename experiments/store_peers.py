"""How the peers serve shuffled batches of activations that are on a disk, for `bench_store.py`.

A peer that is not installed raises ImportError (pip install 'monojax[peers]'). Each function returns an iterator of
batches, and reads the rows x_NM in contexts of `context` rows, as its library does.
"""

import gc

import numpy as np
import torch


def save_for_sae_lens(rows_NM, context, directory):
  """Writes rows as SAELens' cache of activations: a Hugging Face dataset of contexts, in float32."""
  import datasets
  width = rows_NM.shape[1]
  features = datasets.Features({"acts": datasets.Array2D((context, width), "float32")})

  def contexts():
    for first in range(0, len(rows_NM), context):
      yield {"acts": rows_NM[first:first + context].astype(np.float32)}
  dataset = datasets.Dataset.from_generator(contexts, features=features, cache_dir=str(directory / "cache"))
  dataset.save_to_disk(directory / "saved")


def sae_lens(directory, batch_rows, buffer_rows, context, contexts_per_read=32):
  """SAELens: contexts in their order off the cached dataset, through its `mixing_buffer`."""
  import datasets
  from sae_lens.training.mixing_buffer import mixing_buffer
  dataset = datasets.load_from_disk(directory / "saved").with_format("torch")

  def loader():
    for first in range(0, len(dataset), contexts_per_read):
      acts_CTM = dataset[first:first + contexts_per_read]["acts"]
      yield acts_CTM.reshape(-1, acts_CTM.shape[-1])
  return mixing_buffer(buffer_rows, batch_rows, loader())


def dictionary_learning(rows_NM, batch_rows, buffer_rows, context):
  """dictionary_learning: its `ActivationBuffer`, refilled from a file of rows instead of a model."""
  from dictionary_learning.buffer import ActivationBuffer

  class FromFile(ActivationBuffer):
    """Only `refresh` is ours: what it does with the buffer is as there, the rows come from the file."""

    def refresh(self):
      gc.collect()
      kept = self.activations[~self.read]
      self.activations = torch.empty(self.activation_buffer_size, self.d_submodule, dtype=torch.float16)
      self.activations[:len(kept)] = kept
      needed = self.activation_buffer_size - len(kept)
      if self.data + needed > len(rows_NM):
        raise StopIteration
      self.activations[len(kept):] = torch.from_numpy(np.ascontiguousarray(rows_NM[self.data:self.data + needed]))
      self.data += needed
      self.read = torch.zeros(len(self.activations), dtype=torch.bool)

  class Nothing:
    dtype = torch.float16
  return FromFile(0, Nothing(), None, rows_NM.shape[1], n_ctxs=buffer_rows // context, ctx_len=context,
                  out_batch_size=batch_rows)
