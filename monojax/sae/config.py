"""Settings of a dictionary: its recipe, its size and its training; and the grid of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from monojax.config import (
  COUNT,
  COUNT_OR_0,
  DECAY,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE,
  PROPER_FRACTION,
  SEED,
  Bounds,
  option,
  require,
  require_rules,
)
from monojax.sae.recipes import RECIPES, Recipe, leading_groups, recipe_of

# What settings that are None take where the recipe's publication does not say. "penalty_warmup" is a part of the steps.
_DEFAULT = {"sparsity_coefficient": 0.0, "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "adam_epsilon": 1e-8,
            "decay_fraction": 0.0, "clip_norm": 0.0, "ema_decay": 0.0, "penalty_warmup": 0.0, "threshold": 0.0,
            "bandwidth": 0.0}


def recipes_with(field: str) -> list[str]:
  """Names of the recipes that a setting means something to, where it does not to all."""
  return [recipe.name for recipe in RECIPES.values() if field == recipe.knob or field in recipe.uses]


def only(field: str, default: Any, help: str, rule: Sequence[str] | Bounds | None = None) -> Any:
  """An `option` that only some recipes use; its help begins with their names, as the recipes' records say."""
  return option(default, f"[{', '.join(recipes_with(field))}] {help}", rule)


# An `SAEConfig` in which no setting is None, which Python's types cannot tell from others.
Resolved = Any


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """One dictionary (a sparse autoencoder, transcoder or crosscoder) and how it is trained.

  Settings that are None take the value of the recipe's publication, see `resolved`.
  """
  # What is trained.
  recipe: str = option("tm2023", "the published recipe to follow. " + ". ".join(
      f"{recipe.name}: {recipe.about}" for recipe in RECIPES.values()))
  n_features: int = option(4096, "features in the dictionary", COUNT)
  reads: tuple[str, ...] = option((), "sites of the subject that are read, of those stored; activations.site if none "
                                      "are named")
  writes: tuple[str, ...] = option((), "sites that are reconstructed, by default those that are read: one makes an "
                                       "autoencoder, several make a crosscoder. Others than are read make a transcoder")
  skip: bool = option(False, "also map the input to the output by a matrix of its own (skip transcoders)")
  causal: bool = option(False, "each feature reads only one of the sites read, and writes the site with the same "
                               "number and those after it. From the inputs of MLPs to their outputs, layer by layer, "
                               "this is a cross-layer transcoder; of the same sites, a weakly causal crosscoder")
  start_from: str = option("", "folder of a finished dictionary whose parameters are the start, instead of random "
                               "ones; or another tool's, or one on the Hugging Face hub (hf:NAME/FOLDER)")
  seed: int = option(0, "seed of the initial weights, of the order of the rows and of resampling", SEED)

  # How sparse it gets: each recipe has one of these two.
  k: int = only("k", 32, "features of a row that are kept: exactly for topk, about for gemmascope2, on average over a "
                "batch for the others", COUNT)
  sparsity_coefficient: float | None = only(
      "sparsity_coefficient", None, "weight of the recipe's sparsity penalty: the higher, the fewer features fire. Its "
      "scale differs from recipe to recipe", NOT_NEGATIVE)
  penalty_warmup_steps: int | None = only(
      "sparsity_coefficient", None, "steps over which the penalty rises linearly from 0 to that weight", COUNT_OR_0)

  # The data of a step, and the optimiser.
  n_steps: int = option(1000, "optimiser steps", COUNT)
  batch_rows: int = option(8192, "activation vectors (rows) in a step", COUNT)
  buffer_rows: int = option(262_144, "rows of the window within which rows are shuffled when a store is read, a "
                                     "multiple of activations.chunk_rows; two windows are held in memory", COUNT)
  start_rows: int = option(32_768, "rows of the sample that the start is measured on: the decoder's bias begins at "
                                   "their geometric median, and their norms set the scale of the data", COUNT)
  learning_rate: float | None = option(None, "Adam's learning rate at its peak", POSITIVE)
  warmup_steps: int = option(0, "first steps, over which the learning rate rises linearly from 0", COUNT_OR_0)
  decay_fraction: float | None = option(None, "last part of the steps, 0 to 1, over which the learning rate falls "
                                              "linearly to 0", FRACTION)
  beta1: float | None = option(None, "decay of Adam's running mean of gradients", DECAY)
  beta2: float | None = option(None, "decay of Adam's running mean of squared gradients", PROPER_FRACTION)
  adam_epsilon: float | None = option(None, "Adam's epsilon", POSITIVE)
  clip_norm: float | None = option(None, "norm, over all parameters, to which larger gradients are scaled down; 0 for "
                                         "no limit", NOT_NEGATIVE)
  ema_decay: float | None = option(None, "decay of a running mean of the weights, which is what is kept in the end. It "
                                         "never spans more than about the last tenth of the steps. 0 keeps the last "
                                         "weights", DECAY)

  # What can be added to a recipe's loss.
  group_sizes: tuple[int, ...] = option((), "sizes n of leading groups: the first n features must also reconstruct "
                                            "alone (Matryoshka), which keeps broad features from splitting. The "
                                            "recipes matryoshka, gemmascope2 and tsae have sizes of their own if "
                                            "none are named", COUNT)
  group_weight: float = option(1.0, "weight of each group's loss beside the whole dictionary's; tsae takes a quarter "
                                    "of it", NOT_NEGATIVE)
  group_weights: tuple[float, ...] = option((), "a weight for each group in its place. Balance Matryoshka (arXiv "
                                                "2505.11756) gives smaller groups smaller ones", NOT_NEGATIVE)
  orthogonality_coefficient: float = option(
      0.0, "weight of a penalty on directions that overlap: the squared products of different features' directions; 0 "
      "drops it", NOT_NEGATIVE)
  kl_coefficient: float = option(
      0.0, "weight of end-to-end training: how far the subject's predictions move when the reconstruction takes the "
      "place of what it reconstructs, KL(subject as it is || subject with the reconstruction). In each step the "
      "divergence is first rescaled to the size of the recipe's reconstruction error, so that 1 makes both count "
      "alike; 0 drops it. Batches are then whole contexts, and the subject is run in every step", NOT_NEGATIVE)

  # Settings of single recipes.
  encoder_init: str = only("encoder_init", "kaiming", "start the encoder at random or as the decoder's transpose",
                           ("kaiming", "decoder_transpose"))
  threshold: float | None = only("threshold", None, "where the features' thresholds start", NOT_NEGATIVE)
  bandwidth: float | None = only("bandwidth", None, "width of the band around a threshold in which it learns",
                                 NOT_NEGATIVE)
  pull_coefficient: float = only(
      "pull_coefficient", 3e-6, "weight of the pull that draws silent features to their thresholds", NOT_NEGATIVE)
  aux_coefficient: float = only(
      "aux_coefficient", 1 / 32, "weight of the loss that revives dead features by fitting them to what the others "
      "leave (AuxK); 0 drops it", NOT_NEGATIVE)
  aux_k: int = only("aux_k", 0, "dead features of a row used for that; 0 takes a power of two near half the width",
                    COUNT_OR_0)
  multi_k_coefficient: float = only(
      "multi_k_coefficient", 0.0, "weight of a second loss, with four times as many features kept, so that the "
      "dictionary also works with more than k; Multi-TopK takes 1/8, 0 drops it", NOT_NEGATIVE)
  l0_coefficient: float = only(
      "l0_coefficient", 0.1, "weight of the penalty on a row's distance from k features, for each number written",
      POSITIVE)
  p_end: float = only("p_end", 0.2, "the power of the penalty at the end of training; it is 1 at the start", POSITIVE)
  cosine_coefficient: float = only(
      "cosine_coefficient", 0.25, "weight of the penalty on each feature's largest cosine with another one", POSITIVE)
  cosine_chunk: int = only("cosine_chunk", 8192, "features that are compared with each other", COUNT)
  contrast_coefficient: float = only(
      "contrast_coefficient", 0.1, "weight of the loss by which the leading features must tell the earlier token of "
      "their row's context among those of all rows; 0 drops it", NOT_NEGATIVE)
  cosine_every_steps: int = only("cosine_every_steps", 5, "steps from one such comparison to the next", COUNT)

  # Resampling: dead features are given new directions, those of rows that are reconstructed badly.
  resample_every_steps: int = option(0, "steps between resamplings of dead features; 0 for none. The publication of "
                                        "tm2023 takes 25,000", COUNT_OR_0)
  resample_times: int = option(4, "resamplings in all", COUNT_OR_0)
  resample_rows: int = option(819_200, "rows that a resampling draws new directions from", COUNT)
  resample_encoder_scale: float = option(0.2, "norm of a resampled encoder row, over the mean norm of the alive ones",
                                         NOT_NEGATIVE)
  dead_window_steps: int = option(0, "steps without firing after which a feature counts as dead; 0 takes half of "
                                     "resample_every_steps or, without resampling, 10 million rows", COUNT_OR_0)

  # How a step is computed: none of these changes what a step means.
  code: str = option("auto", "whether a step computes, after the encoder, every feature of a row (dense) or only those "
                             "that fire (sparse). The result is the same; auto takes what is faster here",
                     ("auto", "dense", "sparse"))
  slots: int = option(0, "number of firing features a row, on average over a batch, that a sparse code sets memory "
                         "aside for. A batch in which more fire is computed densely instead, which is slower and gives "
                         "the same result. 0 takes what the recipe usually needs: k for topk, about 64 for most",
                         COUNT_OR_0)
  accumulate: int = option(1, "parts in which a batch is computed one after the other, to save memory", COUNT)
  compute_dtype: str = option("auto", "dtype of the matrix products; auto is bfloat16 on an accelerator and float32 on "
                                      "a CPU. Weights are always float32", ("auto", "float32", "bfloat16"))
  scan_steps: int = option(8, "steps in one call of the compiled function, and between lines of metrics", COUNT)
  checkpoint_every_steps: int = option(500, "steps between checkpoints, from which an interrupted run goes on", COUNT)

  # How it is judged afterwards.
  val_tokens: int = option(262_144, "held-out tokens on which L0, explained variance and recovered cross-entropy are "
                                    "measured; 0 for all", NOT_NEGATIVE)

  def __post_init__(self) -> None:
    require_rules(self, "sae.")
    require(self.batch_rows % self.accumulate == 0, "sae.accumulate", self.accumulate,
            f"must divide sae.batch_rows={self.batch_rows}")
    require(all(n < self.n_features for n in self.group_sizes)
            and list(self.group_sizes) == sorted(set(self.group_sizes)), "sae.group_sizes",
            ",".join(map(str, self.group_sizes)), "must rise between 0 and sae.n_features")
    n_groups = len(leading_groups(self))
    require(len(self.group_weights) in (0, n_groups), "sae.group_weights", ",".join(map(str, self.group_weights)),
            f"needs one for each of the groups, of which there are {n_groups}")
    if "." not in self.recipe:  # a recipe of one's own is checked where its record is given
      self._require_fits(recipe_of(self.recipe))

  def _require_fits(self, recipe: Recipe) -> None:
    """Raises `InputError` for a setting that the recipe cannot follow."""
    for name in ("threshold", "bandwidth"):
      require(name not in recipe.uses or getattr(self, name) != 0, f"sae.{name}", getattr(self, name),
              f"must be positive for {self.recipe}")
    if recipe.knob == "k":
      require(self.k <= self.n_features, "sae.k", self.k, f"must not exceed sae.n_features={self.n_features}")
      require(not self.sparsity_coefficient, "sae.sparsity_coefficient", self.sparsity_coefficient,
              f"{self.recipe} has no such penalty; sae.k makes it sparser or denser")
    require(not self.multi_k_coefficient or "multi_k_coefficient" in recipe.uses, "sae.multi_k_coefficient",
            self.multi_k_coefficient, f"is for the recipe {', '.join(recipes_with('multi_k_coefficient'))}")

  def resolved(self, recipe: Recipe | None = None) -> Resolved:
    """These settings with the recipe's published values in place of None.

    Args:
      recipe: the record, for a recipe that is not part of monojax.

    Raises:
      InputError: there is no such recipe, or it cannot follow these settings.
    """
    record = recipe_of(self.recipe, recipe)
    self._require_fits(record)
    unknown = sorted(set(record.published) - set(_DEFAULT))
    require(not unknown, f"{record.name}.published", unknown, "can set only what is None by default in SAEConfig: "
            + ", ".join(_DEFAULT))
    values: dict[str, Any] = {**_DEFAULT, **record.published}
    values["penalty_warmup_steps"] = round(values.pop("penalty_warmup") * self.n_steps)
    unset: dict[str, Any] = {name: value for name, value in values.items() if getattr(self, name) is None}
    return dataclasses.replace(self, **unset)

  @property
  def knob(self) -> str:
    """The setting that makes this recipe's dictionaries sparser or denser."""
    return recipe_of(self.recipe).knob

  @property
  def sparsity(self) -> float:
    """The value of the setting that `knob` names."""
    return getattr(self.resolved(), self.knob)

  def at_sparsities(self, values: Sequence[float]) -> list[SAEConfig]:
    """These settings at each of some values of the setting that `knob` names."""
    if self.knob == "k":
      for value in values:
        require(value == int(value) and value >= 1, "sae.k", value, f"{self.recipe} keeps a whole number of features")
      values = [int(value) for value in values]
    changes: list[dict[str, Any]] = [{self.knob: value} for value in values]
    return [dataclasses.replace(self, **change) for change in changes]

  def at_grid(self) -> list[SAEConfig]:
    """These settings at the recipe's own grid of sparsities, without values of k that exceed the features."""
    grid = recipe_of(self.recipe).grid
    return self.at_sparsities([value for value in grid if self.knob != "k" or value <= self.n_features])

  @property
  def window_steps(self) -> int:
    """Steps without firing after which a feature counts as dead."""
    if self.dead_window_steps:
      return self.dead_window_steps
    return max(1, self.resample_every_steps // 2) if self.resample_every_steps else -(-10_000_000 // self.batch_rows)

  def wired(self, site: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sites read, sites written), where `site` is what a dictionary is of unless it names others."""
    reads = self.reads or (site,)
    return reads, self.writes or reads

  @property
  def resample_steps(self) -> range:
    """The steps after which dead features are resampled."""
    every = self.resample_every_steps or self.n_steps
    return range(every, min(every * self.resample_times + 1, self.n_steps), every)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """A grid of dictionaries trained on one pass over the data; what is left empty stays as --sae says.

  With nothing named at all, the grid is that of sparsities which the recipe's record holds.
  """
  name: str = option("sweep", "folder of this sweep in the run's sweeps/")
  sparsities: tuple[float, ...] = option(
      (), f"values of what makes the recipe sparser or denser: sae.k for {', '.join(recipes_with('k'))}, "
      "sae.sparsity_coefficient for the others. The recipe's own grid if no axis of the sweep is named", NOT_NEGATIVE)
  learning_rates: tuple[float, ...] = option((), "values of sae.learning_rate", POSITIVE)
  n_features: tuple[int, ...] = option((), "values of sae.n_features", COUNT)
  seeds: tuple[int, ...] = option((), "values of sae.seed for the weights; the order of the rows is that of sae.seed",
                                  SEED)

  def __post_init__(self) -> None:
    require_rules(self, "sweep.")
    require(self.name.strip(".") and "/" not in self.name, "sweep.name", self.name, "must be a folder's name")

  def configs(self, base: SAEConfig) -> list[SAEConfig]:
    """Every combination, as resolved `SAEConfig`s."""
    if not (self.sparsities or self.learning_rates or self.n_features or self.seeds):
      return [config.resolved() for config in base.at_grid() or [base]]
    found = [base]
    axes: dict[str, Any] = {"n_features": self.n_features, "learning_rate": self.learning_rates, "seed": self.seeds}
    for field, values in axes.items():
      found = [dataclasses.replace(config, **{field: value}) for config in found
               for value in values or (getattr(config, field),)]
    found = [denser for config in found for denser in config.at_sparsities(self.sparsities) or [config]]
    return [config.resolved() for config in found]
