"""The matrix product of the models: low-precision operands, float32 sums, a fast weight gradient."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_NK, W_KJ, dtype):
  """x W as float32, with operands rounded to `dtype` in the forward and both backward products."""
  return _product(x_NK, W_KJ, dtype)


def _product(a, b, dtype):
  return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _forward(x_NK, W_KJ, dtype):
  return _product(x_NK, W_KJ, dtype), (x_NK, W_KJ)


def _backward(dtype, residuals, gradient_NJ):
  x_NK, W_KJ = residuals
  x_KN, W_JK = x_NK.T, W_KJ.T
  if jax.default_backend() == "cpu" and x_NK.shape[1] < W_KJ.shape[1]:
    # XLA's CPU products read a transposed operand slowly: where it is the smaller one, writing the
    # transpose out first saves up to a third of the time.
    x_KN, W_JK = jax.lax.optimization_barrier((x_KN, W_JK))
  return (_product(gradient_NJ, W_JK, dtype).astype(x_NK.dtype),
          _product(x_KN, gradient_NJ, dtype).astype(W_KJ.dtype))


matmul.defvjp(_forward, _backward)
