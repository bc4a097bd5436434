"""Settings of a dictionary: its recipe, its size and its training."""

import dataclasses

from monojax.config import option, require


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """One sparse autoencoder and how it is trained.

  The loss is the mean over the batch of [mean over elements of the squared error + l1_coefficient
  times the sum of the features], the reduction in which the paper's published coefficient is stated.
  """
  recipe: str = option("tm2023", "the published method to follow", ("tm2023",))
  n_features: int = option(4096, "features in the dictionary")
  l1_coefficient: float = option(4e-3, "weight of the summed L1 penalty beside the mean squared error; "
                                       "higher means sparser")
  batch_rows: int = option(8192, "activation vectors in a step")
  buffer_rows: int = option(262_144, "rows of the window in which rows are shuffled when read; a multiple of "
                                     "activations.chunk_rows; two windows are held in memory")
  n_steps: int = option(1000, "optimiser steps")
  learning_rate: float = option(1e-3, "Adam's learning rate")
  beta1: float = option(0.9, "Adam's first-moment decay")
  beta2: float = option(0.999, "Adam's second-moment decay")
  warmup_steps: int = option(0, "steps over which the learning rate rises linearly; the paper names none")
  l1_warmup_steps: int = option(0, "steps over which the penalty rises linearly; the paper names none")
  nested_sizes: tuple[int, ...] = option((), "for each size, the first so many features must also "
                                             "reconstruct alone (Matryoshka), which keeps broad features "
                                             "from splitting; the paper has none")
  nested_weight: float = option(1.0, "weight of each such part's loss beside the whole dictionary's")
  decay_fraction: float = option(0.0, "last part of the steps over which the learning rate falls linearly "
                                      "to 0; the paper holds it constant")
  encoder_init: str = option("kaiming", "start the encoder at random (the paper) or as the decoder's "
                                        "transpose", ("kaiming", "decoder_transpose"))
  geometric_median_rows: int = option(32_768, "rows whose geometric median starts the decoder bias")
  resample_every_steps: int = option(0, "steps between resamplings of dead features; 0 never resamples. The "
                                        "paper's is 25,000")
  resample_times: int = option(4, "how often to resample in all")
  dead_window_steps: int = option(0, "a feature is dead if it did not fire in so many steps before; 0 takes "
                                     "half of resample_every_steps, as in the paper")
  resample_rows: int = option(819_200, "inputs whose squared loss weighs the draw of new directions")
  resample_encoder_scale: float = option(0.2, "norm of a resampled encoder row over the mean alive norm")
  compute_dtype: str = option("auto", "of the matrix products; auto is bfloat16 on an accelerator and "
                                      "float32 on a CPU; master weights are float32",
                              ("auto", "float32", "bfloat16"))
  scan_steps: int = option(8, "steps in one compiled call")
  checkpoint_every_steps: int = option(500, "steps between checkpoints")
  val_tokens: int = option(262_144, "held-out tokens for L0, variance and cross-entropy recovered; 0 = all")
  seed: int = option(0, "of the initial weights, the order of the rows and resampling")

  def __post_init__(self):
    for name in ("n_features", "batch_rows", "buffer_rows", "n_steps", "scan_steps", "checkpoint_every_steps",
                 "geometric_median_rows", "resample_rows"):
      require(getattr(self, name) >= 1, f"sae.{name}", getattr(self, name), "must be positive")
    for name in ("l1_coefficient", "warmup_steps", "l1_warmup_steps",
                 "nested_weight", "resample_every_steps", "resample_times", "dead_window_steps",
                 "val_tokens"):
      require(getattr(self, name) >= 0, f"sae.{name}", getattr(self, name), "must not be negative")
    require(self.learning_rate > 0, "sae.learning_rate", self.learning_rate, "must be positive")
    require(all(0 < n < self.n_features for n in self.nested_sizes), "sae.nested_sizes",
            ",".join(map(str, self.nested_sizes)), "must lie between 0 and sae.n_features")
    require(0 <= self.decay_fraction <= 1, "sae.decay_fraction", self.decay_fraction, "must lie in 0..1")

  @property
  def window_steps(self):
    """Steps without firing after which a feature counts as dead."""
    return self.dead_window_steps or max(1, self.resample_every_steps // 2)

  @property
  def resample_steps(self):
    """The steps after which dead features are resampled."""
    times = range(1, self.resample_times + 1) if self.resample_every_steps else ()
    return tuple(i * self.resample_every_steps for i in times if i * self.resample_every_steps < self.n_steps)
