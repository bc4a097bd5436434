"""Settings of the subject, the network under study: its architecture and its training."""

import dataclasses

from monojax.config import (
  COUNT,
  COUNT_OR_0,
  NOT_NEGATIVE,
  POSITIVE,
  PROPER_FRACTION,
  SEED,
  Bounds,
  nested,
  option,
  require,
  require_rules,
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The architecture of a decoder-only transformer; by default the one-layer model of Towards Monosemanticity."""
  n_layers: int = option(1, "number of layers, each a block of attention and an MLP",
                         Bounds(at_least=1, at_most=1024))
  d_model: int = option(128, "width of the residual stream", COUNT)
  n_heads: int = option(4, "number of attention heads in a layer", COUNT)
  d_mlp: int = option(512, "width of the MLP's hidden layer, which is what a dictionary reads at the site "
                           "layer.L.mlp.hidden", COUNT)
  vocab_size: int = option(0, "number of tokens in the vocabulary; 0 takes the tokenizer's", COUNT_OR_0)

  def __post_init__(self) -> None:
    require_rules(self, "subject.model.")
    require(self.d_model % self.n_heads == 0, "subject.model.n_heads", self.n_heads,
            f"must divide d_model={self.d_model}")
    require(self.d_model // self.n_heads % 2 == 0, "subject.model.n_heads", self.n_heads,
            "must leave heads of even width, which rotary positions need")


@dataclasses.dataclass(frozen=True)
class SubjectConfig:
  """The subject of a run and its training from random weights.

  It is trained by AdamW or Muon with clipped gradients and a learning rate that rises linearly and falls as a cosine.
  """
  weights: str = option("", "a pretrained transformer to study instead of training one: a Hugging Face folder, hf:NAME "
                            "or hf:NAME@REVISION, a .gguf file, or package:NAME for an installed Python package that "
                            "holds one of these")
  shuffled_of: str = option("", "the folder of another run with the same tokens, whose trained subject is taken, with "
                                "the entries of each weight matrix in random order, instead of training one: the "
                                "control with random weights. Its settings are that run's")
  model: TransformerConfig = nested(TransformerConfig)
  n_context: int = option(128, "number of tokens in a context, which is what the subject reads at a time, in its "
                               "training and in every later stage of the run", COUNT)
  n_steps: int = option(2000, "number of optimiser steps", COUNT)
  batch_contexts: int = option(32, "number of contexts in a step", COUNT)
  optimizer: str = option("adamw", "what turns gradients into steps: adamw; or muon, which moves the matrices of "
                                   "attention and MLPs along orthogonalised momentum (arXiv 2502.16982) and all else "
                                   "by AdamW, and needs fewer steps for the same loss", ("adamw", "muon"))
  learning_rate: float = option(3e-3, "learning rate at its peak", POSITIVE)
  final_learning_rate: float = option(1e-4, "learning rate at the last step, where the cosine ends", NOT_NEGATIVE)
  warmup_steps: int = option(100, "first steps, over which the learning rate rises linearly from 0", COUNT_OR_0)
  weight_decay: float = option(0.1, "weight decay, which applies to matrices only", NOT_NEGATIVE)
  beta2: float = option(0.99, "decay of AdamW's running mean of squared gradients", PROPER_FRACTION)
  clip_norm: float = option(1.0, "norm, over all parameters, to which larger gradients are scaled down", POSITIVE)
  compute_dtype: str = option("auto", "dtype of the matrix products; auto is bfloat16 on an accelerator and float32 on "
                                      "a CPU. Weights that are trained here are float32, those of a "
                                      "pretrained subject of this dtype", ("auto", "float32", "bfloat16"))
  scan_steps: int = option(8, "steps in one call of the compiled function, and between lines of metrics", COUNT)
  checkpoint_every_steps: int = option(400, "steps between checkpoints, from which an interrupted training resumes",
                                       COUNT)
  val_tokens: int = option(262_144, "number of held-out tokens that the reported loss is measured on; 0 takes all",
                           NOT_NEGATIVE)
  sample_tokens: int = option(128, "length, in tokens, of the text samples that are written when training ends; 0 "
                                   "writes none", COUNT_OR_0)
  seed: int = option(0, "seed of the initial weights and of the order of the data", SEED)

  def __post_init__(self) -> None:
    require_rules(self, "subject.")
    require(not (self.weights and self.shuffled_of), "subject.shuffled_of", self.shuffled_of,
            "is of a subject that monojax has trained, so it cannot be given together with subject.weights")

  @staticmethod
  def upgraded(values: dict) -> dict:
    """A saved configuration with the fields of this version. Version 0.1 kept `n_context` among the model's fields."""
    model = dict(values.get("model", {}))
    moved = {"n_context": model.pop("n_context")} if "n_context" in model else {}
    return {**values, "model": model, **moved}
