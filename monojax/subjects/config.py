"""Settings of the subject: its architecture and its training."""

import dataclasses

from monojax.config import nested, option, require, require_not_negative, require_positive


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A decoder-only transformer; the defaults are the paper's one-layer model."""
  n_layers: int = option(1, "blocks of attention and MLP")
  d_model: int = option(128, "residual width")
  n_heads: int = option(4, "attention heads")
  d_mlp: int = option(512, "MLP width: the dictionary's input at `layer.L.mlp.hidden`")
  vocab_size: int = option(0, "tokens in the vocabulary; 0 takes the tokenizer's")

  def __post_init__(self):
    require_positive(self, "subject.model.", "n_layers", "d_model", "n_heads", "d_mlp")
    require(self.d_model % self.n_heads == 0, "subject.model.n_heads", self.n_heads,
            f"must divide d_model={self.d_model}")
    require(self.d_model // self.n_heads % 2 == 0, "subject.model.n_heads", self.n_heads,
            "must leave heads of even width, which rotary positions need")


@dataclasses.dataclass(frozen=True)
class SubjectConfig:
  """Training a subject from nothing: AdamW, warm-up then cosine, clipped gradients."""
  model: TransformerConfig = nested(TransformerConfig)
  n_context: int = option(128, "tokens in a context: what the subject is trained on, and what every later stage of the "
                               "run gives it to read")
  n_steps: int = option(2000, "optimiser steps")
  batch_contexts: int = option(32, "contexts in a step")
  learning_rate: float = option(3e-3, "peak learning rate")
  final_learning_rate: float = option(1e-4, "learning rate that the cosine ends at")
  warmup_steps: int = option(100, "steps of linear warm-up")
  weight_decay: float = option(0.1, "AdamW's decay, on matrices only")
  beta2: float = option(0.99, "AdamW's second-moment decay")
  clip_norm: float = option(1.0, "largest global gradient norm")
  compute_dtype: str = option("auto", "auto is bfloat16 on an accelerator and float32 on a CPU; master "
                                      "weights are float32", ("auto", "float32", "bfloat16"))
  scan_steps: int = option(8, "steps in one compiled call")
  checkpoint_every_steps: int = option(400, "steps between checkpoints")
  val_tokens: int = option(262_144, "held-out tokens that the reported loss is measured on; 0 takes all")
  sample_tokens: int = option(128, "length of the text samples written when training ends; 0 writes none")
  seed: int = option(0, "of the initial weights and the order of the data")

  def __post_init__(self):
    require_positive(self, "subject.", "n_steps", "batch_contexts", "scan_steps", "checkpoint_every_steps",
                     "learning_rate", "n_context")
    require_not_negative(self, "subject.", "warmup_steps", "val_tokens", "sample_tokens", "seed")

  @staticmethod
  def upgraded(values: dict) -> dict:
    """A saved configuration in today's fields. Version 0.1 kept the context's length with the model."""
    model = dict(values.get("model", {}))
    moved = {"n_context": model.pop("n_context")} if "n_context" in model else {}
    return {**values, "model": model, **moved}
