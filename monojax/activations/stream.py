"""The source `stream`: activations that are computed where they are used, and are kept nowhere.

A *window* is a number of contexts whose activations are held on the devices at a time. Its contexts are dealt to
*lanes*, each of which fills the same part of every batch, so that a device that holds some lanes needs nothing of the
others.

Letters: B rows of a batch, M width of the sites side by side, L lanes, C contexts of a window in one lane, I forward
passes that fill a window, T positions of a context, R positions kept of each, W rows of a window in one lane, J rows of
a batch from one lane, P places of a row (see `monojax.activations.harvest.sampled`).
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from monojax import mesh as meshes
from monojax import shuffle
from monojax.activations.config import HarvestConfig
from monojax.activations.harvest import (
  computed_for,
  judged_by,
  make_forward,
  norm_limits,
  rows_within,
  site_widths,
  tell,
)
from monojax.activations.layout import given_dtype
from monojax.activations.origin import Order, Origin, Prepared
from monojax.activations.visits import Visits
from monojax.config import require
from monojax.subjects.subject import LoadedSubject, Subject
from monojax.text.tokens import Tokens

LANES = 8
_MEASURED_ROWS = 65_536  # rows whose mean and norm stand for those of all rows


def prepare(origin: Origin, directory, mesh: jax.sharding.Mesh) -> Prepared:
  """Measures a sample of the rows that the stream will make: what a store would say of them."""
  order = Order(LANES * mesh.shape["data"], 2**18, origin.config.seed)  # no batch is asked for here
  source = open_source(origin, origin.config.sites, order, mesh)
  tell(*source.left_out)
  x_NM = source.sample(_MEASURED_ROWS, origin.config.seed).astype(np.float64)
  of_sites = np.split(x_NM, np.cumsum(source.widths)[:-1], axis=1)
  figures = {"rows": source.n_rows, "width": source.widths[0],
             "mean_norm": float(np.linalg.norm(of_sites[0], axis=1).mean())}
  means = {site: rows_NM.mean(0) for site, rows_NM in zip(origin.config.sites, of_sites, strict=True)}
  return Prepared(figures, means, source.norm_limits)


def open_source(origin: Origin, sites: tuple[str, ...], order: Order, mesh: jax.sharding.Mesh) -> "Stream":
  """The stream of some sites; see `monojax.activations.origin`."""
  subject = origin.subject(computed_for(origin.config, sites), mesh)
  return Stream(origin.config, subject, origin.tokens(), order, mesh, sites)


class Stream:
  """An endless shuffled sequence of a subject's activations, which never leave the device.

  The contexts of an epoch are visited in a random order. Each window of them is run through the subject
  into a buffer on the device, and its rows are drawn from there in random order, each once, so that an epoch
  holds the rows that a harvest with the same settings would store. Contexts are dealt to lanes, which are spread over
  the devices along "data" and give as many rows of each batch; up to L - 1 contexts are left out of an epoch.

  A batch is a pure function of the step: asked for out of turn, its window is computed again. It is the same on any
  number of devices that divides 8, to rounding.

  Attributes:
    width: M, the sum of the sites' `widths`.
    n_rows: rows of an epoch.
    norm_limits: {site: the longest activation that counts}, empty for no limit.
    left_out: sentences that say which contexts and rows are left out; empty ones where none are.
  """

  def __init__(self, config: HarvestConfig, subject: LoadedSubject, tokens: Tokens, order: Order,
               mesh: jax.sharding.Mesh, sites: tuple[str, ...] = ()):
    """Computes nothing yet.

    Args:
      config: the run's sites, and which tokens' activations are wanted.
      subject: the subject to run.
      tokens: the text to run it over.
      order: batches and their order; `buffer_rows` are the rows of a window, over all devices.
      mesh: device mesh; batches are split over "data".
      sites: those of the run's sites that rows are made of; by default all.

    Raises:
      InputError: a setting breaks its rule, or the subject has no such site.
    """
    sites = sites or config.sites
    n_devices, batch_rows, buffer_rows = mesh.shape["data"], order.batch_rows, order.buffer_rows
    model = subject.model
    meshes.require_divides(mesh, "data", batch_rows, "sae.batch_rows")
    self._visits = Visits.of(config, tokens, subject.n_context)
    dealt = LANES % n_devices == 0 and batch_rows % LANES == 0 and self._visits.n >= LANES
    n_lanes = LANES if dealt else n_devices
    self._tokens, self._mesh, self._seed = tokens, mesh, order.seed
    self._dtype = given_dtype(config.dtype)
    self._batch_contexts = -(-config.batch_contexts // n_lanes) * n_lanes
    self._n_lanes, self._lane_visits = n_lanes, self._visits.n // n_lanes
    require(self._lane_visits > 0, "mesh.data", n_devices, f"there are only {self._visits.n} contexts")
    per_context = self._visits.per_context
    window = min(buffer_rows // (n_lanes * per_context), self._lane_visits)
    require(window > 0, "sae.buffer_rows", buffer_rows,
            f"must hold a context of each lane: {n_lanes} x {per_context} rows")
    self._lane_pass = min(self._batch_contexts // n_lanes, window)
    self._window_visits, self._n_passes = window, -(-window // self._lane_pass)
    self._lane_batch = batch_rows // n_lanes
    self.widths = tuple(site_widths(model, sites).values())
    self.width = sum(self.widths)
    self.n_rows = self._lane_visits * n_lanes * per_context
    self._params = subject.placed(mesh).params
    self.norm_limits, long_rows = norm_limits(config, dataclasses.replace(subject, params=self._params), tokens, mesh)
    self.left_out = (self._visits.left_out, long_rows)
    judged = judged_by(config, sites)
    self._forward = make_forward(model, sites, self._dtype, mesh, self.norm_limits, judged)
    self._fill = make_fill(model, sites, self._dtype, mesh, self.norm_limits, judged)
    self._draw = make_draw(mesh)
    self._buffer: jax.Array | None = None
    self._held: tuple[int, int] | None = None

  def batch(self, step):
    """x_BM on the mesh, batch number `step`."""
    x_BM = self._zeros((self._n_lanes * self._lane_batch, self.width))
    for epoch, window, place_LJ, taken_J in self._pieces(step):
      self._hold(epoch, window)
      x_BM = self._draw(x_BM, self._buffer, meshes.on_mesh(place_LJ, self._mesh, P("data")), taken_J)
    return x_BM

  def sample(self, n_rows, seed):
    """(n_rows, M) different rows, or all there are, as a host array: a quarter of the tokens of random contexts.

    For estimates such as a geometric median.
    """
    require(n_rows > 0, "n_rows", n_rows, "must be positive")
    visits = self._visits
    n_rows = min(n_rows, visits.n_rows)
    n_contexts = min(visits.n, -(-4 * n_rows // visits.per_context))
    visit_B = shuffle.permute(np.arange(n_contexts), visits.n, seed, 3)
    place_N = shuffle.permute(np.arange(n_rows), n_contexts * visits.per_context, seed, 4)
    sampled_NM = np.empty((n_rows, self.width), self._dtype)
    for start in range(0, n_contexts, self._batch_contexts):
      number_B = np.arange(start, start + self._batch_contexts)
      first, last = start * visits.per_context, min(number_B[-1] + 1, n_contexts) * visits.per_context
      here = np.flatnonzero((place_N >= first) & (place_N < last))
      context_B = visits.context(visit_B[np.minimum(number_B, n_contexts - 1)])
      acts_BRM, _ = self._forward(self._params, self._tokens.context(context_B, visits.width),
                                  visits.places(context_B))
      sampled_NM[here] = meshes.to_host(acts_BRM).reshape(-1, self.width)[place_N[here] - first]
    return sampled_NM

  def positions(self, step):
    """int64 (B,): where in the text the token of each row of `batch(step)` is.

    Of a row that is too long (`norm_limits`) it is not known here that another took its place.
    """
    position_LJ = np.empty((self._n_lanes, self._lane_batch), np.int64)
    per_context = self._visits.per_context
    for epoch, window, place_LJ, taken_J in self._pieces(step):
      slot_LJ, kept_LJ = np.divmod(place_LJ[:, taken_J], per_context)
      context_LJ = self._contexts(epoch, window * self._window_visits + slot_LJ)
      position_LJ[:, taken_J] = np.stack([self._visits.positions(context_J)[np.arange(len(kept_J)), kept_J]
                                          for context_J, kept_J in zip(context_LJ, kept_LJ, strict=True)])
    return position_LJ.reshape(-1)

  def _pieces(self, step):
    """(epoch, window, places in each lane, which of a lane's rows they are for) of batch `step`, in order."""
    per_context, n_lane_rows = self._visits.per_context, self._lane_visits * self._visits.per_context
    window_rows = self._window_visits * per_context
    at, end, filled = step * self._lane_batch, (step + 1) * self._lane_batch, 0
    while at < end:
      epoch, offset = divmod(at, n_lane_rows)
      window, inside = divmod(offset, window_rows)
      size = min(window_rows, n_lane_rows - window * window_rows)
      n = min(size - inside, end - at)
      place_LJ = np.zeros((self._n_lanes, self._lane_batch), np.int32)
      taken_J = (np.arange(self._lane_batch) >= filled) & (np.arange(self._lane_batch) < filled + n)
      index_LJ = np.broadcast_to(np.arange(inside, inside + n), (self._n_lanes, n))
      lane_L1 = np.arange(self._n_lanes)[:, None]
      place_LJ[:, taken_J] = shuffle.permute(index_LJ, size, self._seed, epoch, window, lane_L1)
      yield epoch, window, place_LJ, taken_J
      at, filled = at + n, filled + n

  def _contexts(self, epoch, number_C):
    """The contexts, (L, C), that each lane visits as its `number_C`-th of an epoch; numbers may differ by lane."""
    visit_LC = number_C * self._n_lanes + np.arange(self._n_lanes)[:, None]
    return self._visits.context(shuffle.permute(visit_LC, self._visits.n, self._seed, epoch, 0, 2))

  def _hold(self, epoch, window):
    """Runs a window's contexts through the subject into the buffer, unless they are in it."""
    if self._held == (epoch, window):
      return
    self._held = None
    if self._buffer is None:
      n_rows = self._n_passes * self._lane_pass * self._visits.per_context
      self._buffer = self._zeros((self._n_lanes, n_rows, self.width))
    first = window * self._window_visits
    number_C = np.minimum(first + np.arange(self._n_passes * self._lane_pass), self._lane_visits - 1)
    context_LC = self._contexts(epoch, number_C)
    in_passes = lambda a_LC: (a_LC.reshape(self._n_lanes, self._n_passes, self._lane_pass, -1).swapaxes(0, 1)
                              .reshape(self._n_passes, self._n_lanes * self._lane_pass, -1))
    context_IB = in_passes(context_LC)[..., 0].reshape(-1)
    shape = (self._n_passes, self._n_lanes * self._lane_pass, -1)
    split = P(None, "data")
    tokens_IBT = meshes.on_mesh(self._tokens.context(context_IB, self._visits.width).reshape(shape), self._mesh, split)
    place_BRP = self._visits.places(context_IB)
    place_IBRP = meshes.on_mesh(place_BRP.reshape(*shape, place_BRP.shape[-1]), self._mesh, split)
    self._buffer = self._fill(self._buffer, self._params, tokens_IBT, place_IBRP)
    self._held = epoch, window

  def _zeros(self, shape):
    return _zeros(shape, self._dtype, NamedSharding(self._mesh, P("data")))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape, dtype, sharding):
  return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


def make_fill(model: Subject, sites: tuple[str, ...], dtype, mesh: jax.sharding.Mesh,
              limits: dict[str, float] | None = None, judged: tuple[str, ...] = ()) -> typing.Callable:
  """The compiled function (buffer_LWM, params, tokens_IBT, place_IBRP) -> the buffer, filled; it is donated.

  See `monojax.activations.harvest.make_forward`.
  """
  @functools.partial(jax.jit, donate_argnums=0, out_shardings=NamedSharding(mesh, P("data")))
  def fill(buffer_LWM, params, tokens_IBT, place_IBRP):
    n_lanes, _, width = buffer_LWM.shape

    def one_pass(i, buffer_LWM):
      acts_BRM, _ = rows_within(model, params, sites, judged or sites, tokens_IBT[i], place_IBRP[i], limits)
      rows_LWM = acts_BRM.astype(dtype).reshape(n_lanes, -1, width)
      return jax.lax.dynamic_update_slice_in_dim(buffer_LWM, rows_LWM, i * rows_LWM.shape[1], 1)
    return jax.lax.fori_loop(0, len(tokens_IBT), one_pass, buffer_LWM)
  return fill


def make_draw(mesh: jax.sharding.Mesh) -> typing.Callable:
  """The compiled function (x_BM, buffer_LWM, place_LJ, taken_J) -> x_BM with rows of the buffer where taken.

  Each device draws from the lanes that it has.
  """
  def of_device(x_BM, buffer_LWM, place_LJ, taken_J):
    lane_L1 = jnp.arange(len(buffer_LWM))[:, None]
    drawn_LJM = buffer_LWM.at[lane_L1, place_LJ].get(mode="clip")
    return jnp.where(jnp.tile(taken_J, len(buffer_LWM))[:, None], drawn_LJM.reshape(x_BM.shape), x_BM)
  data = P("data")
  return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=(data, data, data, P()), out_specs=data),
                 donate_argnums=0)
