"""Symmetric matrices of products, of which one half is computed, held and written.

The upper half of a large matrix is left out in blocks: [P, b, b] holds the blocks
(0, 0), (1, 0), (1, 1), (2, 0), ... of the lower half, row after row.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.typing import Array

# Rows of a block at most: products of such blocks run at the full rate of a matrix product.
_BLOCK = 1024
# Blocks of a matrix that has several are multiples of this: axes of a mesh divide them, too.
_MULTIPLE = 128


def dot(a: Array, b: Array) -> Array:
  """The product of matrices or vectors at the highest precision, which is not a TPU's default."""
  return jnp.matmul(a, b, precision='highest')


def no_products(size: int, block: int | None = None) -> Array:
  """Zeros for a symmetric [size, size] matrix, as blocks [P, b, b].

  Rows and columns beyond `size` are padding and stay zero.

  Args:
    size: M.
    block: b; by default M up to 1024, then a multiple of 128.

  >>> no_products(31).shape, no_products(10_000).shape
  ((1, 31, 31), (55, 1024, 1024))
  """
  if block is None:
    parts = -(-size // _BLOCK)
    block = size if parts == 1 else -(-size // (parts * _MULTIPLE)) * _MULTIPLE
  parts = -(-size // block)
  return jnp.zeros((parts * (parts + 1) // 2, block, block))


def with_products(blocks: Array, rows: Array, one: Array) -> Array:
  """The blocks of S + A^T A + d d^T from those of S.

  Args:
    blocks: [P, b, b], of a matrix [M, M].
    rows: A [B, M]
    one: d [M]

  Raises:
    AssertionError: for other shapes.
  """
  count, block, _ = blocks.shape
  parts = _parts(count)
  chex.assert_equal_shape_suffix([rows, one], 1)
  padding = parts * block - one.shape[0]
  assert 0 <= padding < block, f'blocks {blocks.shape} of no matrix of {one.shape[0]} rows'
  rows, one = jnp.pad(rows, [(0, 0), (0, padding)]), jnp.pad(one, (0, padding))
  pairs = jnp.asarray([(i, j) for i in range(parts) for j in range(i + 1)], jnp.int32)

  # One after another, so that no product is ever stored beside the sums.
  def add(k: Array, blocks: Array) -> Array:
    of = lambda a, i: jax.lax.dynamic_slice_in_dim(a, i * block, block, axis=-1)
    i, j = pairs[k]
    return blocks.at[k].add(dot(of(rows, i).T, of(rows, j)) + jnp.outer(of(one, i), of(one, j)))

  return jax.lax.fori_loop(0, count, add, blocks)


def trace(blocks: Array) -> Array:
  """[P, b, b] -> []"""
  diagonal = np.cumsum(np.arange(1, _parts(len(blocks)) + 1)) - 1
  return jnp.trace(blocks[diagonal], axis1=1, axis2=2).sum()


def lower(blocks: Array, size: int) -> Array:
  """The matrix [size, size] of blocks [P, b, b]; without those above the diagonal, which are 0."""
  count, block, _ = blocks.shape
  strips = []
  for i in range(_parts(count)):
    first, height = i * (i + 1) // 2, min(block, size - i * block)
    strip = blocks[first : first + i + 1].swapaxes(0, 1).reshape(block, -1)[:height, :size]
    strips.append(jnp.pad(strip, [(0, 0), (0, size - strip.shape[1])]))
  return jnp.concatenate(strips)


def whole(blocks: Array, size: int) -> Array:
  """The symmetric matrix [size, size] of blocks [P, b, b]."""
  half = lower(blocks, size)
  return jnp.tril(half) + jnp.tril(half, -1).T


def lower_product(rows: Array) -> Array:
  """A A^T of A [N, K] as a matrix [N, N], of which the part above the diagonal means nothing.

  That part is zero but for blocks at the diagonal, so that about one half is computed.
  """
  size = len(rows)
  strips = []
  for start in range(0, size, _BLOCK // 2):
    end = min(start + _BLOCK // 2, size)
    strip = dot(rows[start:end], rows[:end].T)
    strips.append(jnp.pad(strip, [(0, 0), (0, size - end)]))
  return jnp.concatenate(strips)


def _parts(count: int) -> int:
  """The n of n (n + 1) / 2 blocks."""
  return round((2 * count) ** 0.5 - 0.5)
