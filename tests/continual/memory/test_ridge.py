"""Against float64, from features, on data that are hard for float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.ridge import (
  RIDGES,
  TIE,
  Rows,
  best_ridge,
  held_out_error,
  solve_ridge,
  solve_surely,
)

from ..tiny import close, equal

EPS = np.finfo(np.float32).eps
CLASSES = 5
SHAPES = {'more features': (120, 170), 'fewer features': (120, 61)}  # n and M
# How far off float32 may see a held-out error. The smallest ridge considered is about as large as
# the rounding of H^T H, n eps |h|^2. Of thousands of such problems none was off by 0.4 %.
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
  return h, y, np.arange(n) % 5 == 4, EPS * (h**2).sum()


def exact_errors(h, y, held):
  """The held-out error of each ridge, in float64 and by the textbook."""
  values, vectors = np.linalg.eigh(h[~held].T @ h[~held])
  cross = vectors.T @ h[~held].T @ y[~held]
  solve = lambda ridge: vectors @ (cross / (values.clip(0) + ridge)[:, None])
  return np.array([((h[held] @ solve(ridge) - y[held]) ** 2).sum() for ridge in RIDGES])


def rows(h, y, padding=0):
  """As the library takes them, with invalid rows of large numbers behind."""
  pad = lambda a: jnp.asarray(np.pad(a, [(0, padding), (0, 0)], constant_values=77), jnp.float32)
  return Rows(pad(h), pad(y), jnp.arange(len(h) + padding) < len(h))


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


def test_an_unsolvable_ridge_is_raised_until_it_can_be_solved():
  h = jnp.full((4, 5), 1000.0)
  g, q = h.T @ h, h.T @ jnp.ones((4, 2))
  assert not np.isfinite(solve_ridge(g, q, jnp.float32(1e-8))).all()
  weights, ridge = solve_surely(g, q, jnp.float32(1e-8))
  assert np.isfinite(weights).all() and 1e-8 < ridge < 1e3
  equal(solve_ridge(g, q, ridge), weights)


def test_solvable_ridges_are_left_alone():
  g, q = jnp.eye(5) * 3, jnp.ones((5, 2))
  weights, ridge = solve_surely(g, q, jnp.float32(1.0))
  assert ridge == 1
  close(weights, jnp.full((5, 2), 0.25))
