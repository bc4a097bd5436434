"""Batches of whole contexts, for dictionaries that are trained end to end through the subject.

Letters: B rows of a batch, C its contexts, T positions of a context, R those of which rows are taken, W numbers in a
row, which holds the sites side by side, D width of what the subject's unembedding reads, O width of the sites written.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax import shuffle
from monojax.activations.config import HarvestConfig
from monojax.activations.harvest import computed_for, site_widths, within
from monojax.activations.origin import Order, Origin
from monojax.activations.stream import LANES, Stream
from monojax.activations.visits import Visits
from monojax.config import require
from monojax.subjects.spliced import Passes, make_spliced_divergence, rows_and_last
from monojax.subjects.subject import LAST
from monojax.text.tokens import Tokens

# What a step knows of a batch's contexts besides their rows: tokens_CT, the positions at_CR of the rows, and last_CRD,
# what the unembedding reads there in the subject as it is.
InContext = tuple[jax.Array, jax.Array, jax.Array]


class Contexts:
  """An endless sequence of batches of whole contexts: a `Source`, and the subject above the sites.

  The contexts of an epoch are those that a harvest with the same settings would visit, each once and in a random order,
  except that every position that counts gives a row, whatever `activations.tokens_per_context` says. (With
  `activations.skip_special` contexts differ in how many positions count; each gives the same number of rows.) The rows
  of a batch are those of its first context, of its second, and so on. The subject runs over them once when a batch is
  asked for, which leaves the rows and what its unembedding reads; `divergence` runs it again with replaced activations.

  A batch is a pure function of the step, and is the same on any number of devices, to rounding.

  Attributes:
    widths: the width of each site, in the order in which a row holds them side by side.
    rows_per_context: R.
    params: the subject's parameters, on the mesh.
  """

  def __init__(self, origin: Origin, sites: tuple[str, ...], writes: tuple[str, ...], order: Order, n_parts: int,
               mesh: jax.sharding.Mesh) -> None:
    """Loads the subject and computes nothing yet.

    Args:
      origin: what the rows are made from.
      sites: the sites that a row holds.
      writes: those of them that `divergence` replaces.
      order: batches and their order.
      n_parts: parts in which a step computes a batch.
      mesh: device mesh; contexts are split over "data".

    Raises:
      InputError: the batch has no whole number of contexts, or the subject predicts no tokens.
    """
    tokens = origin.tokens()
    judged = computed_for(origin.config, sites)
    subject = origin.subject((*judged, LAST), mesh)
    require_predicts(subject.model.output, sites[0])
    config = dataclasses.replace(origin.config, site=judged[0], more_sites=judged[1:], dtype="float32",
                                 tokens_per_context=0)
    self._visits = Visits.of(config, tokens, subject.n_context)
    self.rows_per_context = self._visits.per_context
    require_whole(order.batch_rows, self.rows_per_context, n_parts, mesh)
    self._tokens, self._mesh, self._seed = tokens, mesh, order.seed
    self._n_contexts = order.batch_rows // self.rows_per_context
    window = LANES * mesh.shape["data"] * self.rows_per_context
    self._stream = Stream(config, subject, tokens, dataclasses.replace(order, buffer_rows=window), mesh, sites)
    self.widths = self._stream.widths
    self.params = subject.placed(mesh).params
    passes = lambda n_contexts: Passes.of(n_contexts, subject.n_context, mesh.shape["data"], config.batch_contexts)
    self._forward = _make_forward(subject.model, sites, judged, self._stream.norm_limits, passes(self._n_contexts),
                                  mesh)
    self._divergence = make_spliced_divergence(subject.model, writes, passes(self._n_contexts // n_parts))
    self._held: tuple[int, tuple[jax.Array, InContext]] | None = None

  def batch(self, step: int) -> jax.Array:
    """x_BW on the mesh, float32: the rows of batch number `step`."""
    return self.batch_in_context(step)[0]

  def sample(self, n_rows: int, seed: int) -> np.ndarray:
    """(n_rows, W) different rows, as `Stream` chooses them."""
    return self._stream.sample(n_rows, seed)

  def batch_in_context(self, step: int) -> tuple[jax.Array, InContext]:
    """(x_BW, what `divergence` must know of their contexts) of batch number `step`, on the mesh."""
    if self._held is None or self._held[0] != step:
      context_C = self.contexts(step)
      place = functools.partial(meshes.on_mesh, mesh=self._mesh, spec=P("data", None))
      tokens_CT = place(self._tokens.context(context_C, self._visits.width))
      at_CR = place(self._visits.kept(context_C).astype(np.int32))
      x_BW, at_CR, last_CRD = self._forward(self.params, tokens_CT, at_CR)
      self._held = step, (x_BW, (tokens_CT, at_CR, last_CRD))
    return self._held[1]

  def contexts(self, step: int) -> np.ndarray:
    """int64 (C,): the numbers, in the text, of the contexts of batch `step`."""
    epoch_C, visit_C = np.divmod(step * self._n_contexts + np.arange(self._n_contexts), self._visits.n)
    context_C = np.empty_like(visit_C)
    for epoch in np.unique(epoch_C):
      here_C = epoch_C == epoch
      context_C[here_C] = self._visits.context(
          shuffle.permute(visit_C[here_C], self._visits.n, self._seed, int(epoch), 5))
    return context_C

  def divergence(self, params: dict, y_BO: jax.Array, in_context: InContext) -> jax.Array:
    """KL(subject as it is || subject with y in place of the sites written); see `make_spliced_divergence`."""
    return self._divergence(params, y_BO, *in_context)


def _make_forward(model, sites, judged, limits, passes, mesh):
  """The compiled function (params, tokens_CT, at_CR) -> (x_BW, at_CR, last_CRD), all split over the mesh.

  Rows that are longer than `limits` at one of the sites `judged`, which begin with `sites`, give way to others of their
  contexts, see `monojax.activations.harvest.within`.
  """
  widths = site_widths(model, judged)
  n_columns = sum(widths[site] for site in sites)

  @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P("data")))
  def forward(params, tokens_CT, at_CR):
    x_CRW, last_CRD = rows_and_last(model, judged, passes, params, tokens_CT, at_CR)
    x_CRW, slot_CR = within(x_CRW, widths, limits)
    x_CRW = x_CRW[..., :n_columns]
    at_CR, last_CRD = (jnp.take_along_axis(at_CR, slot_CR, axis=1),
                       jnp.take_along_axis(last_CRD, slot_CR[..., None], axis=1))
    return x_CRW.reshape(-1, x_CRW.shape[-1]), at_CR, last_CRD
  return forward


def require_predicts(output: str, site: str) -> None:
  """Raises `InputError` if a subject's output is that of an encoder, which has no predictions that could diverge."""
  require(output == "logits", "activations.site", site, "end-to-end training (sae.kl_coefficient) compares predictions "
          "of the next token, and this subject is an encoder, which makes none: set sae.kl_coefficient to 0")


def require_fits(config: HarvestConfig, tokens: Tokens, n_context: int, batch_rows: int, n_parts: int,
                 mesh: jax.sharding.Mesh) -> None:
  """Raises `InputError` unless batches of so many rows are whole contexts; `Contexts` does, too."""
  visits = Visits.of(dataclasses.replace(config, tokens_per_context=0, more_sites=()), tokens, n_context)
  require_whole(batch_rows, visits.per_context, n_parts, mesh)


def require_whole(batch_rows: int, per_context: int, n_parts: int, mesh: jax.sharding.Mesh) -> None:
  """Raises `InputError` unless a batch is a whole number of contexts that its parts and the devices can share."""
  unit = per_context * math.lcm(n_parts, mesh.shape["data"])
  shared = f", on {mesh.shape['data']} devices in {n_parts} parts" if unit > per_context else ""
  require(batch_rows % unit == 0, "sae.batch_rows", batch_rows, "end-to-end training (sae.kl_coefficient) takes whole "
          f"contexts, each of {per_context} rows{shared}: take a multiple of {unit}, for instance "
          f"{max(1, round(batch_rows / unit)) * unit}")
