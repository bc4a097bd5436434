"""How far a subject's predictions move when something takes the place of its activations, and the gradient of that.

Letters: C contexts of a batch, J or B contexts of one pass, T positions of a context, L of a chunk, R of these at which
activations are replaced, N = C * R, O width of the replaced sites side by side, D width of what the unembedding reads,
V tokens of the vocabulary.
"""

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from monojax.subjects.loss import MAX_LOGITS, chunk_positions, divergence, divergences, next_token_loss
from monojax.subjects.subject import LAST, Subject, unembedded

# Positions of a device in one pass through the subject. A pass holds what its gradient needs, of every layer above the
# site: for each position some ten numbers for each of the residual stream's, and in attention three for each key.
_PASS_POSITIONS = 2048
# Logits of one prediction that a CPU's cache has room for beside those it is compared with; and the fewest rows of a
# product with the unembedding for which reading its weights does not count.
_CACHED_LOGITS, _CHUNK_ROWS = 2 ** 19, 64
Tree = typing.Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Passes:
  """How the contexts of a batch are cut into passes, one after the other, so that memory does not grow with the batch.

  Attributes:
    n: the number of passes.
  """
  n: int

  @classmethod
  def of(cls, n_contexts: int, n_positions: int, n_devices: int, most: int) -> "Passes":
    """The fewest passes of equal size that are small enough.

    Args:
      n_contexts: contexts of the batch.
      n_positions: T.
      n_devices: devices that contexts are split over; each has a part of every pass where that is possible.
      most: contexts that a pass may have in any case, over all devices.
    """
    n_devices = n_devices if n_contexts % n_devices == 0 else 1
    of_device, most_of_device = n_contexts // n_devices, max(1, min(_PASS_POSITIONS // n_positions, most // n_devices))
    return cls(next(n for n in range(1, of_device + 1) if of_device % n == 0 and of_device // n <= most_of_device))

  def map(self, function: collections.abc.Callable[[Tree], Tree], contexts: Tree) -> Tree:
    """What a function makes of contexts: it is given those of one pass, and gives results with a row for each."""
    if self.n == 1:
      return function(contexts)
    # Every pass takes contexts from all devices.
    cut = jax.tree.map(lambda leaf: leaf.reshape(-1, self.n, *leaf.shape[1:]).swapaxes(0, 1), contexts)
    found = jax.lax.map(function, cut)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), found)


def rows_and_last(model: Subject, sites: tuple[str, ...], passes: Passes, params: dict, tokens_CT: jax.Array,
                  at_CR: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(the sites' activations side by side, (C, R, M) float32; what the unembedding reads, (C, R, D)) of a subject as it
  is, at some positions of each context; to be traced."""
  def one_pass(contexts: Tree) -> tuple[jax.Array, jax.Array]:
    tokens_JT, at_JR = contexts
    _, found = model.apply({"params": params}, tokens_JT, wanted=tuple(dict.fromkeys((*sites, LAST))))
    at = lambda x_JTD: jnp.take_along_axis(x_JTD, at_JR[:, :, None], axis=1)
    return at(jnp.concatenate([found[site].astype(jnp.float32) for site in sites], axis=-1)), at(found[LAST])
  return passes.map(one_pass, (tokens_CT, at_CR))


def make_spliced_divergence(model: Subject, writes: tuple[str, ...], passes: Passes) -> collections.abc.Callable:
  """The function that says how far replaced activations move a subject's predictions; to be traced.

  Contexts are run pass by pass, and the logits of a pass exist for a chunk of positions at a time. The gradient by the
  replaced activations is computed together with the value, as in `unembed_loss`. Memory is needed for one pass (see
  `_PASS_POSITIONS`), for about six chunks of logits of at most half a GiB, and for N x O numbers, the gradient.

  Args:
    model: the subject.
    writes: the sites that are replaced, all of them together.
    passes: how contexts are cut into passes.

  Returns:
    (params, y_NO, tokens_CT, at_CR, last_CRD) -> KL(subject as it is || subject with y in place of the activations at
    the positions `at`), in nats, the mean over these positions, a float32 scalar. `last` is what the unembedding reads
    at these positions in the subject as it is, from `rows_and_last`. It is differentiable by y.
  """
  ends = np.cumsum([model.site_widths[site] for site in writes])[:-1]

  def summed(y_JRO: jax.Array, params: dict, tokens_JT: jax.Array, at_JR: jax.Array, last_JRD: jax.Array) -> jax.Array:
    """The divergences of one pass, (J,), a sum over each context's positions."""
    context_J1 = jnp.arange(len(tokens_JT))[:, None]
    replaced_JT1 = jnp.zeros((*tokens_JT.shape, 1), bool).at[context_J1, at_JR].set(True)
    y_JTO = jnp.zeros((*tokens_JT.shape, y_JRO.shape[2])).at[context_J1, at_JR].set(y_JRO)
    edit = {site: lambda x, part=part: jnp.where(replaced_JT1, part.astype(x.dtype), x)
            for site, part in zip(writes, jnp.split(y_JTO, ends, axis=-1), strict=True)}
    _, found = model.apply({"params": params}, tokens_JT, edit, wanted=(LAST,))
    spliced_JRD = jnp.take_along_axis(found[LAST], at_JR[:, :, None], axis=1)
    return summed_divergence(model, params, last_JRD, spliced_JRD)

  def forward(params, y_NO, tokens_CT, at_CR, last_CRD):
    def one_pass(contexts):
      y_JRO, *others = contexts
      sums_J, gradient_of = jax.vjp(lambda y_JRO: summed(y_JRO, params, *others), y_JRO)
      return sums_J, gradient_of(jnp.ones_like(sums_J))[0]
    sums_C, d_CRO = passes.map(one_pass, (y_NO.reshape(*at_CR.shape, -1), tokens_CT, at_CR, last_CRD))
    return sums_C.sum() / at_CR.size, d_CRO.reshape(y_NO.shape) / at_CR.size

  @jax.custom_vjp
  def value(params, y_NO, tokens_CT, at_CR, last_CRD):
    return forward(params, y_NO, tokens_CT, at_CR, last_CRD)[0]

  value.defvjp(forward, lambda d_NO, gradient: (None, gradient * d_NO, None, None, None))
  return value


def summed_divergence(model: Subject, params: dict, clean_JRD: jax.Array, changed_JRD: jax.Array) -> jax.Array:
  """KL(clean || changed) of the predictions from what the unembedding reads, (J,), summed over positions, in nats.

  Logits exist for a chunk of positions at a time, also while its gradient is computed.
  """
  n_contexts, n_positions, _ = clean_JRD.shape
  length = chunk_positions(n_contexts, n_positions, model.n_vocab)
  unembed = functools.partial(unembedded, model, params)

  @functools.partial(jax.checkpoint, prevent_cse=False)  # inside of a scan nothing could be merged
  def chunk(sums_J: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    clean_JLD, changed_JLD = inputs
    return sums_J + divergence(unembed(clean_JLD), unembed(changed_JLD)).sum(1), None
  # The last chunk is filled up with zeros, whose predictions are equal and do not differ.
  return jax.lax.scan(chunk, jnp.zeros(n_contexts), (_cut(clean_JRD, length), _cut(changed_JRD, length)))[0]


def scores_by_position(model: Subject, params: dict, last: collections.abc.Mapping[str, jax.Array],
                       targets_BT: jax.Array) -> dict[str, jax.Array]:
  """How well next tokens are predicted, and how far each prediction has moved, at every position; to be traced.

  Logits exist for a chunk of positions at a time, which on a CPU fits into its cache: each is read several times.

  Args:
    model, params: the subject.
    last: {name: what the unembedding reads, (B, T, D)}.
    targets_BT: the tokens that come next.

  Returns:
    Of shape (B, T), in nats: {"ce/NAME": cross-entropies}; and, if one of the names is "clean", which is the subject as
    it is, {"kl/NAME": KL(clean || NAME)} for the others.
  """
  n_contexts, n_positions = targets_BT.shape
  rows = max(_CHUNK_ROWS, (_CACHED_LOGITS if jax.default_backend() == "cpu" else MAX_LOGITS) // model.n_vocab)
  length = min(n_positions, max(1, rows // n_contexts))

  def chunk(inputs: tuple[dict[str, jax.Array], jax.Array]) -> dict[str, jax.Array]:
    last, targets_BL = inputs
    logits = {name: unembedded(model, params, u_BLD) for name, u_BLD in last.items()}
    found = {f"ce/{name}": next_token_loss(of_BLV, targets_BL) for name, of_BLV in logits.items()}
    if "clean" in logits:
      found |= {f"kl/{name}": kl_BL for name, kl_BL in divergences(logits.pop("clean"), logits).items()}
    return found
  found = jax.lax.map(chunk, jax.tree.map(lambda x: _cut(x, length), (dict(last), targets_BT)))
  return {name: jnp.moveaxis(of_CBL, 0, 1).reshape(n_contexts, -1)[:, :n_positions] for name, of_CBL in found.items()}


def _cut(x_BT: jax.Array, length: int) -> jax.Array:
  """(B, T, ...) cut into chunks of positions, the last filled up with zeros: (chunks, B, `length`, ...).

  Every chunk has all of the batch, which a mesh may split over its devices.
  """
  padded = jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % length), *((0, 0),) * (x_BT.ndim - 2)))
  return jnp.moveaxis(padded.reshape(len(x_BT), -1, length, *x_BT.shape[2:]), 1, 0)
