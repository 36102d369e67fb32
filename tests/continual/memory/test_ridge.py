"""Against float64, from features, on data that are hard for float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.moments import no_moments, with_rows
from pecft_jax.continual.memory.ridge import (
  RIDGES,
  TIE,
  Examples,
  best_ridge,
  held_out_error,
  least_ridge,
  solve_moments,
  solve_surely,
)

from ..tiny import close

EPS = np.finfo(np.float32).eps
CLASSES = 5
SHAPES = {'more features': (120, 170), 'fewer features': (120, 61)}  # n and M
# How far off float32 may see a held-out error. The smallest ridge considered is a little above the
# rounding of the centred products, n eps |h - mean|^2. Of 2400 such problems none was off by 0.5 %.
RESOLVED = 0.01

choose = jax.jit(best_ridge)
errors_of = jax.jit(lambda fit, held: jax.lax.map(held_out_error(fit, held), jnp.asarray(RIDGES)))


def problem(seed, spread, n, m):
  """Random ReLU features, held-out rows, and the smallest ridge that float32 resolves.

  The smaller the spread, the more of them is one direction common to all examples.
  """
  rng = np.random.default_rng(seed)
  f = 1 + spread * rng.normal(size=(n, 9))
  h = np.maximum(f @ rng.normal(size=(9, m)), 0).astype(np.float32).astype(np.float64)
  noise = 0.3 * spread * rng.normal(size=(n, CLASSES))
  y = np.eye(CLASSES)[(f @ rng.normal(size=(9, CLASSES)) + noise).argmax(1)]
  return h, y, np.arange(n) % 5 == 4, 16 * EPS * ((h - h.mean(0)) ** 2).sum()


def exact_errors(h, y, held):
  """The held-out error of each ridge, in float64 and by the textbook."""
  values, vectors = np.linalg.eigh(h[~held].T @ h[~held])
  cross = vectors.T @ h[~held].T @ y[~held]
  solve = lambda ridge: vectors @ (cross / (values.clip(0) + ridge)[:, None])
  return np.array([((h[held] @ solve(ridge) - y[held]) ** 2).sum() for ridge in RIDGES])


def rows(h, y, padding=0):
  """As the library takes them, with invalid rows of large numbers behind."""
  pad = lambda a: jnp.asarray(np.pad(a, [(0, padding), (0, 0)], constant_values=77), jnp.float32)
  return Examples(pad(h), pad(y), jnp.arange(len(h) + padding) < len(h))


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('spread', [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize('shape', SHAPES)
def test_the_choice_is_as_good_as_that_of_float64(shape, spread, seed):
  h, y, held, least = problem(seed, spread, *SHAPES[shape])
  fit, judge = rows(h[~held], y[~held]), rows(h[held], y[held])
  chosen = float(choose(fit, judge, least=least))
  exact = exact_errors(h, y, held)
  considered = np.array(RIDGES) >= least
  at = int(np.argmin(np.abs(np.log(np.array(RIDGES) / chosen))))
  assert considered[at]
  # Not always the same ridge, where two are as good; never one that is worse.
  assert exact[at] <= (1 + TIE) * (1 + 2 * RESOLVED) * exact[considered].min(), (chosen, exact)


@pytest.mark.parametrize('spread', [1.0, 1e-2])
@pytest.mark.parametrize('shape', SHAPES)
def test_errors_match_float64_whatever_stands_in_invalid_rows(shape, spread):
  h, y, held, least = problem(11, spread, *SHAPES[shape])
  found = errors_of(rows(h[~held], y[~held], 23), rows(h[held], y[held], 4))
  exact = exact_errors(h, y, held)
  considered = np.array(RIDGES) >= least
  np.testing.assert_allclose(np.asarray(found)[considered], exact[considered], rtol=RESOLVED)


def test_of_ridges_that_are_as_good_the_strongest_is_chosen():
  """Features without noise and with many examples: all weak ridges are as good."""
  rng = np.random.default_rng(0)
  h = rng.normal(size=(400, 5))
  y = h @ rng.normal(size=(5, 2)) + rng.normal(size=(400, 2))
  held = np.arange(400) % 5 == 4
  exact = exact_errors(h, y, held)
  good = np.flatnonzero(exact <= (1 + TIE) * exact.min())
  assert len(good) > 5
  # Far from the bound on either side, so that rounding cannot matter.
  assert abs(exact[good[-1] : good[-1] + 2] / exact.min() - 1 - TIE).min() > 1e-4
  chosen = choose(rows(h[~held], y[~held]), rows(h[held], y[held]), least=0.0)
  assert np.isclose(chosen, RIDGES[good[-1]])


def test_ridges_below_the_least_are_not_considered():
  """Features without noise want no ridge at all."""
  h = np.random.default_rng(0).normal(size=(40, 5))
  fit, held = rows(h[:30], h[:30, :2]), rows(h[30:], h[30:, :2])
  assert choose(fit, held, least=0.0) < 1e-2
  assert np.isclose(choose(fit, held, least=0.05), 0.1)


def test_without_examples_to_judge_on_the_weakest_considered_is_chosen():
  h = np.ones((8, 5))
  fit, held = rows(h, h), rows(h, h)
  assert np.isclose(choose(fit, held._replace(valid=held.valid & False), least=0.05), 0.1)


def test_the_strongest_stands_in_where_none_is_solvable_or_considered():
  h = np.ones((8, 5))
  nothing = rows(np.full((8, 5), np.nan), h)
  assert choose(nothing, nothing, least=0.0) == RIDGES[-1]
  assert choose(rows(h, h), rows(h, h), least=1e9) == RIDGES[-1]


def test_the_least_ridge_is_above_the_rounding_of_centred_products():
  h, y, _, least = problem(0, 0.1, 40, 11)
  np.testing.assert_allclose(least_ridge(moments_of(h, y)), least, rtol=1e-3)


def moments_of(h, y, block=None):
  nothing = no_moments(h.shape[1], y.shape[1], block=block)
  return with_rows(nothing, h, y, jnp.ones(len(h), bool))


@pytest.mark.parametrize('block', [None, 4])
@pytest.mark.parametrize('common', [0.0, 30.0])
def test_weights_from_centred_products_are_those_of_the_plain_regression(common, block):
  """In float64, for rows with nothing in common and with nearly all."""
  rng = np.random.default_rng(0)
  h = (common + rng.normal(size=(37, 11))).astype(np.float32)
  y = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 37)]
  exact = h.astype(np.float64)
  want = np.linalg.solve(exact.T @ exact + 0.5 * np.eye(11), exact.T @ y)
  found = jax.jit(solve_moments)(moments_of(h, y, block), jnp.float32(0.5))
  # Condition of the centred system: 1e2; of the plain one with all in common: 1e6.
  np.testing.assert_allclose(found, want, atol=3e-6 if common else 1e-6)


def test_an_unsolvable_ridge_is_raised_until_it_can_be_solved():
  rows = 1000 * jnp.arange(8.0)[:, None] * jnp.ones(5)
  moments = moments_of(rows, jnp.ones((8, 2)).at[3].set(0))
  assert not np.isfinite(solve_moments(moments, jnp.float32(1e-8))).all()
  weights, ridge = solve_surely(moments, jnp.float32(1e-8))
  assert np.isfinite(weights).all() and 1e-8 < ridge < 1e3
  np.testing.assert_allclose(solve_moments(moments, ridge), weights, rtol=1e-6)


def test_solvable_ridges_are_left_alone():
  nothing = no_moments(5, 2)
  moments = nothing._replace(half=jnp.eye(5)[None] * 3, cross=jnp.ones((5, 2)))
  weights, ridge = solve_surely(moments, jnp.float32(1.0))
  assert ridge == 1
  close(weights, jnp.full((5, 2), 0.25))


@pytest.mark.parametrize(('h', 'y', 'valid'), [((4, 1), (4, 2), 4), ((4, 3), (1, 2), 4)])
def test_examples_of_other_shapes_are_refused_and_not_broadcast(h, y, valid):
  fit = Examples(jnp.ones((5, 3)), jnp.ones((5, 2)), jnp.ones(5, bool))
  held = Examples(jnp.ones(h), jnp.ones(y), jnp.ones(valid, bool))
  with pytest.raises(AssertionError):
    best_ridge(fit, held, least=0.0)
