"""One training step of each peer's own trainer, on given rows, for `bench_sae.py` and the tests.

A peer that is not installed raises ImportError (pip install 'monojax[peers]'). Each function takes rows x_BM (a
NumPy array), a number of features, and k for the TopK family, and returns a function that takes one step.
"""

import os

import torch

# Steps that schedules are told to expect: long after the timed ones.
_STEPS = 10**6


def sae_lens(architecture, x_BM, n_features, k):
  """SAELens: `SAETrainer.step`, with architecture "standard" (ReLU, L1) or "topk"."""
  from sae_lens import saes
  from sae_lens.config import SAETrainerConfig
  from sae_lens.training.sae_trainer import SAETrainer
  rows = torch.from_numpy(x_BM)
  shape = {"d_in": rows.shape[1], "d_sae": n_features, "normalize_activations": "none"}
  if architecture == "topk":
    sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(**shape, k=k))
  else:
    sae = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(**shape, l1_coefficient=5.0))
  config = SAETrainerConfig(total_training_samples=_STEPS * len(rows), train_batch_size_samples=len(rows),
                            lr_end=3e-5)
  trainer = SAETrainer(config, sae, iter(()))
  return lambda: trainer.step(rows)


def dictionary_learning(architecture, x_BM, n_features, k):
  """dictionary_learning: `update` of its trainers "standard", "topk" and "batchtopk"."""
  from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
  from dictionary_learning.trainers.standard import StandardTrainer
  from dictionary_learning.trainers.top_k import TopKTrainer
  rows = torch.from_numpy(x_BM)
  kinds = {"standard": StandardTrainer, "topk": TopKTrainer, "batchtopk": BatchTopKTrainer}
  more = {} if architecture == "standard" else {"k": k}
  trainer = kinds[architecture](steps=_STEPS, activation_dim=rows.shape[1], dict_size=n_features, layer=0,
                                lm_name="none", device="cpu", **more)
  done = [0]

  def step():
    done[0] += 1
    trainer.update(done[0], rows)
  return step


def sparsify(architecture, x_BM, n_features, k):
  """sparsify: the body of its training loop around `SparseCoder`, with Adam."""
  if not torch.cuda.is_available():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read when it is imported
  from sparsify import SparseCoder, SparseCoderConfig
  assert architecture == "topk"
  rows = torch.from_numpy(x_BM)
  coder = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=n_features, k=k))
  optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4)

  def step():
    coder.set_decoder_norm_to_unit_norm()
    coder(rows).fvu.backward()
    coder.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
  return step


PEERS = {"sae_lens": (sae_lens, ("standard", "topk")),
         "dictionary_learning": (dictionary_learning, ("standard", "topk", "batchtopk")),
         "sparsify": (sparsify, ("topk",))}
