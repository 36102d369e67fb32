"""Running means and centred products of features and targets, for regressions."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from pecft_jax.continual.memory import symmetric
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.typing import Array


class Moments(NamedTuple):
  """The sufficient statistics of a linear regression on n examples (h, y), float32.

  Random ReLU features have a large common mean. Its square in a plain Gram
  matrix, H^T H = gram + n mean mean^T, is orders of magnitude larger than the
  differences between examples, which are then lost in rounding. So products are of centred rows.

  Of the symmetric `gram` the lower half is held, in the blocks of `symmetric`.
  """

  AXES = {'mean_y': ('class',), 'half': ('row', 'column'), 'cross': (None, 'class')}

  count: Array  # [] the number n of examples.
  mean: Array  # [M] of h
  mean_y: Array  # [C] of y
  half: Array  # [P, b, b], the blocks of `gram`.
  cross: Array  # [M, C] sum of (h - mean)(y - mean_y)^T

  @property
  def gram(self) -> Array:
    """[M, M], the sum of (h - mean)(h - mean)^T."""
    return symmetric.whole(self.half, len(self.mean))


def no_moments(features: int, classes: int, *, block: int | None = None) -> Moments:
  """Moments of no example yet.

  Args:
    features: M.
    classes: C.
    block: rows of a block of `Moments.half`; chosen from M by default.
  """
  zeros = jnp.zeros
  return Moments(
    zeros(()),
    zeros(features),
    zeros(classes),
    symmetric.no_products(features, block),
    zeros((features, classes)),
  )


def with_rows(moments: Moments, h: Array, y: Array, valid: Array) -> Moments:
  """The moments with more examples.

  The update of Chan, Golub and LeVeque (1979) for two sets: the centred products
  of a union are those of either set and the difference d of their means,

    A^T A + B^T B + n m / (n + m) d d^T.

  One product of matrices, at the highest precision, of which half is computed.

  Args:
    moments: of M features and C classes.
    h: [B, M] float32
    y: [B, C] float32
    valid: [B] bool; other rows are ignored.

  Raises:
    AssertionError: for other shapes.
  """
  rows = len(valid)
  chex.assert_shape(
    [h, y, valid], [(rows, len(moments.mean)), (rows, len(moments.mean_y)), (rows,)]
  )
  many = valid.sum(dtype=jnp.float32)
  count = moments.count + many
  share = valid / jnp.maximum(many, 1)
  step = many / jnp.maximum(count, 1)

  def centred(rows: Array) -> tuple[Array, Array]:
    """Their mean, and the rows without it."""
    own = dot(share, rows)
    return own, (rows - own) * valid[:, None]

  own, a = centred(h)
  own_y, b = centred(y)
  d, d_y = own - moments.mean, own_y - moments.mean_y
  weight = moments.count * step
  return Moments(
    count,
    moments.mean + step * d,
    moments.mean_y + step * d_y,
    symmetric.with_products(moments.half, a, jnp.sqrt(weight) * d),
    moments.cross + dot(a.T, b) + weight * jnp.outer(d, d_y),
  )
