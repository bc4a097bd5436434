"""What a recipe minimises: (params, x_BM, penalty scale) -> (loss, terms).

An objective returns, beside the scalar loss, the terms the step measures: `f_BF` and `error_BM`.
"""

import jax.numpy as jnp


def mean_square_and_l1(model, l1_coefficient, nested_sizes=(), nested_weight=0.0):
  """Mean-over-elements squared error plus the summed L1 of the features, both averaged over the batch.

  The reduction in which the paper states its coefficient (Towards Monosemanticity, "Sparse
  Autoencoder Setup"; for M = 512, 0.004 here equals 2.048 beside a summed squared error).

  With `nested_sizes`, the first n features must also do as a dictionary of their own, for each n: the same
  loss of that part is added, `nested_weight` times. What is common to many inputs, a script or a format,
  then keeps a feature instead of being split over features of single tokens (the nested loss of Matryoshka
  SAEs, arXiv 2503.17547, on an L1 dictionary).

  Args:
    model: `Dictionary`.
    l1_coefficient: weight of the penalty.
    nested_sizes: sizes of the leading groups of features; none is the published method.
    nested_weight: weight of each group's loss beside the whole dictionary's.
  """
  def loss_of(error_BM, l1, penalty_scale):
    return jnp.square(error_BM).mean() + penalty_scale * l1_coefficient * l1

  def objective(params, x_BM, penalty_scale):
    x_hat_BM, f_BF = model.apply({"params": params}, x_BM)
    error_BM = x_hat_BM - x_BM
    n_rows = x_BM.shape[0]
    l1 = jnp.sum(f_BF) / n_rows  # features are never negative
    loss = loss_of(error_BM, l1, penalty_scale)
    for n in nested_sizes:
      part_BM = model.apply({"params": params}, f_BF[:, :n], method="decode")
      loss += nested_weight * loss_of(part_BM - x_BM, jnp.sum(f_BF[:, :n]) / n_rows, penalty_scale)
    return loss, {"f_BF": f_BF, "error_BM": error_BM, "l1": l1}
  return objective


def loss_per_row(model, l1_coefficient, params, x_BM):
  """The loss of `mean_square_and_l1` on each input, shape (B,)."""
  x_hat_BM, f_BF = model.apply({"params": params}, x_BM)
  return jnp.square(x_hat_BM - x_BM).mean(1) + l1_coefficient * f_BF.sum(1)
