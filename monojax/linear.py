"""The matrix product of the models: low-precision operands, float32 sums, a fast weight gradient."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_NK, W_KJ, dtype):
  """x W as float32, with operands rounded to `dtype` in the forward and both backward products."""
  return product(x_NK, W_KJ, dtype)


def product(a, b, dtype):
  """a b as float32, of operands rounded to `dtype`."""
  # An accelerator's default for float32 operands is TF32 or bfloat16.
  exact = dtype == jnp.float32 and jax.default_backend() != "cpu"
  return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32,
                    precision=jax.lax.Precision.HIGHEST if exact else None)


def _forward(x_NK, W_KJ, dtype):
  return product(x_NK, W_KJ, dtype), (x_NK, W_KJ)


def _backward(dtype, residuals, gradient_NJ):
  x_NK, W_KJ = residuals
  x_KN, W_JK = x_NK.T, W_KJ.T
  if jax.default_backend() == "cpu" and (x_NK.shape[1] < W_KJ.shape[1] or x_NK.size <= 2 ** 22):
    # XLA's CPU products read a transposed operand slowly: unless it is large and the larger one, writing
    # the transpose out first saves up to two fifths of the time.
    x_KN, W_JK = jax.lax.optimization_barrier((x_KN, W_JK))
  return (product(gradient_NJ, W_JK, dtype).astype(x_NK.dtype),
          product(x_KN, gradient_NJ, dtype).astype(W_KJ.dtype))


matmul.defvjp(_forward, _backward)
