"""Which positions of a context count: those whose activations are kept, trained on, analysed and replaced.

At the first position of a context a pretrained transformer has little to predict from, and uses it as a sink of
attention: its residual stream is there 100 times as long as elsewhere, whatever the token. One such row would outweigh
all others in a mean, in the scale of the data and in every error. Subjects read these positions like any other, but
dictionaries do not.

Letters: B contexts of a batch, T positions of a context, V tokens of the vocabulary.
"""

import dataclasses
import typing

import numpy as np

from monojax.activations.config import HarvestConfig

if typing.TYPE_CHECKING:
  import jax


@dataclasses.dataclass(frozen=True)
class Kept:
  """The rule by which positions count. It can be hashed, so that functions that use it can be compiled and cached.

  Attributes:
    first_position: the first position of a context that counts.
    special_ids: tokens at whose positions nothing counts.
    norm_limits: (site, norm): positions at which the activation there is longer do not count.
  """
  first_position: int = 0
  special_ids: tuple[int, ...] = ()
  norm_limits: tuple[tuple[str, float], ...] = ()

  @classmethod
  def of(cls, config: HarvestConfig, prefix: tuple[int, ...], special_ids: tuple[int, ...],
         norm_limits: typing.Mapping[str, float] | None = None) -> "Kept":
    """The rule of a run.

    The prefix of a context never counts, since it is no part of the text.

    Args:
      config: the settings of its activations.
      prefix, special_ids: of its `Tokens`.
      norm_limits: {site: the longest activation that counts}, which the stage `activations` finds.
    """
    return cls(max(config.first_position or 0, len(prefix)), special_ids if config.skip_special else (),
               tuple(sorted((norm_limits or {}).items())))

  @property
  def all(self) -> bool:
    """Whether every position counts, whatever the activations there."""
    return not self.first_position and not self.special_ids and not self.norm_limits

  @property
  def sites(self) -> tuple[str, ...]:
    """The sites whose activations tell whether a position counts.

    They are all sites of a run's activations, also for a dictionary of one of them: a position that is left out of the
    rows is left out of every dictionary's measures.
    """
    return tuple(site for site, _ in self.norm_limits)

  def counts(self, tokens_BT: "jax.Array", sites: "typing.Mapping[str, jax.Array]",
             start: "int | jax.Array" = 0) -> "jax.Array":
    """Which positions count, (B, T) bool, by their tokens and by the activations (B, T, width) at some sites."""
    import jax.numpy as jnp
    mask_BT = jnp.asarray(self.mask(tokens_BT, start))
    for site, limit in self.norm_limits:
      if site in sites:
        mask_BT &= ~(jnp.linalg.norm(sites[site].astype(jnp.float32), axis=-1) > limit)  # NaN counts, to be seen
    return mask_BT

  @typing.overload
  def mask(self, tokens_BT: np.ndarray, start: int = 0) -> np.ndarray: ...

  @typing.overload
  def mask(self, tokens_BT: "jax.Array", start: "int | jax.Array" = 0) -> "jax.Array": ...

  def mask(self, tokens_BT: typing.Any, start: typing.Any = 0) -> typing.Any:
    """Which positions of some contexts count by their tokens, (B, T) bool; see `counts` for the activations.

    Of a `jax.Array` it is another one, also while it is traced.

    Args:
      tokens_BT: tokens of the contexts.
      start: the position of the first of them in its context.
    """
    if isinstance(tokens_BT, np.ndarray):
      array = np
    else:
      import jax.numpy as array  # type: ignore[no-redef]
    mask_BT = array.broadcast_to(start + array.arange(tokens_BT.shape[1]) >= self.first_position, tokens_BT.shape)
    if not self.special_ids:
      return mask_BT
    special_V = np.zeros(max(self.special_ids) + 2, bool)  # the last one stands for all higher ids
    special_V[list(self.special_ids)] = True
    return mask_BT & ~array.asarray(special_V)[array.minimum(tokens_BT, len(special_V) - 1)]


EVERY = Kept()  # every position counts
