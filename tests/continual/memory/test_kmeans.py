import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.memory.kmeans import kmeans, lloyd


def theirs(points, centres, rounds):
  """Lloyd's algorithm in numpy, float64."""
  for _ in range(rounds):
    nearest = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
    centres = np.array([
      points[nearest == k].mean(0) if (nearest == k).any() else centre
      for k, centre in enumerate(centres)
    ])  # fmt: skip
  return centres


def test_centres_move_to_the_means_of_the_points_nearest_to_them():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(31, 3))
  filled = np.arange(31) < 27
  start = np.concatenate([points[:4], [[50.0, 50.0, 50.0]]])  # No point is nearest to the last.
  found = lloyd(*map(jnp.float32, (points, filled, start)), 9)
  np.testing.assert_allclose(found, theirs(points[:27], start, 9), atol=1e-5)


def test_the_start_with_the_least_distances_wins():
  rng = np.random.default_rng(1)
  middle = 10 * rng.normal(size=(4, 2))
  points = (middle[:, None] + 0.1 * rng.normal(size=(4, 20, 2))).reshape(-1, 2)
  far = np.full((7, 2), 1e3)  # Not filled.
  both = jnp.float32(np.concatenate([points, far]))
  found = np.asarray(kmeans(both, jnp.arange(87) < 80, 4, jax.random.key(0)))
  order = lambda rows: rows[np.argsort(rows[:, 0])]
  np.testing.assert_allclose(order(found), order(points.reshape(4, 20, 2).mean(1)), atol=1e-4)


def test_fewer_points_than_centres_are_all_centres():
  points = jnp.float32([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
  found = kmeans(points, jnp.array([True, True, False]), 3, jax.random.key(0))
  assert {tuple(row) for row in np.asarray(found).tolist()} == {(1.0, 0.0), (0.0, 2.0)}
