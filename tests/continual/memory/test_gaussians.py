"""A Gaussian per class, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.gaussians import draw, finished, no_gaussians, with_rows, without

C, D = 4, 5
HERE = np.array([True, False, True, False])


def examples(n=60, seed=0):
  rng = np.random.default_rng(seed)
  y = rng.choice([0, 2], n).astype(np.int32)
  h = rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + 3 * y[:, None] + 10
  return h, y, rng.random(n) < 0.8


def gathered(batches=(60,), diagonal=False):
  h, y, valid = examples()
  known, start = no_gaussians(C, D, diagonal=diagonal), 0
  for size in np.diff([0, *np.cumsum(batches)]):
    part = slice(start, start + size)
    start += size
    known = with_rows(known, jnp.float32(h[part]), y[part], valid[part], HERE)
  return known


@pytest.mark.parametrize('batches', [(60,), (7, 20, 33)])
def test_means_and_roots_are_those_of_numpy(batches):
  h, y, valid = examples()
  known = finished(gathered(batches), HERE, 0.0)
  for c in (0, 2):
    rows = h[(y == c) & valid]
    np.testing.assert_allclose(known.mean[c], rows.mean(0), rtol=1e-5)
    root = np.asarray(known.spread[c], np.float64)
    np.testing.assert_allclose(root @ root.T, np.cov(rows.T), rtol=1e-3, atol=1e-3)
  assert known.count.tolist() == [((y == c) & valid).sum() for c in range(C)]


def test_variances_alone_are_the_diagonal():
  h, y, valid = examples()
  known = finished(gathered(diagonal=True), HERE, 0.5)
  want = np.sqrt(h[(y == 2) & valid].var(0, ddof=1) + 0.5)
  np.testing.assert_allclose(known.spread[2], want, rtol=1e-4)


def test_classes_that_are_not_gathered_stay_bit_by_bit():
  first = finished(gathered(), HERE, 0.1)
  h, _, valid = examples(seed=3)
  others = np.array([False, True, False, True])
  y = np.where(np.arange(60) % 2, 1, 3).astype(np.int32)
  again = finished(with_rows(without(first, others), jnp.float32(h), y, valid, others), others, 0.1)
  for old, new in zip(first, again, strict=True):
    np.testing.assert_array_equal(old[HERE], new[HERE])


def test_draws_have_the_mean_and_the_covariance():
  known = finished(gathered(), HERE, 0.0)
  labels = jnp.full(40_000, 2)
  rows = np.asarray(draw(known, labels, jax.random.key(0), 0.5), np.float64)
  np.testing.assert_allclose(rows.mean(0), 0.5 * np.asarray(known.mean[2]), atol=0.1)
  root = np.asarray(known.spread[2], np.float64)
  np.testing.assert_allclose(np.cov(rows.T), root @ root.T, atol=0.25)


@pytest.mark.parametrize(
  ('h', 'y', 'classes'), [((5, 1), (5,), (C,)), ((5, D), (1,), (C,)), ((5, D), (5,), (1,))]
)
def test_rows_of_other_shapes_are_refused_and_not_broadcast(h, y, classes):
  arrays = jnp.ones(h), jnp.ones(y, jnp.int32), jnp.ones(5, bool), jnp.ones(classes, bool)
  with pytest.raises(AssertionError):
    with_rows(no_gaussians(C, D), *arrays)
