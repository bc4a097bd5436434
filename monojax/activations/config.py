"""Settings of the harvest."""

import dataclasses

from monojax.config import option, require, require_choices

SOURCES = ("store", "stream")
DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class HarvestConfig:
  """Which activations a dictionary sees, and how they are kept."""
  source: str = option("store", "store: on disk, computed once; stream: computed where they are used and kept "
                                "nowhere, for subjects that run faster than they can be read", SOURCES)
  site: str = option("layer.0.mlp.hidden", "the subject's site whose activations are stored")
  n_tokens: int = option(0, "training tokens to harvest from, in whole contexts chosen at random; "
                             "0 = all of them")
  tokens_per_context: int = option(0, "tokens sampled of each context, without replacement; 0 = all "
                                      "(the paper takes 250)")
  batch_contexts: int = option(64, "contexts in one forward pass of the subject")
  dtype: str = option("float16", "type of the stored numbers", DTYPES)
  shard_rows: int = option(65_536, "rows in one file of the store")
  chunk_rows: int = option(4_096, "rows read and checked at once; divides shard_rows")
  seed: int = option(0, "seed of the sampled tokens and of the shuffled order")

  def __post_init__(self):
    require(self.site, "site", self.site, "needs the name of a site, for instance layer.0.mlp.hidden")
    for name in ("n_tokens", "tokens_per_context", "seed"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
    for name in ("batch_contexts", "shard_rows", "chunk_rows"):
      require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
    require_choices(self, "activations.")
    require(self.shard_rows % self.chunk_rows == 0, "shard_rows", self.shard_rows,
            f"must be a multiple of chunk_rows={self.chunk_rows}")
