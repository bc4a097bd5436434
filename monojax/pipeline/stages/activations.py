"""The stage `activations`: what dictionaries are trained on is computed, or looked at where it is there already."""

import dataclasses
import typing

from monojax import config as configs
from monojax import files, metrics
from monojax.activations.config import SOURCES, HarvestConfig
from monojax.config import InputError, require
from monojax.pipeline import load
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder

if typing.TYPE_CHECKING:
  from monojax.activations.source import RowStore, Source


def harvest(run: RunFolder, config: RunConfig, rows: "RowStore | Source | None" = None) -> dict:
  """Fills the store of activations; for a stream or given activations it only measures them.

  Args:
    run: the run's folder.
    config: its settings.
    rows: activations in memory, for the source `given`.

  Returns:
    The stage's record.
  """
  settings = _resolved(run, config.activations)
  given, after = None, None
  if settings.source == "given":
    from monojax.activations.given import fingerprint, open_given
    rows = rows or open_given(load.origin_of(run, settings, ""))
    given, after = {"rows": fingerprint(rows)}, ()

  def work(directory, identity):
    from monojax.mesh import make_mesh
    prepared = SOURCES[settings.source].module().prepare(
        load.origin_of(run, settings, identity, rows), directory, make_mesh(config.mesh))
    files.write_npz(directory / load.MEANS, prepared.means)
    files.write_record(directory / load.LIMITS, {"norm_limits": prepared.norm_limits})
    return {f"activations/{name}": value for name, value in prepared.figures.items()}
  return run.execute("activations", settings, work, after, given=given)


def _resolved(run: RunFolder, settings: HarvestConfig) -> HarvestConfig:
  """The settings with the subject's own names of sites, and the first position that counts for it."""
  if settings.source == "given":
    return settings.for_subject(pretrained=False)
  site, *more = load.named_sites(run, settings.sites, "activations.site")
  return dataclasses.replace(settings.for_subject(load.is_pretrained(run)), site=site, more_sites=tuple(more))


def check_store(run: RunFolder, config: RunConfig, repair: bool) -> list[tuple[int, str]]:
  """Reads a run's whole store and finds the damaged shards.

  Args:
    run: the run's folder.
    config: its settings.
    repair: whether the damaged shards are harvested again.

  Returns:
    A list of (number of a damaged shard, what is wrong with it).
  """
  from monojax.activations.owner import owned
  from monojax.activations.store import faults, forget
  # A repair that was killed leaves the stage unfinished, and is gone on with by another one.
  record = run.begun("activations") if repair else run.require_stage("activations")
  if record is None:
    raise InputError(f"{run.directory} has no store of activations: harvest them first")
  settings = configs.from_dict(HarvestConfig, record["config"])
  require(settings.source == "store", "activations.source", settings.source, "keeps no store that could be checked")
  place, damaged = load.store_place(run, settings), []
  with metrics.progress(record.get("figures", {}).get("activations/shards"), "shards", "check") as bar:
    for shard, fault in faults(place):
      if fault:
        damaged.append((shard, fault))
        bar.write(f"shard {shard}: {fault}")
      bar.update()
  if repair and (damaged or not record["complete"]):
    if record["complete"]:
      run.reopen("activations")
    with owned(place):
      for shard, _ in damaged:
        forget(place, shard)
    harvest(run, dataclasses.replace(config, activations=settings))
  return damaged


def adopted(config: RunConfig, site: str = "") -> RunConfig:
  """The settings of a run whose activations are those at `activations.url`, which something else made.

  Args:
    config: the run's settings.
    site: the site to decompose, of a store that holds several; by default the store's first.

  Raises:
    InputError: there are no activations there.
  """
  from monojax.activations.given import site_of
  from monojax.activations.rows import open_rows
  rows = open_rows(config.activations.url)
  return dataclasses.replace(config, activations=dataclasses.replace(
      config.activations, source="given", site=site or site_of(rows), more_sites=()))
