"""Quadratic programmes, against scipy's least squares with bounds in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from pecft_jax.continual.memory.cone import nonnegative_minimum

SOLVE = jax.jit(nonnegative_minimum)


def exact(square, linear, allowed):
  """min |L'v - L^-1(-c)|^2 over v >= 0, with P = LL', is the same programme."""
  at, found = np.flatnonzero(allowed), np.zeros(len(linear))
  if len(at):
    low = np.linalg.cholesky(square[np.ix_(at, at)])
    found[at] = nnls(low.T, np.linalg.solve(low, -linear[at]))[0]
  return found


@pytest.mark.parametrize('seed', range(30))
def test_the_minimum_is_that_of_scipy(seed):
  rng = np.random.default_rng(seed)
  vectors = rng.normal(size=(7, 5 + seed)) * 10 ** rng.normal(size=(7, 1))  # Of all sizes.
  vectors += (seed % 3) * vectors.mean(0)
  square = vectors @ vectors.T
  square += 1e-3 * np.diag(square).mean() * np.eye(7)
  linear, allowed = vectors @ rng.normal(size=5 + seed), rng.random(7) < 0.8
  found = np.asarray(SOLVE(jnp.float32(square), jnp.float32(linear), allowed), np.float64)
  want = exact(square, linear, allowed)
  assert (found >= 0).all() and not found[~allowed].any()
  np.testing.assert_allclose(found, want, rtol=2e-2, atol=1e-4 * np.abs(want).max())
  value = lambda v: v @ square @ v / 2 + linear @ v
  assert value(found) <= value(want) + 1e-6 * abs(value(want))


def test_no_direction_of_descent_and_nothing_allowed_give_zero():
  square, up = jnp.eye(4), jnp.arange(1.0, 5)
  np.testing.assert_array_equal(SOLVE(square, up, np.ones(4, bool)), np.zeros(4))
  np.testing.assert_array_equal(SOLVE(square, -up, np.zeros(4, bool)), np.zeros(4))
