"""A Gaussian for each class over features, gathered batch by batch, and draws from them."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Key


class Gaussians(NamedTuple):
  """Means and spreads of C classes over D features, float32.

  While a class is gathered, `spread` is its scatter, the sum of (h - mean)(h -
  mean)^T; `finished` makes it a root R of the covariance, R R^T = cov.
  """

  count: Array  # [C] examples of each class.
  mean: Array  # [C, D]
  spread: Array  # [C, D, D], or [C, D] where features are treated as independent.


def no_gaussians(classes: int, width: int, *, diagonal: bool = False) -> Gaussians:
  """Gaussians of no example yet.

  Args:
    classes: C
    width: D
    diagonal: keep variances alone: C D numbers instead of C D^2.
  """
  spread = (classes, width) if diagonal else (classes, width, width)
  return Gaussians(jnp.zeros(classes), jnp.zeros((classes, width)), jnp.zeros(spread))


def without(gaussians: Gaussians, classes: Array) -> Gaussians:
  """Resets some classes [C] bool, before they are gathered again."""
  keep = lambda leaf: jnp.where(classes.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf)
  return Gaussians(*map(keep, gaussians))


def with_rows(
  gaussians: Gaussians,
  h: Array,
  y: Array,
  valid: Array,
  classes: Array,
  product: Callable[[Array, Array], Array] | None = None,
) -> Gaussians:
  """The Gaussians with more examples (Welford's update, batch-wise).

  Args:
    gaussians: of C classes and D features.
    h: [B, D]
    y: [B] int32
    valid: [B] bool; other rows are ignored.
    classes: [C] bool, which the rows may belong to: the others cost nothing.
    product: what is added to the spread of a class, of its centred rows: a linear function of
      L^T R, with L and R [B, D]; by default that, or its diagonal, by the rank of `spread`.

  Raises:
    AssertionError: for other shapes.
  """
  rows = len(valid)
  chex.assert_shape([h, y, valid], [(rows, gaussians.mean.shape[1]), (rows,), (rows,)])
  chex.assert_equal_shape([gaussians.count, classes])
  h = h.astype(jnp.float32)

  def one(state: Gaussians, member: Array) -> Gaussians:
    many = member.sum(dtype=jnp.float32)
    count = state.count + many
    own = jnp.matmul(member, h, precision='highest') / jnp.maximum(many, 1)
    before = jnp.where(state.count > 0, state.mean, own)  # Without examples there is no mean.
    after = before + many / jnp.maximum(count, 1) * (own - before)
    left, right = (h - before) * member[:, None], (h - after) * member[:, None]
    if product is not None:
      new = product(left, right)
    elif state.spread.ndim == 1:
      new = (left * right).sum(0)
    else:
      new = jnp.matmul(left.T, right, precision='highest')
    # A class without rows here stays as it is, bit by bit.
    mean = jnp.where(many > 0, after, state.mean)
    return Gaussians(count, mean, state.spread + new)

  def step(_: None, each: tuple[Gaussians, Array, Array]) -> tuple[None, Gaussians]:
    state, number, there = each
    member = ((y == number) & valid).astype(jnp.float32)
    return None, jax.lax.cond(there, one, lambda state, member: state, state, member)

  numbers = jnp.arange(len(classes))
  return jax.lax.scan(step, None, (gaussians, numbers, classes))[1]


def finished(gaussians: Gaussians, classes: Array, shrinkage: float) -> Gaussians:
  """Makes the scatter of some classes a root of their covariance + shrinkage x identity.

  Args:
    gaussians: whose `classes` were gathered.
    classes: [C] bool; all others have roots already.
    shrinkage: added to the variances, at least 0.

  Raises:
    AssertionError: for other shapes.
  """
  chex.assert_equal_shape([gaussians.count, classes])

  def root(state: Gaussians) -> Array:
    # As numpy's cov: divided by n - 1.
    cov = state.spread / jnp.maximum(state.count - 1, 1)
    if cov.ndim == 1:
      return jnp.sqrt(cov + shrinkage)
    values, vectors = jnp.linalg.eigh(cov)
    # The symmetric root: unlike eigenvectors, the same on every mesh.
    scaled = vectors * jnp.sqrt(jnp.maximum(values, 0) + shrinkage)
    return jnp.matmul(scaled, vectors.T, precision='highest')

  def step(_: None, each: tuple[Gaussians, Array]) -> tuple[None, Array]:
    state, there = each
    return None, jax.lax.cond(there, root, lambda state: state.spread, state)

  return gaussians._replace(spread=jax.lax.scan(step, None, (gaussians, classes))[1])


def draw(gaussians: Gaussians, labels: Array, key: Key, shift: Array | float = 1.0) -> Array:
  """Features [B, D] of classes [B] int32, with roots in place of scatters.

  Args:
    gaussians: finished.
    labels: [B] int32
    key: consumed.
    shift: factor of the means, [B] or a number.

  Raises:
    AssertionError: for labels of another rank.
  """
  chex.assert_rank([labels, jnp.asarray(shift)], [1, {0, 1}])
  mean = gaussians.mean[labels] * jnp.reshape(jnp.asarray(shift), (-1, 1))
  noise = jax.random.normal(key, mean.shape)
  root = gaussians.spread[labels]
  if root.ndim == 2:
    return mean + root * noise
  return mean + jnp.einsum('bde,be->bd', root, noise)
