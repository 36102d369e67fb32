"""Distances by covariances of four forms, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory import spreads
from pecft_jax.continual.memory.spreads import Shrinkage

C, D = 4, 5
HERE = np.array([True, False, True, False])
BY = Shrinkage(1.0, 0.7, normalised=True)
PLAIN = BY.__class__(0.5, 0.0, normalised=False)
FORMS = {
  'full': spreads.full(),
  'shared': spreads.shared(),
  'diagonal': spreads.diagonal(),
  'low-rank': spreads.low_rank(D),
}


def examples(n=60, seed=0):
  rng = np.random.default_rng(seed)
  y = rng.choice([0, 2], n).astype(np.int32)
  h = rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + 3 * y[:, None] + 10
  return h, y, rng.random(n) < 0.8


def gathered(form, order, by, batches=(60,), closed_between=False):
  h, y, valid = (each[order] for each in examples())
  state, start = form.opened(form.empty(C, D), HERE), 0
  for size in batches:
    part = slice(start, start + size)
    start += size
    state = form.add(state, jnp.float32(h[part]), y[part], valid[part], HERE)
    if closed_between:
      state = form.opened(form.closed(state, HERE, by), HERE)
  return form.closed(state, HERE, by)


def distances(form, state, x, by):
  _, means = form.means(state)
  return np.asarray(form.distances(state, lambda c: x - means[c], by))


def numpy_shrunk(cov, by):
  off = cov[~np.eye(D, dtype=bool)].mean()
  new = (
    cov + by.diagonal * np.diag(cov).mean() * np.eye(D) + by.off_diagonal * off * (1 - np.eye(D))
  )
  sd = np.sqrt(np.diag(new))
  return new / np.outer(sd, sd) if by.normalised else new


def numpy_covariances(form):
  h, y, valid = examples()
  rows = {c: h[(y == c) & valid] for c in (0, 2)}
  if form == 'shared':
    scatter = sum((r - r.mean(0)).T @ (r - r.mean(0)) for r in rows.values())
    return {c: (r.mean(0), scatter / valid.sum()) for c, r in rows.items()}
  return {c: (r.mean(0), np.cov(r.T)) for c, r in rows.items()}


@pytest.mark.parametrize('by', [BY, PLAIN])
@pytest.mark.parametrize('name', ['full', 'shared', 'low-rank'])
def test_distances_are_those_of_shrunk_and_normalised_covariances(name, by):
  """Low rank, too: at r = D the approximation is exact."""
  form = FORMS[name]
  x = np.random.default_rng(5).normal(size=(6, D)) + 10
  found = distances(form, gathered(form, slice(None), by), jnp.float32(x), by)
  for c, (mean, cov) in numpy_covariances(name).items():
    inverse = np.linalg.inv(numpy_shrunk(cov, by))
    want = np.einsum('bd,de,be->b', x - mean, inverse, x - mean)
    np.testing.assert_allclose(found[:, c], want, rtol=2e-3)


def test_variances_are_normalised_to_length_one():
  form, by = FORMS['diagonal'], BY
  x = np.random.default_rng(5).normal(size=(6, D)) + 10
  found = distances(form, gathered(form, slice(None), by), jnp.float32(x), by)
  for c, (mean, cov) in numpy_covariances('diagonal').items():
    new = np.diag(cov) + np.diag(cov).mean()
    want = (np.square(x - mean) / (new / np.linalg.norm(new))).sum(1)
    np.testing.assert_allclose(found[:, c], want, rtol=1e-4)


@pytest.mark.parametrize('name', FORMS)
def test_order_batches_and_tasks_change_nothing(name):
  form = FORMS[name]
  x = jnp.float32(np.random.default_rng(5).normal(size=(6, D)) + 10)
  one = distances(form, gathered(form, slice(None), BY), x, BY)
  other = gathered(form, np.random.default_rng(1).permutation(60), BY, (7, 30, 23), True)
  np.testing.assert_allclose(distances(form, other, x, BY)[:, [0, 2]], one[:, [0, 2]], rtol=2e-3)


@pytest.mark.parametrize('name', ['full', 'diagonal', 'low-rank'])
def test_a_class_of_one_example_has_the_euclidean_distance(name):
  form, by = FORMS[name], PLAIN
  state = form.opened(form.empty(C, D), HERE)
  h = jnp.ones((1, D))
  state = form.closed(form.add(state, h, jnp.zeros(1, int), jnp.ones(1, bool), HERE), HERE, by)
  found = distances(form, state, jnp.zeros((1, D)), by)
  np.testing.assert_allclose(found[0, 0], D, rtol=1e-3)


def test_a_low_rank_keeps_what_a_covariance_of_that_rank_has():
  rng = np.random.default_rng(2)
  width, by = 30, Shrinkage(1.0, 1.0, normalised=True)
  h = rng.normal(size=(50, 3)) @ rng.normal(size=(3, width)) + 0.01 * rng.normal(size=(50, width))
  x = jnp.float32(rng.normal(size=(4, width)))
  here, y, valid = np.ones(1, bool), np.zeros(50, np.int32), np.ones(50, bool)
  found = []
  for form in (spreads.full(), spreads.low_rank(6)):
    state = form.add(form.opened(form.empty(1, width), here), jnp.float32(h), y, valid, here)
    found.append(distances(form, form.closed(state, here, by), x, by))
  np.testing.assert_allclose(found[1], found[0], rtol=5e-3)


def test_a_matrix_that_is_not_definite_gets_a_root_with_a_ridge():
  root = jax.jit(spreads.root)(jnp.diag(jnp.array([1.0, 1.0, -0.01])))
  assert np.isfinite(root).all()
