"""Settings of the activations that dictionaries of a run are trained on, and the kinds of source they can come from."""

import dataclasses
import types
import typing

from monojax.config import COUNT, COUNT_OR_0, NOT_NEGATIVE, SEED, option, require, require_rules


@dataclasses.dataclass(frozen=True)
class SourceKind:
  """One kind of source: where the rows come from that a dictionary is trained on.

  Attributes:
    what: one sentence for `--help`.
    module: imports and returns the module that implements it with two functions, `prepare` and `open_source`; see
      `monojax.activations.origin`. The import waits until a stage needs it, so that `--help` loads no jax.
  """
  what: str
  module: typing.Callable[[], types.ModuleType]


def _store() -> types.ModuleType:
  from monojax.activations import harvest
  return harvest


def _stream() -> types.ModuleType:
  from monojax.activations import stream
  return stream


def _given() -> types.ModuleType:
  from monojax.activations import given
  return given


# Adding a kind of source takes a module with the two functions, and a row here.
SOURCES = {
    "store": SourceKind("the subject's activations are computed once and kept on disk", _store),
    "stream": SourceKind("the subject runs beside the dictionary and its activations are kept nowhere, which is right "
                         "for subjects that compute activations faster than a disk reads them", _stream),
    "given": SourceKind("activations that something else made, at activations.url: a store, a .npy, .npz or "
                        ".safetensors file, or a folder of such files; no subject is needed", _given),
}
DTYPES = ("float16", "bfloat16", "float32", "int8")
COMPRESSIONS = ("none", "zstd")
# The end of a site's name where the activation is not that of the row's own token but of an earlier one.
EARLIER = ".earlier"
_NORM_LIMIT = 10.0  # of pretrained subjects, what dictionary_learning takes, too


@dataclasses.dataclass(frozen=True)
class HarvestConfig:
  """Which activations the dictionaries of a run are trained on, and how these activations are kept."""
  source: str = option("store", "where rows come from. " + "; ".join(f"{name}: {kind.what}"
                                                                     for name, kind in SOURCES.items()), tuple(SOURCES))
  url: str = option("", "where the store is, if not in the run's folder: another folder, s3://BUCKET/PATH or "
                        "gs://BUCKET/PATH; for the source `given`, where the activations are")
  site: str = option("layer.0.mlp.hidden", "the subject's site whose activations are stored and decomposed")
  more_sites: tuple[str, ...] = option((), "further sites that are stored beside it, row by row")
  earlier: str = option(
      "previous", "which earlier token a site named SITE.earlier gives the activation of: previous, the one just "
                  "before the row's own; random, any before it in the same context. For instance "
                  "activations.more_sites=layer.0.mlp.hidden.earlier; the recipe tsae needs it", ("previous", "random"))
  n_tokens: int = option(0, "training tokens to take activations from, in whole contexts chosen at random; 0 takes all",
                         NOT_NEGATIVE)
  tokens_per_context: int = option(0, "tokens of each context that are kept, chosen at random without replacement; 0 "
                                      "keeps all (Towards Monosemanticity kept 250)", COUNT_OR_0)
  first_position: int | None = option(
      None, "first position of a context whose activation is kept; the subject reads earlier ones, too, but nothing "
            "trains on them, and no feature fires there. By default 1 for a pretrained subject, since transformers use "
            "the first position as a sink of attention, where the residual stream can be 100 times as long as "
            "elsewhere; 0 for a subject that was trained here. A BOS token in front of the text never counts",
      COUNT_OR_0)
  skip_special: bool | None = option(
      None, "whether positions of special tokens, such as those between documents, are left out, too; by default only "
            "with a pretrained subject, for which they can be sinks as the first position is. Contexts with fewer "
            "other tokens than tokens_per_context are then not used; where that is 0, as many tokens are kept as 95 % "
            "of the contexts have")
  norm_limit: float | None = option(
      None, "rows that are longer than so many times the median row are left out, and others of their contexts take "
            "their places; dictionaries are not spliced in there. By default 10 for a pretrained subject, since sinks "
            "of attention can be anywhere in a context; 0, the default for a subject that was trained here, keeps all",
      NOT_NEGATIVE)
  batch_contexts: int = option(64, "contexts in one forward pass of the subject", COUNT)
  dtype: str = option("float16", "type of the stored numbers; int8 has scales for each row and column", DTYPES)
  compression: str = option("none", "compression of the stored numbers", COMPRESSIONS)
  shard_rows: int = option(0, "rows in one file of the store; 0 makes files of about 1 GiB, or sixteen files of a "
                              "small store", NOT_NEGATIVE)
  chunk_rows: int = option(0, "rows that are read and checked together; must divide shard_rows; 0 takes a 64th of "
                              "shard_rows", COUNT_OR_0)
  seed: int = option(0, "seed of the choice of tokens and of the shuffled order", SEED)

  def __post_init__(self):
    require_rules(self, "activations.")
    require(self.site, "activations.site", self.site, "needs the name of a site, for instance layer.0.mlp.hidden")
    require(len({*self.sites}) == len(self.sites) and all(self.sites), "activations.more_sites", self.more_sites,
            "must be names that differ from each other and from activations.site")
    alone = [site for site in self.sites if site.endswith(EARLIER) and same_token(site) not in self.sites]
    require(self.source == "given" or not alone, "activations.more_sites", ",".join(alone),
            f"needs {', '.join(map(same_token, alone))} beside it: earlier activations are kept beside the row's own")
    require(not self.chunk_rows or self.shard_rows % self.chunk_rows == 0, "activations.shard_rows", self.shard_rows,
            f"must be a multiple of activations.chunk_rows={self.chunk_rows}")

  @staticmethod
  def upgraded(values: dict) -> dict:
    """Saved settings in today's fields: in version 0.1 every position counted."""
    return {"first_position": 0, "skip_special": False, "norm_limit": 0.0, **values}

  def for_subject(self, pretrained: bool) -> "HarvestConfig":
    """These settings, with those filled in whose defaults depend on whether the subject was trained elsewhere."""
    or_else = lambda value, default: default if value is None else value
    return dataclasses.replace(
        self, first_position=or_else(self.first_position, int(pretrained)),
        skip_special=or_else(self.skip_special, pretrained),
        norm_limit=or_else(self.norm_limit, _NORM_LIMIT if pretrained else 0.0))

  @property
  def sites(self) -> tuple[str, ...]:
    """All sites that are kept; the first is the one that dictionaries decompose unless they name others."""
    return (self.site, *self.more_sites)

  @property
  def computed(self) -> tuple[str, ...]:
    """The subject's own sites among them, each once."""
    return tuple(dict.fromkeys(map(same_token, self.sites)))


def same_token(site: str) -> str:
  """The name of a site without what says that the activation is that of an earlier token."""
  return site.removesuffix(EARLIER)
