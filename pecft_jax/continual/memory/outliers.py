"""Virtual outliers around features, without a model of them (NPOS: Tao et al., 2023,
arXiv:2303.02966).
"""

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import unit
from pecft_jax.typing import Array, Key


def outliers(
  points: Array, filled: Array, count: int, key: Key, *, boundary: int, draws: int, spread: float,
  neighbour: int, at_origin: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
  """Noise around the most lonely points, as far from all points as can be.

  Lonely is a point whose k-th nearest neighbour, itself counted, is far. Distances are those of
  directions, vectors of length 1.

  Args:
    points: [N, D]
    filled: [N] bool; other rows are ignored.
    count: M, of outliers, at most those drawn.
    key: consumed.
    boundary: how many of the loneliest points there is noise around.
    draws: of the noise, normal and the same around each of them.
    spread: standard deviation of the noise.
    neighbour: k; the last one where there are fewer points.
    at_origin: put the noise around zero in place of the points, and compare it without scaling.

  Returns:
    Outliers [M, D], the farthest first, and [M] bool: false for those of points that are not
    there.

  Raises:
    ValueError: for more outliers than draws.

  >>> points = jnp.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
  >>> key, around = jax.random.key(0), dict(boundary=1, draws=3, spread=0.01, neighbour=2)
  >>> found, there = outliers(points, jnp.ones(4, bool), 2, key, **around)
  >>> bool((abs(found - points[3]) < 0.1).all()), there.tolist()
  (True, [True, True])
  """
  boundary = min(boundary, len(points))
  if count > boundary * draws:
    raise ValueError(f'{count} outliers are more than {boundary} x {draws} draws')
  noise = spread * jax.random.normal(key, (draws, points.shape[1]))
  known = unit(points)
  # One point after another: N x N distances of long rows would not fit.
  lonely = jax.lax.map(lambda row: distance_to(row[None], known, filled, neighbour)[0], known)
  _, edge = jax.lax.top_k(jnp.where(filled, lonely, -jnp.inf), boundary)

  def far(index):
    near = noise if at_origin else unit(points[index] + noise)
    return jnp.where(filled[index], distance_to(near, known, filled, neighbour), -jnp.inf)

  each = jax.lax.map(far, edge).reshape(-1)
  best, chosen = jax.lax.top_k(each, count)
  found = noise[chosen % draws]
  return found if at_origin else found + points[edge[chosen // draws]], best > -jnp.inf


def distance_to(rows: Array, points: Array, filled: Array, neighbour: int) -> Array:
  """Squared distance of rows [B, D] to the k-th nearest of the filled points [N, D]: [B]."""
  squares = jnp.square(rows).sum(-1)[:, None] + jnp.square(points).sum(-1)
  squares = squares - 2 * jnp.matmul(rows, points.T, precision='highest')
  most = min(neighbour, len(points))
  near = -jax.lax.top_k(-jnp.where(filled, squares, jnp.inf), most)[0]  # [B, k], rising.
  return near[:, jnp.maximum(jnp.minimum(most, filled.sum()) - 1, 0)]
