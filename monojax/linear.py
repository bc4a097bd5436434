"""The matrix product that all models use: operands of a chosen precision, sums in float32, and a fast gradient.

Letters: N rows, I the width that comes in, O the width that is written.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_NI: jax.Array, W_IO: jax.Array, dtype: Any) -> jax.Array:
  """The product x W in float32, whose gradient is defined below.

  Operands are rounded to `dtype` in this product and in the two products of its gradient.
  """
  return product(x_NI, W_IO, dtype)


def product(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
  """The matrix product a b in float32, with a and b rounded to `dtype` first."""
  # Without `HIGHEST`, an accelerator would round operands that are to be float32 to TF32 or bfloat16.
  exact = dtype == jnp.float32 and jax.default_backend() != "cpu"
  return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32,
                    precision=jax.lax.Precision.HIGHEST if exact else None)


def _forward(x_NI: jax.Array, W_IO: jax.Array, dtype: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(x_NI, W_IO, dtype), (x_NI, W_IO)


def _backward(dtype: Any, residuals: tuple[jax.Array, jax.Array],
              gradient_NO: jax.Array) -> tuple[jax.Array, jax.Array]:
  x_NI, W_IO = residuals
  x_IN, W_OI = x_NI.T, W_IO.T
  if jax.default_backend() == "cpu" and (x_NI.shape[1] < W_IO.shape[1] or x_NI.size <= 2 ** 22):
    # XLA's CPU products read a transposed operand slowly. Writing the transpose out first saves up to two fifths of the
    # time, unless x is both large and wider than the product. The barrier keeps XLA from undoing it.
    x_IN, W_OI = jax.lax.optimization_barrier((x_IN, W_OI))
  return (product(gradient_NO, W_OI, dtype).astype(x_NI.dtype),
          product(x_IN, gradient_NO, dtype).astype(W_IO.dtype))


matmul.defvjp(_forward, _backward)
