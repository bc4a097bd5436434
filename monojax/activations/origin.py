"""What a kind of source is given to work with, and the two functions that each kind's module has.

`monojax/activations/config.py` lists the kinds. A kind's module has:

* `prepare(origin, directory, mesh) -> Prepared`: what the stage `activations` of a run does, for instance to fill a
  store. It can be killed at any moment and called again.
* `open_source(origin, sites, order, mesh) -> Source`: the rows of some sites, side by side, in shuffled batches.

Letters: M width of a site.
"""

import dataclasses
import pathlib
import typing

import numpy as np

from monojax.activations.config import HarvestConfig

if typing.TYPE_CHECKING:
  import jax

  from monojax.activations.source import RowStore, Source
  from monojax.subjects.subject import LoadedSubject
  from monojax.text.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Origin:
  """What activations are made from, or where they are.

  Attributes:
    config: the settings of the stage.
    place: the folder or URL of the run's store.
    identity: names the settings and inputs of the rows, so that rows made from something else are noticed.
    subject: (sites, mesh) -> the subject on the devices of a mesh, with what it needs to compute these sites; called
      only where one is needed.
    pretrained: whether the subject was read from elsewhere, in which case its parameters are split over the devices
      along "model".
    tokens: opens the training tokens; likewise.
    rows: activations that a Python program holds in memory, for the source `given`; otherwise None.
  """
  config: HarvestConfig
  place: str | pathlib.Path
  identity: str
  subject: typing.Callable[[tuple[str, ...], "jax.sharding.Mesh"], "LoadedSubject"]
  tokens: typing.Callable[[], "Tokens"]
  rows: "RowStore | Source | None" = None
  pretrained: bool = False

  @property
  def store_identity(self) -> dict:
    """What the store's header says its rows are."""
    return {"sites": list(self.config.sites), "stage": self.identity}


@dataclasses.dataclass(frozen=True)
class Order:
  """In which batches and which order a dictionary's training takes rows.

  Attributes:
    batch_rows: rows of a batch.
    buffer_rows: rows among which rows are shuffled when they are read.
    seed: names the order.
  """
  batch_rows: int
  buffer_rows: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What `prepare` found out.

  Attributes:
    figures: the stage's figures, named without their stage: rows, width, mean_norm and so on.
    means: {site: mean activation of shape (M,), float64}.
    norm_limits: {site: the longest activation that counts}; empty where all do.
  """
  figures: dict
  means: dict[str, np.ndarray]
  norm_limits: dict[str, float] = dataclasses.field(default_factory=dict)
