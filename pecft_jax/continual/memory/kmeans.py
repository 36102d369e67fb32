"""K-means with constant shapes: Lloyd's algorithm, from starts drawn as in k-means++.

Arthur and Vassilvitskii, 2007, doi:10.5555/1283383.1283494.
"""

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Key


def kmeans(
  points: Array, filled: Array, count: int, key: Key, *, restarts: int = 4, rounds: int = 50
) -> Array:
  """The centres [K, D] with the least sum of squared distances among several starts.

  Args:
    points: [N, D]
    filled: [N] bool; other rows are ignored. With no row at all the centres are of no use.
    count: K
    key: consumed.
    restarts: k-means++ starts.
    rounds: of Lloyd's algorithm in each; it stands still once assignments do.

  >>> points = jnp.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
  >>> centres = kmeans(points, jnp.arange(5) < 4, 2, jax.random.key(0))
  >>> sorted(round(float(c), 2) for c in centres[:, 0])
  [0.05, 5.05]
  """

  def run(key):
    centres = lloyd(points, filled, _spread(points, filled, count, key), rounds)
    nearest = _squares(points, centres).min(1)
    return centres, jnp.where(filled, nearest, 0).sum()

  centres, inertia = jax.lax.map(run, jax.random.split(key, restarts))
  return centres[inertia.argmin()]


def lloyd(points: Array, filled: Array, centres: Array, rounds: int) -> Array:
  """Moves each centre to the mean of the points nearest to it, some times.

  Args:
    points: [N, D]
    filled: [N] bool; other rows are ignored.
    centres: [K, D]; one that no point is nearest to stays where it is.
    rounds: how often.
  """

  def step(_, centres):
    nearest = _squares(points, centres).argmin(1)
    member = jax.nn.one_hot(nearest, len(centres)) * filled[:, None]  # [N, K]
    counts = member.sum(0)[:, None]
    means = jnp.matmul(member.T, points, precision='highest') / jnp.maximum(counts, 1)
    return jnp.where(counts > 0, means, centres)

  return jax.lax.fori_loop(0, rounds, step, centres)


def _squares(points: Array, centres: Array) -> Array:
  """Squared distances [N, K]; of differences, which do not cancel."""
  one = lambda centre: jnp.square(points - centre).sum(-1)
  return jax.lax.map(one, centres).T


def _spread(points: Array, filled: Array, count: int, key: Key) -> Array:
  """Each centre is a point, drawn in proportion to its squared distance to those before it."""
  k_first, k_others = jax.random.split(key)
  allowed = jnp.where(filled, 0.0, -jnp.inf)
  first = points[jax.random.categorical(k_first, allowed)]
  near = jnp.square(points - first).sum(-1)

  def step(near, key):
    new = points[jax.random.categorical(key, jnp.log(near + 1e-30) + allowed)]
    return jnp.minimum(near, jnp.square(points - new).sum(-1)), new

  _, others = jax.lax.scan(step, near, jax.random.split(k_others, count - 1))
  return jnp.concatenate([first[None], others])
