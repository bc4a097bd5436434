"""What a recipe minimises: (params, x_BM, penalty scale) -> (loss, terms).

An objective returns, beside the scalar loss, the terms the step measures: `f_BF` and `error_BM`.
"""

import jax.numpy as jnp


def mean_square_and_l1(model, l1_coefficient):
  """Mean-over-elements squared error plus the summed L1 of the features, both averaged over the batch.

  The reduction in which the paper states its coefficient (Towards Monosemanticity, "Sparse
  Autoencoder Setup"; for M = 512, 0.004 here equals 2.048 beside a summed squared error).

  Args:
    model: `Dictionary`.
    l1_coefficient: weight of the penalty.
  """
  def objective(params, x_BM, penalty_scale):
    x_hat_BM, f_BF = model.apply({"params": params}, x_BM)
    error_BM = x_hat_BM - x_BM
    n_rows = x_BM.shape[0]
    l1 = jnp.sum(f_BF) / n_rows  # features are never negative
    loss = jnp.square(error_BM).mean() + penalty_scale * l1_coefficient * l1
    return loss, {"f_BF": f_BF, "error_BM": error_BM, "l1": l1}
  return objective


def loss_per_row(model, l1_coefficient, params, x_BM):
  """The loss of `mean_square_and_l1` on each input, shape (B,)."""
  x_hat_BM, f_BF = model.apply({"params": params}, x_BM)
  return jnp.square(x_hat_BM - x_BM).mean(1) + l1_coefficient * f_BF.sum(1)
