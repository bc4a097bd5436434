"""Settings of a dictionary: its recipe, its size and its training."""

import dataclasses

from monojax.config import option, require, require_choices, require_not_negative, require_positive

# What each recipe's publication sets, where the settings say nothing. Steps are fractions of the run.
PUBLISHED = {
    "tm2023": {"sparsity_coefficient": 4e-3, "learning_rate": 1e-3},
    "apr2024": {"sparsity_coefficient": 5.0, "learning_rate": 5e-5, "decay_fraction": 0.2, "clip_norm": 1.0,
                "penalty_warmup": 0.05},
    "gated": {"sparsity_coefficient": 0.1, "learning_rate": 5e-5, "beta1": 0.0},
    "topk": {"learning_rate": 1e-4, "adam_epsilon": 6.25e-10, "ema_decay": 0.999},
    "batchtopk": {"learning_rate": 3e-4, "beta2": 0.99},
    "matryoshka": {"learning_rate": 3e-4, "beta2": 0.99},
    "jumprelu": {"sparsity_coefficient": 1e-2, "learning_rate": 7e-5, "beta1": 0.0, "threshold": 1e-3,
                 "bandwidth": 1e-3},
    "jan2025": {"sparsity_coefficient": 20.0, "learning_rate": 2e-4, "decay_fraction": 0.2, "clip_norm": 1.0,
                "penalty_warmup": 1.0, "threshold": 1.10517, "bandwidth": 2.0},
}
_DEFAULT = {"sparsity_coefficient": 0.0, "beta1": 0.9, "beta2": 0.999, "adam_epsilon": 1e-8, "decay_fraction": 0.0,
            "clip_norm": 0.0, "ema_decay": 0.0, "threshold": 0.0, "bandwidth": 0.0}


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """One sparse autoencoder and how it is trained.

  Settings that are None take the value of the recipe's publication.
  """
  recipe: str = option("tm2023", "the published method to follow", tuple(PUBLISHED))
  n_features: int = option(4096, "features in the dictionary")
  sparsity_coefficient: float | None = option(None, "weight of the recipe's sparsity penalty; higher means sparser")
  k: int = option(32, "features kept of each row, on average over a batch for batchtopk and matryoshka")
  reads: tuple[str, ...] = option((), "sites that are read, of those stored; default: activations.site")
  writes: tuple[str, ...] = option((), "sites that are reconstructed: default those that are read (an autoencoder of "
                                       "one, a crosscoder of several); others make a transcoder")
  batch_rows: int = option(8192, "activation vectors in a step")
  buffer_rows: int = option(262_144, "rows of the window in which rows are shuffled when read; a multiple of "
                                     "activations.chunk_rows; two windows are held in memory")
  n_steps: int = option(1000, "optimiser steps")
  learning_rate: float | None = option(None, "Adam's learning rate")
  beta1: float | None = option(None, "Adam's first-moment decay")
  beta2: float | None = option(None, "Adam's second-moment decay")
  adam_epsilon: float | None = option(None, "Adam's epsilon")
  clip_norm: float | None = option(None, "gradients are scaled down to this global norm; 0 never")
  ema_decay: float | None = option(None, "decay of a running mean of the weights, kept instead of the last ones; "
                                         "0 keeps the last")
  warmup_steps: int = option(0, "steps over which the learning rate rises linearly")
  penalty_warmup_steps: int | None = option(None, "steps over which the penalty rises linearly")
  decay_fraction: float | None = option(None, "last part of the steps over which the learning rate falls linearly "
                                              "to 0")
  group_sizes: tuple[int, ...] = option((), "for each size, the first so many features must also "
                                            "reconstruct alone (Matryoshka), which keeps broad features "
                                            "from splitting; the recipe matryoshka has sizes of its own")
  group_weight: float = option(1.0, "weight of each such group's loss beside the whole dictionary's")
  encoder_init: str = option("kaiming", "start the encoder at random (tm2023) or as the decoder's "
                                        "transpose, where the recipe leaves a choice", ("kaiming", "decoder_transpose"))
  start_rows: int = option(32_768, "rows that the decoder bias (their geometric median) and the data's scale come from")
  threshold: float | None = option(None, "where JumpReLU's thresholds start")
  bandwidth: float | None = option(None, "width of the band in which JumpReLU's thresholds learn")
  pull_coefficient: float = option(3e-6, "jan2025: weight of the pull on silent features")
  aux_coefficient: float = option(1 / 32, "TopK family: weight of the loss that revives dead features; 0 drops it")
  aux_k: int = option(0, "TopK family: dead features used for it; 0 takes a power of two near half the width")
  multi_k_coefficient: float = option(0.0, "topk: weight of the loss with four times as many features kept, so that "
                                           "the dictionary works with more than k; Multi-TopK's is 1/8, 0 drops it")
  orthogonality_coefficient: float = option(0.0, "weight of the squared products of different features' directions")
  skip: bool = option(False, "also map the input to the output by a matrix of its own (skip transcoders)")
  resample_every_steps: int = option(0, "steps between resamplings of dead features; 0 never resamples. "
                                        "tm2023's is 25,000")
  resample_times: int = option(4, "how often to resample in all")
  dead_window_steps: int = option(0, "a feature is dead if it did not fire in so many steps before; 0 takes "
                                     "half of resample_every_steps, as tm2023 does, or 10 million rows")
  resample_rows: int = option(819_200, "inputs whose squared loss weighs the draw of new directions")
  resample_encoder_scale: float = option(0.2, "norm of a resampled encoder row over the mean alive norm")
  code: str = option("auto", "whether a step computes every feature of each row after the encoder, or only those "
                             "that fire; the result is the same", ("auto", "dense", "sparse"))
  slots: int = option(0, "features a row, on average over a batch, that a sparse code has room for; a batch with more "
                         "is computed densely. 0 takes k for topk, 192 for jan2025, twice k but at least 64 for "
                         "topk's relatives, 64 otherwise")
  accumulate: int = option(1, "parts in which a batch is computed, one after the other, to save memory")
  compute_dtype: str = option("auto", "of the matrix products; auto is bfloat16 on an accelerator and "
                                      "float32 on a CPU; master weights are float32",
                              ("auto", "float32", "bfloat16"))
  scan_steps: int = option(8, "steps in one compiled call")
  checkpoint_every_steps: int = option(500, "steps between checkpoints")
  val_tokens: int = option(262_144, "held-out tokens for L0, variance and cross-entropy recovered; 0 = all")
  seed: int = option(0, "of the initial weights, the order of the rows and resampling")

  def __post_init__(self):
    require_choices(self, "sae.")
    require_positive(self, "sae.", "n_features", "batch_rows", "buffer_rows", "n_steps", "scan_steps",
                     "checkpoint_every_steps", "start_rows", "resample_rows", "k", "accumulate")
    require_not_negative(self, "sae.", "sparsity_coefficient", "warmup_steps", "penalty_warmup_steps", "group_weight",
                         "clip_norm", "resample_every_steps", "resample_times", "dead_window_steps", "val_tokens",
                         "aux_coefficient", "aux_k", "pull_coefficient", "orthogonality_coefficient",
                         "multi_k_coefficient", "slots", "threshold", "bandwidth")
    require(self.batch_rows % self.accumulate == 0, "sae.accumulate", self.accumulate,
            f"must divide sae.batch_rows={self.batch_rows}")
    require(self.learning_rate is None or self.learning_rate > 0, "sae.learning_rate", self.learning_rate,
            "must be positive")
    require(self.knob != "k" or self.k <= self.n_features, "sae.k", self.k,
            f"must not exceed sae.n_features={self.n_features}")
    require(all(0 < n < self.n_features for n in self.group_sizes)
            and list(self.group_sizes) == sorted(set(self.group_sizes)), "sae.group_sizes",
            ",".join(map(str, self.group_sizes)), "must rise between 0 and sae.n_features")
    require(0 <= (self.decay_fraction or 0) <= 1, "sae.decay_fraction", self.decay_fraction, "must lie in 0..1")
    for name in ("beta1", "beta2", "ema_decay"):
      require(0 <= (getattr(self, name) or 0) < 1, f"sae.{name}", getattr(self, name), "must be at least 0 and below 1")
    for name in ("threshold", "bandwidth") if self.recipe in ("jumprelu", "jan2025") else ():
      require(getattr(self, name) != 0, f"sae.{name}", getattr(self, name), f"must be positive for {self.recipe}")
    require(self.knob != "k" or not self.sparsity_coefficient, "sae.sparsity_coefficient", self.sparsity_coefficient,
            f"{self.recipe} has no such penalty; sae.k makes it sparser or denser")
    require(not self.multi_k_coefficient or self.recipe == "topk", "sae.multi_k_coefficient", self.multi_k_coefficient,
            "is for the recipe topk")

  def resolved(self):
    """These settings with the recipe's published values where they say nothing."""
    published = _DEFAULT | PUBLISHED[self.recipe]
    published["penalty_warmup_steps"] = round(published.pop("penalty_warmup", 0.0) * self.n_steps)
    return dataclasses.replace(self, **{name: value for name, value in published.items()
                                        if getattr(self, name) is None})

  @property
  def knob(self):
    """The field that makes this recipe's dictionaries sparser or denser."""
    return "k" if self.recipe in ("topk", "batchtopk", "matryoshka") else "sparsity_coefficient"

  @property
  def sparsity(self):
    """That field's value."""
    return getattr(self.resolved(), self.knob)

  def at_sparsities(self, values):
    """These settings at each of some sparsities."""
    if self.knob == "k":
      for value in values:
        require(value == int(value) and value >= 1, "sae.k", value, f"{self.recipe} keeps a whole number of features")
      values = [int(value) for value in values]
    return [dataclasses.replace(self, **{self.knob: value}) for value in values]

  @property
  def window_steps(self):
    """Steps without firing after which a feature counts as dead."""
    if self.dead_window_steps:
      return self.dead_window_steps
    return max(1, self.resample_every_steps // 2) if self.resample_every_steps else -(-10_000_000 // self.batch_rows)

  def wired(self, site):
    """(sites read, sites written), where `site` is what a dictionary is of unless it names others."""
    reads = self.reads or (site,)
    return reads, self.writes or reads

  @property
  def resample_steps(self):
    """The steps after which dead features are resampled."""
    times = range(1, self.resample_times + 1) if self.resample_every_steps else ()
    return tuple(i * self.resample_every_steps for i in times if i * self.resample_every_steps < self.n_steps)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """A grid of dictionaries trained on one pass over the data; an empty axis stays as --sae says."""
  name: str = option("sweep", "folder of this sweep in the run's sweeps/")
  sparsities: tuple[float, ...] = option((), "values of sae.sparsity_coefficient, or of sae.k in the TopK family")
  learning_rates: tuple[float, ...] = option((), "values of sae.learning_rate")
  n_features: tuple[int, ...] = option((), "values of sae.n_features")
  seeds: tuple[int, ...] = option((), "values of sae.seed, for weights; the order of the rows is sae.seed's")

  def __post_init__(self):
    require(self.name.strip(".") and "/" not in self.name, "sweep.name", self.name, "must be a folder's name")

  def configs(self, base):
    """Every combination, as resolved `SAEConfig`s."""
    found = [base]
    for field, values in (("n_features", self.n_features), ("learning_rate", self.learning_rates),
                          ("seed", self.seeds)):
      found = [dataclasses.replace(config, **{field: value}) for config in found
               for value in values or (getattr(config, field),)]
    found = [denser for config in found for denser in config.at_sparsities(self.sparsities) or [config]]
    return [config.resolved() for config in found]
