"""The source `store`: a subject is run over tokens once, and its activations are written to a store.

Letters: B contexts of a batch, T positions of a context, R positions kept of each (or rows of a shard), M width of the
sites side by side, J rows of one piece, P places of a row: its own position, and that of an earlier token if asked for.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import distributed, metrics
from monojax import mesh as meshes
from monojax.activations.config import EARLIER, HarvestConfig, same_token
from monojax.activations.layout import Layout
from monojax.activations.origin import Order, Origin, Prepared
from monojax.activations.owner import owned
from monojax.activations.reader import ShuffledRows
from monojax.activations.source import Source
from monojax.activations.store import ActivationStore, all_finite
from monojax.activations.visits import Visits
from monojax.activations.writer import ShardWriter
from monojax.config import require
from monojax.subjects.subject import LoadedSubject, Subject, site_of
from monojax.text.tokens import Tokens


def prepare(origin: Origin, directory, mesh: jax.sharding.Mesh) -> Prepared:
  """Fills the run's store, or goes on filling it; see `monojax.activations.origin`."""
  mesh = mesh_of(origin.config, mesh, origin.pretrained)
  subject = origin.subject(origin.config.computed, mesh)
  tokens = origin.tokens()
  limits, left_out = norm_limits(origin.config, subject, tokens, mesh)
  tell(Visits.of(origin.config, tokens, subject.n_context).left_out, left_out)
  with owned(origin.place):  # which need not be in the run's folder
    harvest(origin.config, subject, tokens, origin.place, origin.store_identity, mesh, limits)
  store = ActivationStore.open(origin.place)
  statistics = store.statistics()
  figures = {"rows": store.n_rows, "shards": store.layout.n_shards, "width": store.width,
             **store.meta["scale"][origin.config.site]}
  return Prepared(figures, {site: statistics[f"{site}/mean_M"] for site in origin.config.sites}, limits)


def mesh_of(config: HarvestConfig, mesh: jax.sharding.Mesh, pretrained: bool = False) -> jax.sharding.Mesh:
  """This process's devices of a run's mesh, over which it splits contexts: each process makes shards of its own.

  A pretrained subject is split over the axis "model", so that one that is larger than a device can be run.

  Raises:
    InputError: a batch of contexts does not divide over them.
  """
  own = meshes.local_mesh(mesh, mesh.shape["model"] if pretrained else 1)
  n_data = own.shape["data"]
  require(config.batch_contexts % n_data == 0, "activations.batch_contexts", config.batch_contexts,
          f"must be a multiple of the {n_data} devices of this process that share contexts in a mesh with "
          f"--mesh.data={mesh.shape['data']} and --mesh.model={mesh.shape['model']}: change one of the three")
  return own


def open_source(origin: Origin, sites: tuple[str, ...], order: Order, mesh: jax.sharding.Mesh) -> Source:
  """The store's rows in shuffled batches; see `monojax.activations.origin`."""
  store = ActivationStore.open(origin.place, origin.store_identity, sites)
  meshes.require_divides(mesh, "data", order.batch_rows, "sae.batch_rows")
  return ShuffledRows(store, order.batch_rows, order.buffer_rows, order.seed, meshes.local_rows(mesh, order.batch_rows))


def harvest(config: HarvestConfig, subject: LoadedSubject, tokens: Tokens, place, identity: dict,
            mesh: jax.sharding.Mesh, limits: dict[str, float] | None = None) -> dict:
  """Fills the store in `place` with the shards that are not there yet; the processes of a job share them.

  Contexts are visited in a random order, so that a part of the text is a random part of it. The rows of a shard are
  permuted before they are written, so that rows that are neighbours on disk come from many documents.

  Args:
    config: what is harvested and how it is kept.
    subject: the subject to run, its parameters placed on the mesh.
    tokens: the text to run it over.
    place: where the store is: a folder or URL.
    identity: JSON-able dict that says what the rows were made from.
    mesh: mesh of this process' devices; contexts are split over "data".
    limits: {site: the longest activation that is kept}, from `norm_limits`; empty for no limit.

  Returns:
    The store's meta.

  Raises:
    InputError: a site does not exist, or `place` holds another store.
  """
  visits = Visits.of(config, tokens, subject.n_context)
  widths, n_rows = site_widths(subject.model, config.sites), visits.n_rows
  layout = Layout.sized(n_rows, widths, config.dtype, config.compression, config.shard_rows, config.chunk_rows)
  forward = make_forward(subject.model, config.sites, layout.given_dtype, mesh, limits)
  process, n_processes = jax.process_index(), jax.process_count()
  if process > 0:
    distributed.wait("the store is begun")
  writer = ShardWriter(place, layout, identity, process, n_processes)
  if process == 0:
    distributed.wait("the store is begun")
  with metrics.progress(n_rows // n_processes, "rows", "harvest", scale=True,
                        initial=max(0, n_rows // n_processes - len(writer.todo) * layout.shard_rows)) as bar:
    for shard in writer.todo:
      first, last = layout.shard_span(shard)
      rows = {site: np.empty((last - first, width), layout.given_dtype) for site, width in widths.items()}
      position_R = np.empty(last - first, np.int64)
      slot_R = np.random.default_rng([config.seed, shard]).permutation(last - first)
      pieces = _shard_pieces(visits, config.batch_contexts, forward, subject.params, tokens, first, last)
      for at, acts_JM, position_J in pieces:
        slots, column = slot_R[at:at + len(position_J)], 0
        position_R[slots] = position_J
        for site, width in widths.items():
          rows[site][slots] = acts_JM[:, column:column + width]
          column += width
        bar.update(len(position_J))
      for site, rows_RM in rows.items():
        require(all_finite(rows_RM), "activations.dtype", config.dtype, f"activations at {site} are not finite in it: "
                "take float32 or bfloat16, or leave attention sinks out with --activations.first_position=1")
      writer.write_shard(shard, rows, places_of(tokens, position_R))
  writer.flush()
  distributed.wait("all shards are written")
  meta = writer.finish({"n_context": visits.width, "tokens_per_context": visits.per_context,
                        **({} if visits.counts.all else {"first_position": visits.counts.first_position}),
                        "shuffle_seed": config.seed, "domains": list(tokens.domains)})
  distributed.wait("the store is finished")
  return meta


def places_of(tokens: Tokens, position_R: np.ndarray) -> np.ndarray:
  """A store's `places` of positions in a text: (R, 4) int32 of token, document, position in it, and its domain."""
  document_R = tokens.position_document(position_R)
  return np.stack([tokens.tokens_N[position_R], document_R, position_R - tokens.start_D[document_R],
                   tokens.domain_D[document_R]], axis=1).astype(np.int32)


def _shard_pieces(visits, batch_contexts, forward, params, tokens, first, last):
  """Yields (offset in the shard, activations, positions) for the harvest's rows first..last-1, batch by batch.

  The harvest's rows are numbered in the order in which contexts are visited: with 4 tokens kept of each context, row 9
  is the second token kept of the third context visited. One batch is computed while the one before is copied.
  """
  number_C = np.arange(first // visits.per_context, -(-last // visits.per_context))
  pending: tuple = ()
  for start in range(0, len(number_C), batch_contexts):
    number_B = number_C[np.minimum(np.arange(start, start + batch_contexts), len(number_C) - 1)]
    context_B = visits.context(number_B)
    acts_BRM, slot_BR = forward(params, tokens.context(context_B, visits.width), visits.places(context_B))
    n_used = min(batch_contexts, len(number_C) - start)
    if pending:
      yield _clip(first, last, visits.per_context, *pending)
    pending = (number_B[0], acts_BRM, slot_BR, visits.positions(context_B), n_used)
  yield _clip(first, last, visits.per_context, *pending)


def _clip(first, last, per_context, visit, acts_BRM, slot_BR, position_BR, n_used):
  """One batch's rows as a matrix, without those that are outside of first..last-1."""
  position_BR = np.take_along_axis(position_BR, np.asarray(slot_BR), axis=1)
  start = visit * per_context
  keep = slice(max(first - start, 0), min(last - start, n_used * per_context))
  acts_JM = np.asarray(acts_BRM).reshape(-1, acts_BRM.shape[-1])[keep]
  return start + keep.start - first, acts_JM, position_BR.reshape(-1)[keep]


def site_widths(model: Subject, sites: tuple[str, ...]) -> dict[str, int]:
  """{site: width of the activation there}.

  Raises:
    InputError: the subject has no such site; the message lists those it has.
  """
  return {site: model.site_widths[site_of(model.site_widths, same_token(site))] for site in sites}


def sampled(model: Subject, params: dict, sites: tuple[str, ...], tokens_BT: jax.Array,
            place_BRP: jax.Array) -> jax.Array:
  """The sites' activations side by side, at some positions of each context, of shape (B, R, M); to be traced.

  Under `jit` the subject runs up to the last of the sites and no further, since nothing else is used.

  Args:
    model, params: the subject.
    sites: names of sites, of which those of an earlier token end with ".earlier".
    tokens_BT: contexts.
    place_BRP: the position of each row, and that of its earlier token where a site needs it.
  """
  wanted = tuple(dict.fromkeys(map(same_token, sites)))
  _, found = model.apply({"params": params}, tokens_BT, wanted=wanted)
  if wanted == sites:
    acts_BTM = jnp.concatenate([found[site] for site in sites], axis=-1)
    return jnp.take_along_axis(acts_BTM, place_BRP[:, :, :1], axis=1)
  at = [place_BRP[:, :, 1:] if site.endswith(EARLIER) else place_BRP[:, :, :1] for site in sites]
  return jnp.concatenate([jnp.take_along_axis(found[same_token(site)], place_BR1, axis=1)
                          for site, place_BR1 in zip(sites, at, strict=True)], axis=-1)


def within(acts_BRM: jax.Array, widths: dict[str, int],
           limits: dict[str, float] | None) -> tuple[jax.Array, jax.Array]:
  """Rows of which none is longer than a limit: the next shorter one of its context takes the place of one that is.

  Where no row of a context is short enough, all stay.

  Args:
    acts_BRM: rows of contexts, sites side by side.
    widths: {site: width}, in this order.
    limits: {site: the longest activation}; sites without one have no limit. It also holds for a site's earlier tokens.

  Returns:
    (acts_BRM, slot_BR: which of the rows of its context each is).
  """
  n_kept = acts_BRM.shape[1]
  slot_1R = jnp.arange(n_kept)[None]
  if not limits:
    return acts_BRM, jnp.broadcast_to(slot_1R, acts_BRM.shape[:2])
  first, fits_BR = 0, jnp.ones(acts_BRM.shape[:2], bool)
  for site, width in widths.items():
    norm_BR = jnp.linalg.norm(acts_BRM[..., first:first + width].astype(jnp.float32), axis=-1)
    fits_BR &= ~(norm_BR > limits.get(same_token(site), jnp.inf))  # NaN stays, so that it is found
    first += width
  # For each row the place of the next one that fits, of the rows twice over: if all but row 1 of four fit, 0 2 2 3.
  place_BJ = jnp.where(jnp.tile(fits_BR, (1, 2)), jnp.arange(2 * n_kept)[None], 2 * n_kept)
  next_BR = jax.lax.cummin(place_BJ, axis=1, reverse=True)[:, :n_kept]
  slot_BR = jnp.where(fits_BR.any(1, keepdims=True), next_BR % n_kept, slot_1R)
  return jnp.take_along_axis(acts_BRM, slot_BR[:, :, None], axis=1), slot_BR


def norm_limits(config: HarvestConfig, subject: LoadedSubject, tokens: Tokens,
                mesh: jax.sharding.Mesh) -> tuple[dict[str, float], str]:
  """The longest activations that are kept: `config.norm_limit` times the median of the first contexts' rows.

  Returns:
    ({site: length}, a sentence that says how many of those rows are left out). Both are empty if there is no limit.
  """
  if not config.norm_limit:
    return {}, ""
  visits, widths = Visits.of(config, tokens, subject.n_context), site_widths(subject.model, config.sites)
  n_batch = -(-min(config.batch_contexts, visits.n) // mesh.shape["data"]) * mesh.shape["data"]
  context_B = visits.context(np.minimum(np.arange(n_batch), visits.n - 1))
  forward = make_forward(subject.model, config.sites, jnp.float32, mesh)
  acts_BRM, _ = forward(subject.params, tokens.context(context_B, visits.width),
                        visits.places(context_B))
  parts = np.split(meshes.to_host(acts_BRM), np.cumsum(list(widths.values()))[:-1], axis=-1)
  norm_BR = {site: np.linalg.norm(part, axis=-1) for site, part in zip(widths, parts, strict=True)}
  found = {site: config.norm_limit * float(np.median(norm_BR[site])) for site in config.computed}
  long_BR = np.any([norms > found[same_token(site)] for site, norms in norm_BR.items()], axis=0)
  return found, (f"activations: rows longer than {config.norm_limit:g} times the median are left out; of the first "
                 f"{long_BR.size:,} they are {long_BR.sum():,} (activations.norm_limit)")


def tell(*sentences: str) -> None:
  """Prints those sentences that are not empty: what a run leaves out is said once, when its activations are made."""
  for sentence in filter(None, sentences):
    print(sentence, flush=True)


def judged_by(config: HarvestConfig, sites: tuple[str, ...]) -> tuple[str, ...]:
  """The sites that must be computed for rows of some of a run's sites, these first.

  They are all sites of the run where rows can be too long: what is too long at one site is left out of the rows of all,
  so that dictionaries are trained on the rows on which they are measured (`Kept`).
  """
  return tuple(dict.fromkeys((*sites, *config.sites))) if config.norm_limit else sites


def computed_for(config: HarvestConfig, sites: tuple[str, ...]) -> tuple[str, ...]:
  """The subject's own sites among those of `judged_by`, each once."""
  return tuple(dict.fromkeys(map(same_token, judged_by(config, sites))))


def rows_within(model: Subject, params: dict, sites: tuple[str, ...], judged: tuple[str, ...], tokens_BT: jax.Array,
                place_BRP: jax.Array, limits: dict[str, float] | None) -> tuple[jax.Array, jax.Array]:
  """(`sampled` activations of `sites`, slot_BR), where no row is longer at any site of `judged` than `limits` say.

  `judged` begins with `sites`; `within` says what becomes of rows that are longer, and what slot_BR is. To be traced.
  """
  widths = site_widths(model, judged)
  acts_BRM, slot_BR = within(sampled(model, params, judged, tokens_BT, place_BRP), widths, limits)
  return acts_BRM[..., :sum(widths[site] for site in sites)], slot_BR


def make_forward(model: Subject, sites: tuple[str, ...], dtype, mesh: jax.sharding.Mesh,
                 limits: dict[str, float] | None = None, judged: tuple[str, ...] = ()) -> typing.Callable:
  """The function (params, tokens_BT, place_BRP) -> (acts_BRM of the sites side by side in `dtype`, slot_BR).

  See `rows_within`; by default rows are judged by the sites themselves.
  """
  @jax.jit
  def forward(params, tokens_BT, place_BRP):
    acts_BRM, slot_BR = rows_within(model, params, sites, judged or sites, tokens_BT, place_BRP, limits)
    return acts_BRM.astype(dtype), slot_BR

  def placed(params, tokens_BT, place_BRP):
    split = P("data")
    return forward(params, meshes.on_mesh(tokens_BT, mesh, split), meshes.on_mesh(place_BRP, mesh, split))
  return placed
