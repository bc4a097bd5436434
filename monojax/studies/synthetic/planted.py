"""Settings of activations that are made of planted features, whose truth is therefore known."""

import dataclasses

import numpy as np

from monojax.config import option, require, require_choices, require_not_negative, require_positive


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
  """A law of sparse features and the directions that they are added up in.

  The defaults are those of Sharkey et al. and of the toy data in arXiv 2309.08600: 512 unit directions in 256
  dimensions of which 5 fire on average, with strengths from U[0, 1].
  """
  n_features: int = option(512, "planted features")
  width: int = option(256, "numbers in an activation vector")
  frequency: str = option("decay", "how firing probabilities fall with a feature's number: all equal; by a factor "
                                   "each (decay); or rank^-exponent, rescaled to a range (zipf)",
                          ("equal", "decay", "zipf"))
  mean_active: float = option(5.0, "features that fire on a row on average, for equal and decay")
  decay: float = option(0.99, "factor from one feature's probability to the next one's")
  zipf_exponent: float = option(0.5, "exponent of the rank")
  max_probability: float = option(0.4, "probability of the most frequent feature under zipf")
  min_probability: float = option(5e-4, "of the rarest under zipf")
  strength: str = option("uniform", "strength of a feature that fires: U[min_strength, 1], or for normal "
                                    "relu(mean + std * N(0, 1))", ("uniform", "normal"))
  min_strength: float = option(0.0, "smallest strength, for uniform")
  first_strength: float = option(5.0, "mean strength of the first feature, for normal")
  last_strength: float = option(4.0, "and of the last; linear between them")
  strength_std_mean: float = option(0.5, "for normal: a feature's own std is |N(this, strength_std_std)|")
  strength_std_std: float = option(0.5, "see strength_std_mean")
  correlation_rank: int = option(0, "rank of the correlation between features that fire, thresholded Gaussians; 0 "
                                    "leaves them independent")
  correlation_scale: float = option(0.1, "std of the entries of its factor")
  n_roots: int = option(0, "trees of features, of which a child fires only where its parent does; 0 plants none")
  branching: int = option(4, "children of a node")
  depth: int = option(3, "levels below a root")
  child_probability: float = option(0.0, "probability that a node has children that fire, given that it fires, shared "
                                         "evenly among them; 0 leaves children to the law of frequencies")
  exclusive: bool = option(True, "whether of siblings at most one fires")
  spread_steps: int = option(0, "steps of Adam that spread the random directions apart")
  noise: float = option(0.0, "std of Gaussian noise added to every number")
  bias_norm: float = option(0.0, "length of a constant vector added to every row")
  seed: int = option(0, "of the directions and the law; the rows have a seed of their own")

  def __post_init__(self):
    require_choices(self, "planted.")
    require_positive(self, "planted.", "n_features", "width", "branching", "depth")
    require_not_negative(self, "planted.", "mean_active", "noise", "bias_norm", "correlation_rank",
                         "correlation_scale", "n_roots", "spread_steps", "strength_std_mean", "strength_std_std",
                         "seed", "min_strength")
    require(0 <= self.child_probability <= 1, "planted.child_probability", self.child_probability, "must lie in 0..1")
    require(self.min_strength <= 1, "planted.min_strength", self.min_strength, "must be at most 1")
    require(0 < self.decay <= 1, "planted.decay", self.decay, "must lie in 0..1")
    require(0 < self.min_probability <= self.max_probability <= 1, "planted.min_probability", self.min_probability,
            f"must be positive and at most max_probability={self.max_probability}, which is at most 1")
    require(not self.n_roots or self.tree_sizes()[-1] > 0, "planted.n_roots", self.n_roots,
            f"leaves no children among {self.n_features} features")
    require(self.probabilities().max() <= 1, "planted.mean_active", self.mean_active,
            f"makes the most frequent of {self.n_features} features fire with a probability above 1")

  def probabilities(self):
    """(N,) probability that each feature fires, the most frequent first."""
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

  def tree_sizes(self):
    """Features on each level of the trees, roots first; features are numbered level by level, the rest have none."""
    sizes, left = [min(self.n_roots, self.n_features)], self.n_features
    for _ in range(self.depth):
      left -= sizes[-1]
      sizes.append(min(sizes[-1] * self.branching, left // self.branching * self.branching))
    return sizes

  def levels(self):
    """(first feature, features, slice of their parents) of each level below the roots."""
    sizes = self.tree_sizes() if self.n_roots else [0]
    starts = np.cumsum([0, *sizes])
    return [(int(start), size, slice(int(above), int(above) + size // self.branching))
            for above, size, start in zip(starts, sizes[1:], starts[1:], strict=False) if size]

  def family(self):
    """(children,) numbers of all children, and of their parents."""
    pairs = [(np.arange(first, first + size), np.repeat(np.arange(parents.start, parents.stop), self.branching))
             for first, size, parents in self.levels()]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int),) * 2


# The configuration of SynthSAEBench-16k (arXiv 2602.14687). Seeded here, so the same law and not the same directions.
SYNTH_SAE_BENCH = PlantedConfig(
    n_features=16_384, width=768, frequency="zipf", strength="normal", correlation_rank=25, n_roots=128,
    spread_steps=100, bias_norm=0.5, seed=42)
