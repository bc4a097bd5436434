"""A batch's features, dense or sparse, and what is computed from them in either form.

A dense code is `f_BF` with `index` None. A sparse one holds K features of each row: values `f_BK` and the
features' numbers `index_BK`. What a recipe's loss needs of a code is here once for both, with exact
gradients: of the sparse form they touch only what the code names, so that of a step's five dense matrix
products only the encoder's remains.

Letters: B batch, M width read, O width written, F features, K features kept of a row.
"""

import functools

import jax
import jax.numpy as jnp

from monojax.linear import matmul


def at(v_F, index):
  """A value a feature, beside a code: (1, F) for a dense one, (B, K) for a sparse one."""
  return v_F[None] if index is None else v_F[index]


def decode(f, index, W_FO, dtype):
  """The sum over features of value times direction, shape (B, O), float32."""
  return matmul(f, W_FO, dtype) if index is None else sparse_decode(f, index, W_FO)


def count_F(mask, index, n_features):
  """How many rows have `mask` set for each feature, int32."""
  if index is None:
    return jnp.sum(mask, axis=0, dtype=jnp.int32)
  return jnp.zeros((n_features,), jnp.int32).at[index.reshape(-1)].add(mask.reshape(-1).astype(jnp.int32))


@jax.custom_vjp
def sparse_decode(f_BK, index_BK, W_FO):
  """sum_k f[b, k] W[index[b, k]], float32."""
  return _gathered_sum(f_BK, index_BK, W_FO)


def _gathered_sum(f_BK, index_BK, W_FO):
  def add(total_BO, f_BJ, index_BJ):
    # One expression over a few columns, which XLA fuses into one loop that never writes the gathered rows.
    columns = range(f_BJ.shape[1])
    return total_BO + functools.reduce(jnp.add, (f_BJ[:, j, None] * W_FO[index_BJ[:, j]] for j in columns))
  return _over_columns(add, jnp.zeros((f_BK.shape[0], W_FO.shape[1])), f_BK, index_BK)


def _over_columns(add, start, f_BK, index_BK, n_together=8):
  """Folds `add(total, f_BJ, index_BJ)` over the columns of a sparse code, some at a time."""
  n_rows, n_columns = f_BK.shape
  n_loops = n_columns // n_together

  def loop(i, total):
    part = lambda a: jax.lax.dynamic_slice(a, (0, i * n_together), (n_rows, n_together))
    return add(total, part(f_BK), part(index_BK))
  total = jax.lax.fori_loop(0, n_loops, loop, start) if n_loops else start
  rest = slice(n_loops * n_together, n_columns)
  return add(total, f_BK[:, rest], index_BK[:, rest]) if n_columns % n_together else total


def _decode_forward(f_BK, index_BK, W_FO):
  return _gathered_sum(f_BK, index_BK, W_FO), (f_BK, index_BK, W_FO)


def _decode_backward(residuals, gradient_BO):
  f_BK, index_BK, W_FO = residuals
  return (gathered_dots(gradient_BO, index_BK, W_FO), None,
          scattered_rows(f_BK, index_BK, gradient_BO, W_FO.shape[0]))


sparse_decode.defvjp(_decode_forward, _decode_backward)


def gathered_dots(g_BO, index_BK, W_FO):
  """g[b] . W[index[b, k]], shape (B, K)."""
  return jax.lax.map(lambda index_B: jnp.sum(g_BO * W_FO[index_B], axis=1), index_BK.T).T


def scattered_rows(f_BK, index_BK, g_BO, n_features):
  """sum over b, k of f[b, k] g[b] into row index[b, k], shape (F, O)."""
  def add(total_FO, column):
    f_B, index_B = column
    return total_FO.at[index_B].add(f_B[:, None] * g_BO), None
  return jax.lax.scan(add, jnp.zeros((n_features, g_BO.shape[1]), g_BO.dtype), (f_BK.T, index_BK.T))[0]


@jax.custom_vjp
def pre_activations_at(x_BM, W_MF, bias_F, h_BF, index_BK):
  """The entries `index_BK` of h = x W + bias, which is given: its gradient touches those entries alone.

  The gradient is with respect to W and bias; x and h are data.
  """
  return jnp.take_along_axis(h_BF, index_BK, axis=1)


def _at_forward(x_BM, W_MF, bias_F, h_BF, index_BK):
  return jnp.take_along_axis(h_BF, index_BK, axis=1), (x_BM, bias_F, h_BF, index_BK)


def _at_backward(residuals, g_BK):
  x_BM, bias_F, h_BF, index_BK = residuals
  g_MF = scattered_rows(g_BK, index_BK, x_BM, bias_F.shape[0]).T
  g_F = jnp.zeros_like(bias_F).at[index_BK.reshape(-1)].add(g_BK.reshape(-1))
  return jnp.zeros_like(x_BM), g_MF, g_F, jnp.zeros_like(h_BF), None


pre_activations_at.defvjp(_at_forward, _at_backward)
