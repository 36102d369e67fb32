"""Parts of a weight's singular value decomposition, from which transforms start."""

import jax.numpy as jnp

from pecft_jax.typing import Array


def leading_part(path: str, w: Array, rank: int) -> tuple[Array, Array, Array]:
  """U [d_in, r], S [r] and V^T [r, d_out] of the r largest singular values of W, in float32.

  Args:
    path: of the site, for the message.
    w: [d_in, d_out]
    rank: r, at least 1.

  Raises:
    ValueError: for a rank above the smaller side of the weight.

  >>> leading_part('fc', jnp.diag(jnp.array([1.0, 3.0, 2.0])), 2)[1].tolist()
  [3.0, 2.0]
  """
  u, s, v = decomposed(path, w, rank)
  return u[:, :rank], s[:rank], v[:rank]


def trailing_part(path: str, w: Array, rank: int) -> tuple[Array, Array, Array]:
  """As `leading_part`, of the r smallest singular values."""
  u, s, v = decomposed(path, w, rank)
  return u[:, -rank:], s[-rank:], v[-rank:]


def decomposed(path: str, w: Array, rank: int = 1) -> tuple[Array, Array, Array]:
  """U [d_in, q], S [q] and V^T [q, d_out], with q the smaller side of W, which is >= rank."""
  check_rank(path, w, rank)
  u, s, v = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
  return u, s, v


def check_below_size(path: str, w: Array, rank: int) -> None:
  """Raises ValueError for a rank above both sides of a weight [d_in, d_out].

  One above the smaller side says nothing more than that side, but is usual where a pattern names
  layers of several sizes, such as keys that groups of queries share.
  """
  if rank > max(w.shape):
    raise ValueError(
      f'{path}: rank {rank} is above both sides of its weight [{w.shape[0]}, {w.shape[1]}]: '
      f'expected at most {min(w.shape)}, which holds any change of it'
    )


def with_signs(vectors: Array) -> Array:
  """Columns [d, k] with signs so that the largest entry of each is positive.

  A decomposition leaves signs open, and its rounding may decide them: with other numbers of
  devices, for example.

  >>> with_signs(jnp.array([[1.0, 0.0], [-2.0, 3.0]])).tolist()
  [[-1.0, 0.0], [2.0, 3.0]]
  """
  largest = jnp.take_along_axis(vectors, jnp.abs(vectors).argmax(0, keepdims=True), 0)
  return vectors * jnp.where(largest < 0, -1, 1)


def check_rank(path: str, w: Array, rank: int) -> None:
  """Raises ValueError for a rank above the smaller side of a weight [d_in, d_out]."""
  if rank > min(w.shape):
    raise ValueError(
      f'{path}: rank {rank} is above the smaller side of its weight [{w.shape[0]}, {w.shape[1]}]'
    )
