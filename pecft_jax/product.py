"""The product with a weight that all layers and transforms use."""

from pecft_jax.typing import Array


def product(x: Array, w: Array) -> Array:
  """x W over the last axis of x, in the dtype of x: [..., d_in] x [d_in, d_out] -> [..., d_out].

  As one product of two matrices: the gradient of W then is one, too. With more
  axes, XLA on the CPU copies the whole chain of operations that x W flows into
  to another layout, element by element, before it multiplies.
  """
  rows = x.reshape(-1, x.shape[-1])
  return (rows @ w.astype(x.dtype)).reshape(*x.shape[:-1], w.shape[-1])
