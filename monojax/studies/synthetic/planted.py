"""Settings of planted features: activations are made of them, so that the truth which a dictionary is to find is known.

In this module N is planted features, and J is children in trees of features.
"""

import dataclasses

import numpy as np

from monojax.config import (
  COUNT,
  COUNT_OR_0,
  FRACTION,
  NOT_NEGATIVE,
  POSITIVE_FRACTION,
  SEED,
  Bounds,
  option,
  require,
  require_rules,
)


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
  """How often planted features fire, how strongly, and in which directions they are added up to rows of activations.

  The defaults are those of Sharkey et al. and of the toy data in arXiv 2309.08600: 512 unit directions in 256
  dimensions, of which 5 fire on a row on average, with strengths from U[0, 1].
  """
  n_features: int = option(512, "number of planted features", Bounds(at_least=1, at_most=2**24))
  width: int = option(256, "number of numbers in a row", COUNT)
  frequency: str = option("decay", "how the probability that a feature fires depends on the feature's number: it is "
                                   "equal for all; falls by a factor from each feature to the next (decay); or falls "
                                   "as a power of the number, rescaled to a range (zipf)",
                          ("equal", "decay", "zipf"))
  mean_active: float = option(5.0, "number of features that fire on a row on average, for equal and decay",
                              NOT_NEGATIVE)
  decay: float = option(0.99, "factor from one feature's probability to that of the next, for decay", POSITIVE_FRACTION)
  zipf_exponent: float = option(0.5, "exponent of the power, for zipf", NOT_NEGATIVE)
  max_probability: float = option(0.4, "probability of the most frequent feature, for zipf", POSITIVE_FRACTION)
  min_probability: float = option(5e-4, "probability of the rarest feature, for zipf", POSITIVE_FRACTION)
  strength: str = option("uniform", "distribution of the strength of a feature that fires: U[min_strength, 1] "
                                    "(uniform), or relu(mean + std * N(0, 1)) (normal)", ("uniform", "normal"))
  min_strength: float = option(0.0, "smallest strength, for uniform", FRACTION)
  first_strength: float = option(5.0, "mean strength of the first feature, for normal; means change linearly from the "
                                      "first feature to the last", NOT_NEGATIVE)
  last_strength: float = option(4.0, "mean strength of the last feature, for normal", NOT_NEGATIVE)
  strength_std_mean: float = option(0.5, "mean of the normal distribution from which each feature's standard deviation "
                                         "is drawn, for normal; its absolute value is taken", NOT_NEGATIVE)
  strength_std_std: float = option(0.5, "standard deviation of the same distribution", NOT_NEGATIVE)
  correlation_rank: int = option(0, "rank of the correlation between features: they fire where correlated Gaussian "
                                    "variables exceed thresholds; 0 leaves features independent", COUNT_OR_0)
  correlation_scale: float = option(0.1, "standard deviation of the entries of the correlation's factor, a matrix of "
                                         "n_features x correlation_rank", NOT_NEGATIVE)
  n_roots: int = option(0, "number of trees of features, in which a child fires only where its parent does; 0 plants "
                           "none", COUNT_OR_0)
  branching: int = option(4, "number of children of a feature in a tree", COUNT)
  depth: int = option(3, "number of levels below the root of a tree", Bounds(at_least=1, at_most=64))
  child_probability: float = option(0.0, "probability that any child of a feature fires where the feature does, shared "
                                         "evenly among its children; 0 gives children the probability that frequency "
                                         "says", FRACTION)
  exclusive: bool = option(True, "whether at most one child of a feature fires on a row")
  spread_steps: int = option(0, "steps of Adam by which the random directions are moved apart", COUNT_OR_0)
  noise: float = option(0.0, "standard deviation of Gaussian noise that is added to every number", NOT_NEGATIVE)
  bias_norm: float = option(0.0, "length of a constant vector that is added to every row", NOT_NEGATIVE)
  seed: int = option(0, "seed of the directions and of what else is random about features; rows have another seed",
                     SEED)

  def __post_init__(self) -> None:
    require_rules(self, "planted.")
    require(self.min_probability <= self.max_probability, "planted.min_probability", self.min_probability,
            f"must be at most max_probability={self.max_probability}")
    require(not self.n_roots or self.tree_sizes()[-1] > 0, "planted.n_roots", self.n_roots,
            f"leaves no children among {self.n_features} features")
    require(self.probabilities().max() <= 1, "planted.mean_active", self.mean_active,
            f"makes the most frequent of {self.n_features} features fire with a probability above 1")

  def probabilities(self) -> np.ndarray:
    """The probability that each feature fires, (N,); outside of trees the most frequent feature is first."""
    rank_N = np.arange(self.n_features)
    if self.frequency == "zipf":
      law_N = (rank_N + 1.0) ** -self.zipf_exponent
      part_N = (law_N - law_N[-1]) / max(law_N[0] - law_N[-1], 1e-30)
      probability_N = self.min_probability + part_N * (self.max_probability - self.min_probability)
    else:
      law_N = np.ones(self.n_features) if self.frequency == "equal" else self.decay ** rank_N
      probability_N = law_N / law_N.sum() * self.mean_active
    for first, size, parents in self.levels() if self.child_probability else ():
      each_J = probability_N[parents] * self.child_probability / self.branching
      probability_N[first:first + size] = np.repeat(each_J, self.branching)
    return probability_N

  def tree_sizes(self) -> list[int]:
    """The number of features on each level of the trees, roots first.

    Features are numbered level by level. Those that remain after the last level are in no tree.
    """
    sizes, left = [min(self.n_roots, self.n_features)], self.n_features
    for _ in range(self.depth):
      left -= sizes[-1]
      sizes.append(min(sizes[-1] * self.branching, left // self.branching * self.branching))
    return sizes

  def levels(self) -> list[tuple[int, int, slice]]:
    """For each level below the roots: its first feature, the number of its features, and the slice of their parents."""
    sizes = self.tree_sizes() if self.n_roots else [0]
    starts = np.cumsum([0, *sizes])
    return [(int(start), size, slice(int(above), int(above) + size // self.branching))
            for above, size, start in zip(starts, sizes[1:], starts[1:], strict=False) if size]

  def family(self) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of all children, (J,), and the number of the parent of each, (J,)."""
    children = [np.arange(first, first + size) for first, size, _ in self.levels()]
    parents = [np.repeat(np.arange(above.start, above.stop), self.branching) for *_, above in self.levels()]
    return (np.concatenate(children), np.concatenate(parents)) if children else (np.zeros(0, int), np.zeros(0, int))


# The configuration of SynthSAEBench-16k (arXiv 2602.14687). Directions are drawn here, so that they are not the same as
# those of the benchmark; how often and how strongly features fire is.
SYNTH_SAE_BENCH = PlantedConfig(
    n_features=16_384, width=768, frequency="zipf", strength="normal", correlation_rank=25, n_roots=128,
    spread_steps=100, bias_norm=0.5, seed=42)
