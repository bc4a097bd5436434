"""Settings of the harvest."""

import dataclasses

from monojax.config import option, require

DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class HarvestConfig:
  """Which activations are kept, and how they lie on disk."""
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
    require(self.dtype in DTYPES, "dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")
    require(self.shard_rows % self.chunk_rows == 0, "shard_rows", self.shard_rows,
            f"must be a multiple of chunk_rows={self.chunk_rows}")
