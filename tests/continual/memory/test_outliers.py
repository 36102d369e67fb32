import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.outliers import outliers

SIZES = {'boundary': 3, 'draws': 4, 'spread': 0.2, 'neighbour': 3}


def theirs(points, noise, count, *, at_origin):
  """In numpy, with all distances at once."""
  unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
  third = lambda a: np.sort(((a[:, None] - unit(points)) ** 2).sum(-1), 1)[:, 2]
  edge = np.argsort(-third(unit(points)), kind='stable')[:3]
  found = np.concatenate([noise if at_origin else points[i] + noise for i in edge])
  far = third(found if at_origin else unit(found))
  return found[np.argsort(-far, kind='stable')[:count]]


@pytest.mark.parametrize('at_origin', [False, True])
def test_outliers_are_the_farthest_of_the_noise_around_the_loneliest_points(at_origin):
  points = np.random.default_rng(0).normal(size=(9, 5))
  key, filled = jax.random.key(1), np.arange(9) != 4
  found, there = outliers(
    jnp.float32(points), jnp.asarray(filled), 5, key, **SIZES, at_origin=at_origin
  )
  noise = 0.2 * np.asarray(jax.random.normal(key, (4, 5)), np.float64)
  wanted = theirs(points[filled], noise, 5, at_origin=at_origin)
  if at_origin:  # The same noise around each: every one comes three times.
    np.testing.assert_allclose(
      np.unique(found, axis=0), np.unique(np.float32(wanted), axis=0), atol=1e-5
    )
  else:
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted).max() > 0.5
  assert there.all()


def test_points_that_are_not_there_have_no_outliers():
  points = jnp.float32(np.random.default_rng(0).normal(size=(9, 5)))
  _, there = outliers(points, jnp.arange(9) < 2, 12, jax.random.key(1), **SIZES)
  assert there.sum() == 2 * 4
