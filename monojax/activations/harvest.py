"""Runs a subject over tokens and writes one site's activations to a store."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import distributed, metrics
from monojax import mesh as meshes
from monojax.activations.visits import Visits
from monojax.activations.writer import StoreWriter
from monojax.config import require


def harvest(config, model, params, tokens, directory, identity, mesh):
  """Fills the store in `directory` with the shards that are not there yet; the processes of a job share them.

  Contexts are visited in a random order, so that a part of the text is a random part, and a shard's
  rows are permuted before they are written, so that neighbours on disk come from many documents.
  `positions` maps each row back to its token.

  Args:
    config: `HarvestConfig`.
    model: the subject, `apply(variables, tokens_BT) -> (output, sites)`, with `config.n_context`.
    params: its parameters, placed on the mesh.
    tokens: `Tokens` to run over.
    directory: of the store.
    identity: JSON-able dict: what the rows were made from.
    mesh: mesh of this process' devices; contexts are split over "data".

  Returns:
    The store's meta.

  Raises:
    InputError: the site does not exist, or `directory` holds another store.
  """
  visits = Visits.of(config, tokens, model.config.n_context)
  n_inputs = site_width(model, config.site)
  forward = make_forward(model, config.site, jnp.dtype(config.dtype), mesh)
  n_rows = visits.n_rows
  process, n_processes = jax.process_index(), jax.process_count()
  if process > 0:
    distributed.wait("the store is begun")
  writer = StoreWriter(directory, n_rows, n_inputs, config.dtype, config.shard_rows, config.chunk_rows, identity,
                       process, n_processes)
  if process == 0:
    distributed.wait("the store is begun")
  bar = metrics.progress(n_rows // n_processes, "rows", "harvest", scale=True,
                         initial=max(0, n_rows // n_processes - len(writer.todo) * config.shard_rows))
  for shard in writer.todo:
    first = shard * config.shard_rows
    last = min(first + config.shard_rows, n_rows)
    rows_RM = np.empty((last - first, n_inputs), jnp.dtype(config.dtype))
    positions_R = np.empty(last - first, np.int64)
    slot_R = np.random.default_rng([config.seed, shard]).permutation(last - first)
    for at, acts_JM, position_J in _shard_pieces(visits, config.batch_contexts, forward, params, tokens, first, last):
      slots = slot_R[at:at + len(position_J)]
      rows_RM[slots], positions_R[slots] = acts_JM, position_J
    writer.write_shard(shard, rows_RM, positions_R)
    bar.update(last - first)
  bar.close()
  writer.flush()
  distributed.wait("all shards are written")
  return writer.finish({"n_context": visits.width, "tokens_per_context": visits.per_context,
                        "shuffle_seed": config.seed})


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


def site_width(model, site):
  """Width of the activation at `site`.

  Raises:
    InputError: the subject has no such site; the message lists those it has.
  """
  def sites_of(key):
    return model.init_with_output(key, jnp.zeros((1, 2), jnp.int32))[0][1]
  sites = jax.eval_shape(sites_of, jax.random.key(0))
  require(site in sites, "activations.site", site, f"the subject's sites are {', '.join(sorted(sites))}")
  return sites[site].shape[-1]


def make_forward(model, site, dtype, mesh):
  """The compiled function (params, tokens_BT, sampled_BR) -> acts_BRM at `site`, as `dtype`.

  It runs the subject up to the site and no further: `jit` drops what is not used.
  """
  @jax.jit
  def forward(params, tokens_BT, sampled_BR):
    _, sites = model.apply({"params": params}, tokens_BT)
    return jnp.take_along_axis(sites[site], sampled_BR[:, :, None], axis=1).astype(dtype)

  def place(params, tokens_BT, sampled_BR):
    split = P("data", None)
    return forward(params, meshes.on_mesh(tokens_BT, mesh, split), meshes.on_mesh(sampled_BR, mesh, split))
  return place
