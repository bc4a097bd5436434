"""Settings of the harvest."""

import dataclasses

from monojax.config import option, require, require_choices, require_not_negative

SOURCES = ("store", "stream")
DTYPES = ("float16", "bfloat16", "float32", "int8")
COMPRESSIONS = ("none", "zstd")


@dataclasses.dataclass(frozen=True)
class HarvestConfig:
  """Which activations a dictionary sees, and how they are kept."""
  source: str = option("store", "store: on disk, computed once; stream: computed where they are used and kept "
                                "nowhere, for subjects that run faster than they can be read", SOURCES)
  url: str = option("", "where the store is, if not in the run's folder: another folder, s3://BUCKET/PATH or "
                        "gs://BUCKET/PATH")
  site: str = option("layer.0.mlp.hidden", "the subject's site whose activations are stored and decomposed")
  more_sites: tuple[str, ...] = option((), "further sites that are stored beside it, row by row")
  n_tokens: int = option(0, "training tokens to harvest from, in whole contexts chosen at random; "
                             "0 = all of them")
  tokens_per_context: int = option(0, "tokens sampled of each context, without replacement; 0 = all "
                                      "(the paper takes 250)")
  batch_contexts: int = option(64, "contexts in one forward pass of the subject")
  dtype: str = option("float16", "type of the stored numbers; int8 has scales for each row and column", DTYPES)
  compression: str = option("none", "of the stored numbers", COMPRESSIONS)
  shard_rows: int = option(0, "rows in one file of the store; 0 takes about 1 GiB, or a sixteenth of a small store")
  chunk_rows: int = option(0, "rows read and checked at once, divides shard_rows; 0 takes a 64th of it")
  seed: int = option(0, "seed of the sampled tokens and of the shuffled order")

  def __post_init__(self):
    require(self.site, "site", self.site, "needs the name of a site, for instance layer.0.mlp.hidden")
    require(len({*self.sites}) == len(self.sites) and all(self.sites), "more_sites", self.more_sites,
            "must be names that differ, also from activations.site")
    require_not_negative(self, "", "n_tokens", "tokens_per_context", "seed", "shard_rows", "chunk_rows")
    require(self.batch_contexts > 0, "batch_contexts", self.batch_contexts, "must be positive")
    require_choices(self, "activations.")
    require(not self.chunk_rows or self.shard_rows % self.chunk_rows == 0, "shard_rows", self.shard_rows,
            f"must be a multiple of chunk_rows={self.chunk_rows}")

  @property
  def sites(self):
    """All sites that are stored, first the one that is decomposed."""
    return (self.site, *self.more_sites)
