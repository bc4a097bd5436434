"""Runs a subject over tokens and writes one site's activations to a store."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax import metrics, shuffle
from monojax.activations.store import StoreWriter
from monojax.config import require


def harvest(config, model, params, tokens, directory, identity, mesh):
  """Fills the store in `directory`, going on at the first shard that is not finished.

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
    mesh: device mesh; contexts are split over "data".

  Returns:
    The store's meta.

  Raises:
    InputError: the site does not exist, or `directory` holds another store.
  """
  width = model.config.n_context
  per_context = config.tokens_per_context or width
  require(per_context <= width, "activations.tokens_per_context", per_context,
          f"a context has {width} tokens")
  n_inputs = site_width(model, config.site)
  forward = make_forward(model, config.site, jnp.dtype(config.dtype), mesh)
  n_rows = tokens.contexts(width, config.n_tokens) * per_context
  writer = StoreWriter(directory, n_rows, n_inputs, config.dtype, config.shard_rows,
                       config.chunk_rows, identity)
  bar = metrics.progress(n_rows, "rows", "harvest", scale=True,
                         initial=min(writer.shards_done * config.shard_rows, n_rows))
  contexts = types.SimpleNamespace(n=tokens.contexts(width), width=width, per_context=per_context)
  for shard in range(writer.shards_done, writer.n_shards):
    first = shard * config.shard_rows
    last = min(first + config.shard_rows, n_rows)
    rows_RM = np.empty((last - first, n_inputs), jnp.dtype(config.dtype))
    positions_R = np.empty(last - first, np.int64)
    slot_R = np.random.default_rng([config.seed, shard]).permutation(last - first)
    for at, acts_JM, position_J in _shard_pieces(config, contexts, forward, params, tokens, first, last):
      slots = slot_R[at:at + len(position_J)]
      rows_RM[slots], positions_R[slots] = acts_JM, position_J
    writer.write_shard(shard, rows_RM, positions_R)
    bar.update(last - first)
  bar.close()
  return writer.finish({"n_context": width, "tokens_per_context": per_context, "shuffle_seed": config.seed})


def _shard_pieces(config, contexts, forward, params, tokens, first, last):
  """Yields (offset in the shard, activations, positions) of stream rows first..last-1, batch by batch.

  Row i of the stream is sample i % per_context of the i // per_context-th visited context. One batch is
  computed while the one before is copied.
  """
  visits = np.arange(first // contexts.per_context, -(-last // contexts.per_context))
  pending = None
  for start in range(0, len(visits), config.batch_contexts):
    visit_B = visits[np.minimum(np.arange(start, start + config.batch_contexts), len(visits) - 1)]
    context_B = shuffle.permute(visit_B, contexts.n, config.seed)
    sampled_BR = _sampled(context_B, contexts, config.seed)
    acts_BRM = forward(params, tokens.context(context_B, contexts.width), sampled_BR.astype(np.int32))
    n_used = min(config.batch_contexts, len(visits) - start)
    position_BR = context_B[:, None] * contexts.width + sampled_BR
    if pending:
      yield _clip(first, last, contexts.per_context, *pending)
    pending = (visit_B[0], acts_BRM, position_BR, n_used)
  yield _clip(first, last, contexts.per_context, *pending)


def _clip(first, last, per_context, visit, acts_BRM, position_BR, n_used):
  """A batch's rows, flattened, without those outside first..last-1."""
  start = visit * per_context
  keep = slice(max(first - start, 0), min(last - start, n_used * per_context))
  acts_JM = np.asarray(acts_BRM).reshape(-1, acts_BRM.shape[-1])[keep]
  return start + keep.start - first, acts_JM, position_BR.reshape(-1)[keep]


def _sampled(context_B, contexts, seed):
  """Which positions of each context are kept: all, or a random choice without replacement, (B, R)."""
  every_BT = np.broadcast_to(np.arange(contexts.width), (len(context_B), contexts.width))
  if contexts.per_context == contexts.width:
    return every_BT
  rank_BT = shuffle.permute(context_B[:, None] * contexts.width + every_BT,
                            contexts.n * contexts.width, seed, 1)
  return np.sort(np.argsort(rank_BT, axis=1)[:, :contexts.per_context], axis=1)


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
