"""End-to-end training: a term of the loss that says what a reconstruction does to the network it is spliced into.

The network is frozen, and this room does not know it: whoever trains gives a `Downstream`.

Letters: B rows of a batch, C its contexts, R rows of each of these, W numbers in a row, O numbers written.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from monojax.config import require
from monojax.sae.objectives import Pass
from monojax.sae.parts import MadeRecipe

_LEAST = 1e-9  # nats below which a divergence is not enlarged further
InContext = Any  # a pytree of arrays whose first axis is C
Added = tuple[jax.Array, dict[str, jax.Array]]  # (what is added to the loss, metrics)


class Downstream(Protocol):
  """Batches of whole contexts, and what replacing some of their activations does to the network above.

  `monojax.activations.contexts.Contexts` is one.

  Attributes:
    params: a pytree of arrays that `divergence` is given, which stay as they are. A compiled step has them as an
      argument, not as constants.
  """

  @property
  def params(self) -> Any: ...

  def batch_in_context(self, step: int) -> tuple[jax.Array, InContext]:
    """(x_BW, what `divergence` must know of the contexts) of a step, on the mesh: a pure function of the step.

    The rows of a context are next to each other, R of each.
    """
    ...

  def divergence(self, params: Any, y_BO: jax.Array, in_context: InContext) -> jax.Array:
    """The mean over rows of KL(network as it is || network with y in its place), in nats; differentiable by y.

    Args:
      params: the attribute.
      y_BO: what takes the place of the activations written, in their own units.
      in_context: what `batch_in_context` gave, or that of a part of the contexts.
    """
    ...


def require_given(kl_coefficient: float, downstream: Downstream | None) -> None:
  """Raises `InputError` if a setting asks for end-to-end training and there is nothing to train through."""
  require(not kl_coefficient or downstream is not None, "sae.kl_coefficient", kl_coefficient, "end-to-end training "
          "runs the subject in every step, and these activations come without one: harvest from a subject, or set it "
          "to 0")


def added(downstream: Downstream, recipe: MadeRecipe, passed: Pass, scale_O: jax.Array,
          beyond: tuple[Any, InContext]) -> Added:
  """coefficient * sg(error / KL) * KL, where error is the recipe's error of the whole dictionary's reconstruction.

  The factor sg(error / KL), through which no gradient flows, makes the divergence as large as the error: it is of 0.01
  to 1 nats for any subject, while errors of recipes differ by factors of a thousand. Fine-tuning "with KL + MSE"
  (arXiv 2503.17272) rescales likewise; at a coefficient of 1 error and divergence count half each of what both are
  together. The direction is that of the code of end-to-end dictionaries (Braun et al. 2024).

  Args:
    downstream: what the reconstruction is spliced into.
    recipe: whose error it is, and which has the coefficient.
    passed: the batch's way through the dictionary, in the units of training.
    scale_O: what the activations written were multiplied by for training.
    beyond: (`downstream.params`, what it must know of the contexts).

  Returns:
    The term, and the metrics `kl` (nats) and `kl_weight` (what it is multiplied by).
  """
  kl = downstream.divergence(beyond[0], (passed.y_BO + passed.error_BO) / scale_O[None], beyond[1])
  error = recipe.error(passed.y_BO, passed.error_BO)
  weight = recipe.kl_coefficient * jax.lax.stop_gradient(error / jnp.maximum(kl, _LEAST))
  return weight * kl, {"kl": kl, "kl_weight": weight}
