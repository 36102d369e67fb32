"""Covariances of classes, shrunk and normalised, as FeCAM measures distances by them.

Four forms of different size, all gathered batch by batch in any order (C classes, D features,
float32, so 4 bytes a number):

| form | numbers carried | 100 classes of 768 features |
|---|---|---|
| `full` | C D (D + 1) | 236 MB |
| `low_rank` of rank r = 32 | C D (r + 1) | 10 MB |
| `shared` | D^2 + C D | 2.7 MB |
| `diagonal` | C D | 0.3 MB |

Means, of C D numbers, come to these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.continual.memory import moments as regressions
from pecft_jax.continual.memory.gaussians import Gaussians
from pecft_jax.continual.memory.statistics import one_hot
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Shrinkage:
  """S + diagonal v_d I + off_diagonal v_o (1 - I), and whether it is normalised then.

  v_d is the mean of the variances in S, v_o that of the covariances.
  """

  diagonal: float
  off_diagonal: float
  normalised: bool


class Spread(NamedTuple):
  """A form of covariances.

  Attributes:
    empty: `(classes, width) -> state`, of no example.
    opened: `(state, classes [C] bool) -> state`, before examples of these classes are added.
    add: `(state, h [B, D], y [B], valid [B], classes [C]) -> state`.
    closed: `(state, classes, shrinkage) -> state`, after them.
    means: `(state) -> (counts [C], means [C, D])`.
    distances: `(state, offsets, shrinkage) -> [B, C]`, squared Mahalanobis distances of
      `offsets(c) [B, D]`, the differences from the mean of class c.
  """

  empty: Callable[[int, int], Any]
  opened: Callable[[Any, Array], Any]
  add: Callable[[Any, Array, Array, Array, Array], Any]
  closed: Callable[[Any, Array, Shrinkage], Any]
  means: Callable[[Any], tuple[Array, Array]]
  distances: Callable[[Any, Callable[[Array], Array], Shrinkage], Array]


def shrunk(cov: Array, by: Shrinkage) -> Array:
  """A covariance [D, D], shrunk, and normalised to correlations if that is asked.

  A class without variance, as that of one example, has the identity.
  """
  size = len(cov)
  eye = jnp.eye(size)
  variance = jnp.trace(cov) / size
  between = (cov.sum() - jnp.trace(cov)) / max(size * (size - 1), 1)
  new = cov + by.diagonal * variance * eye + by.off_diagonal * between * (1 - eye)
  new = jnp.where(variance > 0, new, eye)
  if by.normalised:
    deviation = jnp.sqrt(jnp.diagonal(new))
    new = new / jnp.outer(deviation, deviation)
  return new


def root(matrix: Array) -> Array:
  """The Cholesky factor L [D, D] of a matrix, or of matrix + ridge I where it is not definite."""
  eye = jnp.eye(len(matrix))
  start = 1e-6 * jnp.trace(matrix) / len(matrix)
  unsolved = lambda carry: ~jnp.isfinite(carry[0]).all() & (carry[1] < 1e8 * start)
  stronger = lambda carry: (jnp.linalg.cholesky(matrix + carry[1] * eye), 10 * carry[1])
  return jax.lax.while_loop(unsolved, stronger, (jnp.linalg.cholesky(matrix), start))[0]


def full() -> Spread:
  """A covariance per class.

  Scatter and Cholesky factor share one square: scatter is in its lower triangle, so that examples
  of a class may come with several tasks; the factor L^T above the diagonal, and its diagonal in
  one more row.
  """

  def empty(classes, width):
    zeros = normals.no_gaussians(classes, width, diagonal=True)
    return zeros._replace(spread=jnp.zeros((classes, width + 1, width)))

  def product(left, right):
    return jnp.pad(dot(left.T, right), [(0, 1), (0, 0)])

  def open_one(spread, count):
    del count
    lower = jnp.tril(spread[:-1])
    return jnp.pad(lower + jnp.tril(lower, -1).T, [(0, 1), (0, 0)])

  def close_one(by):
    def one(spread, count):
      lower = root(shrunk(spread[:-1] / jnp.maximum(count - 1, 1), by))
      both = jnp.tril(spread[:-1]) + jnp.triu(lower.T, 1)
      return jnp.concatenate([both, jnp.diagonal(lower)[None]])

    return one

  def distances(state, offsets, by):
    del by

    def one(c):
      packed = state.spread[c]
      upper = jnp.triu(packed[:-1], 1) + jnp.diag(packed[-1])
      # Without a factor, as before the first task ends, distances are Euclidean.
      upper = jnp.where(packed[-1].any(), upper, jnp.eye(len(upper)))
      return jnp.square(solve_triangular(upper, offsets(c).T, trans=1)).sum(0)

    return _by_class(one, state)

  return Spread(
    empty,
    lambda state, classes: _changed(state, classes, open_one),
    lambda state, h, y, valid, classes: normals.with_rows(state, h, y, valid, classes, product),
    lambda state, classes, by: _changed(state, classes, close_one(by)),
    _means,
    distances,
  )


def diagonal() -> Spread:
  """Variances per class; normalised to length 1, since all correlations would be 1."""

  def distances(state, offsets, by):
    def one(c):
      variances = state.spread[c] / jnp.maximum(state.count[c] - 1, 1)
      mean = variances.mean()
      new = jnp.where(mean > 0, variances + by.diagonal * mean, 1.0)
      if by.normalised:
        new = new / jnp.linalg.norm(new)
      return (jnp.square(offsets(c)) / new).sum(1)

    return _by_class(one, state)

  return Spread(
    lambda classes, width: normals.no_gaussians(classes, width, diagonal=True),
    lambda state, classes: state,
    normals.with_rows,
    lambda state, classes, by: state,
    _means,
    distances,
  )


def low_rank(rank: int, seed: int = 0) -> Spread:
  """The variances of a class, and its covariances by a Nystrom approximation.

  S Omega [D, r] is carried, of a fixed Omega (ones, and Gaussian columns), and
  S is taken as Y (Omega^T Y)^-1 Y^T beside its exact diagonal. So it does not depend on the order
  of examples, as truncated decompositions of a stream do. Distances by Woodbury's formula.

  Args:
    rank: r, at least 1.
    seed: of Omega.
  """

  def omega(width):
    columns = jax.random.normal(jax.random.key(seed, impl='threefry2x32'), (width, rank - 1))
    return jnp.concatenate([jnp.ones((width, 1)), columns], 1) / width**0.5

  def empty(classes, width):
    zeros = normals.no_gaussians(classes, width, diagonal=True)
    return zeros._replace(spread=jnp.zeros((classes, width, rank + 1)))

  def product(left, right):
    return jnp.concatenate(
      [dot(left.T, dot(right, omega(left.shape[1]))), (left * right).sum(0)[:, None]], 1
    )

  def distances(state, offsets, by):
    width = state.mean.shape[1]
    draw = omega(width)

    def one(c):
      both = state.spread[c] / jnp.maximum(state.count[c] - 1, 1)
      sketch, variances = both[:, :-1], both[:, -1]
      mean = variances.mean()
      between = (sketch[:, 0].sum() * width**0.5 - variances.sum()) / max(width * (width - 1), 1)
      there = mean > 0
      core = dot(draw.T, sketch)
      small = jnp.where(there, 1e-4 * jnp.trace(core) / rank, 1.0)  # Fewer examples than r.
      sketch = sketch + small * draw
      core = dot(draw.T, sketch)
      lower = jnp.linalg.cholesky((core + core.T) / 2)
      factor = jnp.where(there, solve_triangular(lower, sketch.T, lower=True).T, 0.0)
      rest = jnp.maximum(variances - jnp.square(factor).sum(1), 0)
      own = rest + by.diagonal * mean - by.off_diagonal * between
      own = jnp.where(there, jnp.maximum(own, 1e-6 * mean), 1.0)
      offset = offsets(c)
      if by.normalised:
        offset = offset * jnp.where(there, jnp.sqrt(variances + by.diagonal * mean), 1.0)
      # diag(own) + U K U^T with U = [factor, 1].
      sides = jnp.concatenate([factor, jnp.ones((width, 1))], 1)
      inner = jnp.append(jnp.ones(rank), by.off_diagonal * between)
      v = dot(sides.T, (offset / own).T)
      gram = dot(sides.T, sides / own[:, None])
      solved = inner[:, None] * jnp.linalg.solve(jnp.eye(rank + 1) + gram * inner, v)
      return (jnp.square(offset) / own).sum(1) - (v * solved).sum(0)

    return _by_class(one, state)

  return Spread(
    empty,
    lambda state, classes: state,
    lambda state, h, y, valid, classes: normals.with_rows(state, h, y, valid, classes, product),
    lambda state, classes, by: state,
    _means,
    distances,
  )


def shared() -> Spread:
  """One covariance for all classes, that of examples around the mean of their class."""

  def add(state, h, y, valid, classes):
    return regressions.with_rows(state, h, one_hot(y, valid, len(classes)), valid)

  def distances(state, offsets, by):
    counts, _ = means_of(state)
    lower = root(shrunk(within(state), by))
    one = lambda c: jnp.square(solve_triangular(lower, offsets(c).T, lower=True)).sum(0)
    return jax.lax.map(one, jnp.arange(len(counts))).T

  return Spread(
    lambda classes, width: regressions.no_moments(width, classes),
    lambda state, classes: state,
    add,
    lambda state, classes, by: state,
    means_of,
    distances,
  )


def means_of(moments: regressions.Moments) -> tuple[Array, Array]:
  """Counts [C] and means [C, D] of classes, of moments whose targets are one-hot."""
  counts = moments.count * moments.mean_y
  away = moments.cross.T / jnp.maximum(counts, 1)[:, None]
  return counts, moments.mean + away


def within(moments: regressions.Moments) -> Array:
  """The covariance [D, D] of examples around the mean of their class: their scatter / n."""
  counts = moments.count * moments.mean_y
  away = moments.cross / jnp.maximum(counts, 1)  # [D, C], from the mean of all to that of each.
  return (moments.gram - dot(away, (counts * away).T)) / jnp.maximum(moments.count, 1)


def _means(state: Gaussians) -> tuple[Array, Array]:
  return state.count, state.mean


def _by_class(one: Callable[[Array], Array], state: Gaussians) -> Array:
  """`one(c) -> [B]` for each class with examples, as [B, C]."""
  rows = jax.eval_shape(one, jnp.zeros((), jnp.int32)).shape

  def step(c: Array) -> Array:
    return jax.lax.cond(state.count[c] > 0, one, lambda c: jnp.zeros(rows), c)

  return jax.lax.map(step, jnp.arange(len(state.count))).T


def _changed(
  state: Gaussians, classes: Array, change: Callable[[Array, Array], Array]
) -> Gaussians:
  """Changes the spread of some classes; the others cost nothing."""
  step = lambda each: jax.lax.cond(each[2], change, lambda spread, count: spread, each[0], each[1])
  return state._replace(spread=jax.lax.map(step, (state.spread, state.count, classes)))
