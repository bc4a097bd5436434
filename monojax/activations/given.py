"""The source `given`: activations that something else made, in memory, in files, or in a store of monojax's format."""

import dataclasses

import jax
import numpy as np

from monojax import config as configs
from monojax import mesh as meshes
from monojax.activations.origin import Order, Origin, Prepared
from monojax.activations.reader import ShuffledRows
from monojax.activations.rows import open_rows
from monojax.activations.source import RowStore, Source
from monojax.activations.store import ActivationStore
from monojax.config import require

_MEASURED_ROWS = 65_536  # rows that the mean is taken over, where a store does not say it


def open_given(origin: Origin, sites: tuple[str, ...] = ()) -> RowStore | Source:
  """The rows that a run was given: those in memory, or those at `activations.url`; or a source of rows.

  Args:
    origin: see `Origin`.
    sites: names of the sites to read, of a store; by default its first.

  Raises:
    InputError: there are none, or they are of a kind that cannot be read.
  """
  require(origin.rows is not None or origin.config.url, "activations.url", origin.config.url,
          "say where the activations are: a store, a .npy, .npz or .safetensors file, or a folder of such files. "
          "(Activations that were passed to monojax.train from memory have to be passed again.)")
  rows = open_rows(origin.config.url) if origin.rows is None else origin.rows
  return rows.of_sites(sites) if sites and isinstance(rows, ActivationStore) else rows


def site_of(rows: RowStore | Source) -> str:
  """The name of the site that some rows are of: a store's first; "x" where rows have no names."""
  return rows.sites[0] if isinstance(rows, ActivationStore) else "x"


def fingerprint(rows: RowStore | Source) -> str:
  """16 hexadecimal digits by which other rows are noticed; of a source they are of a sample of its rows."""
  if isinstance(rows, Source):
    return configs.fingerprint({"sample": np.asarray(rows.sample(256, 0), np.float32).tolist()})
  return rows.fingerprint()


def prepare(origin: Origin, directory, mesh: jax.sharding.Mesh) -> Prepared:
  """Looks at the rows; nothing is copied."""
  rows = open_given(origin)
  if isinstance(rows, Source):
    source, figures = rows, {"width": sum(rows.widths)}
  else:
    source = ShuffledRows(rows, 1, rows.chunk_rows, origin.config.seed)
    figures = {"rows": rows.n_rows, "width": rows.width}
  if isinstance(rows, ActivationStore):
    statistics, scale = rows.statistics(), rows.meta["scale"]
    site = origin.config.site if origin.config.site in scale else site_of(rows)
    figures = {"rows": rows.n_rows, "width": rows.layout.sites[site], "mean_norm": scale[site]["mean_norm"]}
    return Prepared(figures, {name: statistics[f"{name}/mean_M"] for name in scale})
  sample_NM = np.asarray(source.sample(_MEASURED_ROWS, origin.config.seed)).astype(np.float64)
  return Prepared(figures | {"mean_norm": float(np.linalg.norm(sample_NM, axis=1).mean())},
                  {origin.config.site: sample_NM.mean(0)})


def open_source(origin: Origin, sites: tuple[str, ...], order: Order, mesh: jax.sharding.Mesh) -> Source:
  """The rows in shuffled batches; the shuffling window is rounded to whole chunks."""
  meshes.require_divides(mesh, "data", order.batch_rows, "sae.batch_rows")
  rows = open_given(origin, sites)
  if isinstance(rows, Source):
    n_rows = len(rows.batch(0))
    require(n_rows == order.batch_rows, "sae.batch_rows", order.batch_rows, f"the source's batches have {n_rows} rows")
    return rows
  n_chunks = max(1, min(order.buffer_rows, rows.n_rows) // rows.chunk_rows)
  order = dataclasses.replace(order, buffer_rows=n_chunks * rows.chunk_rows)
  return ShuffledRows(rows, order.batch_rows, order.buffer_rows, order.seed, meshes.local_rows(mesh, order.batch_rows))
