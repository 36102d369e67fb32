"""Running means and centred products of features and targets, for regressions."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from pecft_jax.typing import Array


class Moments(NamedTuple):
  """The sufficient statistics of a linear regression on n examples (h, y), float32.

  Random ReLU features have a large common mean. Its square in a plain Gram
  matrix, H^T H = gram + n mean mean^T, is orders of magnitude larger than the
  differences between examples, which are then lost in rounding. So products are of centred rows.
  """

  AXES = {'mean_y': ('class',), 'gram': ('row', 'column'), 'cross': (None, 'class')}

  count: Array  # [] the number n of examples.
  mean: Array  # [M] of h
  mean_y: Array  # [C] of y
  gram: Array  # [M, M] sum of (h - mean)(h - mean)^T
  cross: Array  # [M, C] sum of (h - mean)(y - mean_y)^T


def no_moments(features: int, classes: int) -> Moments:
  """Moments of no example yet, with M features and C classes."""
  shapes = (), (features,), (classes,), (features, features), (features, classes)
  return Moments(*map(jnp.zeros, shapes))


def with_rows(moments: Moments, h: Array, y: Array, valid: Array) -> Moments:
  """The moments with more examples.

  Welford's update, for a whole batch: with the means before and after it,
  sum (h - before)(h - after)^T over its rows is what the centred products grow
  by. One product of matrices, at the highest precision.

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

  def centred(mean: Array, rows: Array) -> tuple[Array, Array, Array]:
    """The mean after the rows, and the rows less the mean before, and after."""
    own = dot(share, rows)
    # Without examples there is no mean.
    before = jnp.where(moments.count > 0, mean, own)
    after = before + step * (own - before)
    return after, (rows - before) * valid[:, None], (rows - after) * valid[:, None]

  mean, from_before, from_after = centred(moments.mean, h)
  mean_y, _, targets = centred(moments.mean_y, y)
  return Moments(
    count,
    mean,
    mean_y,
    moments.gram + dot(from_before.T, from_after),
    moments.cross + dot(from_before.T, targets),
  )


def dot(a: Array, b: Array) -> Array:
  """The product of matrices or vectors at the highest precision, which is not a TPU's default."""
  return jnp.matmul(a, b, precision='highest')
