"""Runs a subject over tokens and writes its sites' activations to a store."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import distributed, metrics
from monojax import mesh as meshes
from monojax.activations.layout import Layout
from monojax.activations.visits import Visits
from monojax.activations.writer import ShardWriter
from monojax.config import require


def harvest(config, model, params, tokens, place, identity, mesh):
  """Fills the store in `place` with the shards that are not there yet; the processes of a job share them.

  Contexts are visited in a random order, so that a part of the text is a random part, and a shard's
  rows are permuted before they are written, so that neighbours on disk come from many documents.

  Args:
    config: `HarvestConfig`.
    model: the subject, `apply(variables, tokens_BT) -> (output, sites)`, with `config.n_context`.
    params: its parameters, placed on the mesh.
    tokens: `Tokens` to run over.
    place: of the store: a folder or URL.
    identity: JSON-able dict: what the rows were made from.
    mesh: mesh of this process' devices; contexts are split over "data".

  Returns:
    The store's meta.

  Raises:
    InputError: a site does not exist, or `place` holds another store.
  """
  visits = Visits.of(config, tokens, model.config.n_context)
  widths, n_rows = site_widths(model, config.sites), visits.n_rows
  layout = Layout.sized(n_rows, widths, config.dtype, config.compression, config.shard_rows, config.chunk_rows)
  forward = make_forward(model, config.sites, layout.given_dtype, mesh)
  process, n_processes = jax.process_index(), jax.process_count()
  if process > 0:
    distributed.wait("the store is begun")
  writer = ShardWriter(place, layout, identity, process, n_processes)
  if process == 0:
    distributed.wait("the store is begun")
  bar = metrics.progress(n_rows // n_processes, "rows", "harvest", scale=True,
                         initial=max(0, n_rows // n_processes - len(writer.todo) * layout.shard_rows))
  for shard in writer.todo:
    first, last = layout.shard_span(shard)
    rows = {site: np.empty((last - first, width), layout.given_dtype) for site, width in widths.items()}
    position_R = np.empty(last - first, np.int64)
    slot_R = np.random.default_rng([config.seed, shard]).permutation(last - first)
    for at, acts_JM, position_J in _shard_pieces(visits, config.batch_contexts, forward, params, tokens, first, last):
      slots, column = slot_R[at:at + len(position_J)], 0
      position_R[slots] = position_J
      for site, width in widths.items():
        rows[site][slots] = acts_JM[:, column:column + width]
        column += width
      bar.update(len(position_J))
    writer.write_shard(shard, rows, places_of(tokens, position_R))
  bar.close()
  writer.flush()
  distributed.wait("all shards are written")
  meta = writer.finish({"n_context": visits.width, "tokens_per_context": visits.per_context,
                        "shuffle_seed": config.seed, "domains": list(tokens.domains)})
  distributed.wait("the store is finished")
  return meta


def places_of(tokens, position_R):
  """(R, 4) int32 of positions in a text: token, document, position in it, its domain; a store's `places`."""
  document_R = tokens.position_document(position_R)
  return np.stack([tokens.tokens_N[position_R], document_R, position_R - tokens.start_D[document_R],
                   tokens.domain_D[document_R]], axis=1).astype(np.int32)


def _shard_pieces(visits, batch_contexts, forward, params, tokens, first, last):
  """Yields (offset in the shard, activations, positions) of stream rows first..last-1, batch by batch.

  Row i of the stream is sample i % per_context of the i // per_context-th visited context. One batch is
  computed while the one before is copied.
  """
  number_C = np.arange(first // visits.per_context, -(-last // visits.per_context))
  pending = None
  for start in range(0, len(number_C), batch_contexts):
    number_B = number_C[np.minimum(np.arange(start, start + batch_contexts), len(number_C) - 1)]
    context_B = visits.context(number_B)
    kept_BR = visits.kept(context_B)
    acts_BRM = forward(params, tokens.context(context_B, visits.width), kept_BR.astype(np.int32))
    n_used = min(batch_contexts, len(number_C) - start)
    if pending:
      yield _clip(first, last, visits.per_context, *pending)
    pending = (number_B[0], acts_BRM, context_B[:, None] * visits.width + kept_BR, n_used)
  yield _clip(first, last, visits.per_context, *pending)


def _clip(first, last, per_context, visit, acts_BRM, position_BR, n_used):
  """A batch's rows, flattened, without those outside first..last-1."""
  start = visit * per_context
  keep = slice(max(first - start, 0), min(last - start, n_used * per_context))
  acts_JM = np.asarray(acts_BRM).reshape(-1, acts_BRM.shape[-1])[keep]
  return start + keep.start - first, acts_JM, position_BR.reshape(-1)[keep]


def site_widths(model, sites):
  """{site: width of the activation there}.

  Raises:
    InputError: the subject has no such site; the message lists those it has.
  """
  def sites_of(key):
    return model.init_with_output(key, jnp.zeros((1, 2), jnp.int32))[0][1]
  found = jax.eval_shape(sites_of, jax.random.key(0))
  for site in sites:
    require(site in found, "activations.site", site, f"the subject's sites are {', '.join(sorted(found))}")
  return {site: found[site].shape[-1] for site in sites}


def sampled(model, params, sites, tokens_BT, sampled_BR):
  """The sites' activations side by side, at some positions of each context, (B, R, M); to be traced.

  It runs the subject up to the last of the sites and no further: `jit` drops what is not used.
  """
  _, found = model.apply({"params": params}, tokens_BT)
  acts_BTM = jnp.concatenate([found[site] for site in sites], axis=-1)
  return jnp.take_along_axis(acts_BTM, sampled_BR[:, :, None], axis=1)


def make_forward(model, sites, dtype, mesh):
  """The function (params, tokens_BT, sampled_BR) -> acts_BRM of the sites side by side, as `dtype`."""
  @jax.jit
  def forward(params, tokens_BT, sampled_BR):
    return sampled(model, params, sites, tokens_BT, sampled_BR).astype(dtype)

  def place(params, tokens_BT, sampled_BR):
    split = P("data", None)
    return forward(params, meshes.on_mesh(tokens_BT, mesh, split), meshes.on_mesh(sampled_BR, mesh, split))
  return place
