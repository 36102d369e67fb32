import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ranpac
from pecft_jax.continual.base import normalised
from pecft_jax.continual.ranpac import RIDGES, best_ridge, held_out, solve_ridge, solve_surely
from pecft_jax.peft import linear_probe, lora

from .tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
M = 31


@pytest.fixture(scope='module')
def learner():
  """A method with a random delta, its hooks compiled, and six batches of each task."""
  method = ranpac(TOY, FC, CAPACITY, projection=M)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  hooks = {name: jax.jit(getattr(method, name)) for name in ('consolidate', 'end_task', 'predict')}
  batches = [
    [batch(TOY.inputs.shape, CLASSES[t], 10 * t + i, rows=13) for i in range(6)] for t in range(3)
  ]
  batches = [
    [b._replace(index=np.arange(13 * i, 13 * i + 13, dtype=np.int32)) for i, b in enumerate(task)]
    for task in batches
  ]
  return method, frozen, shaken(params, 5), memory, hooks, batches


def learnt(learner, tasks=(0, 1, 2), batches=range(6)):
  """Memory after some tasks, in any order of tasks and batches."""
  _, frozen, params, memory, hooks, data = learner
  for t in tasks:
    for i in batches:
      memory = hooks['consolidate'](params, memory, env(frozen, t), data[t][i])
    params, memory = hooks['end_task'](params, memory, env(frozen, t))
  return memory


def projected(learner, rows):
  """The features of batches in float64, with their labels and rows of the split."""
  _, frozen, params, _, _, _ = learner
  x, y, index = (
    np.concatenate([getattr(b, field)[b.valid] for b in rows]) for field in ('x', 'y', 'index')
  )
  f = TOY.apply(frozen, normalised(TOY.inputs, x), params['delta'], peft=FC).pooled
  draw = jax.random.normal(jax.random.key(0, impl='threefry2x32'), (6, M))
  h = np.maximum(np.asarray(f, np.float64) @ np.asarray(draw, np.float64), 0)
  return h, np.eye(7)[y], index


def test_sums_and_weights_match_joint_ridge_regression_in_float64(learner):
  memory = learnt(learner)
  h, y, _ = projected(learner, sum(learner[-1], []))
  np.testing.assert_allclose(memory['gram'], h.T @ h, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(memory['cross'], h.T @ y, rtol=1e-4, atol=1e-3)
  # A ridge at which float32 has digits to spare.
  want = np.linalg.solve(h.T @ h + 10 * np.eye(M), h.T @ y)
  found = solve_ridge(memory['gram'], memory['cross'], jnp.float32(10))
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_predicts_with_the_solved_weights(learner):
  _, frozen, params, _, hooks, data = learner
  memory = learnt(learner)
  rows = [b._replace(valid=np.ones(13, bool)) for b in data[1][:1]]
  h, _, _ = projected(learner, rows)
  logits = hooks['predict'](params, memory, env(frozen, 2), rows[0].x)
  np.testing.assert_allclose(logits, h @ np.asarray(memory['weights']), rtol=1e-4, atol=1e-4)


def test_sums_do_not_depend_on_the_order_of_anything(learner):
  there = learnt(learner)
  back = learnt(learner, (2, 1, 0), (5, 3, 1, 4, 2, 0))
  for name in ('gram', 'cross'):
    np.testing.assert_allclose(there[name], back[name], rtol=1e-5, atol=1e-3)


def test_sums_of_a_task_are_cleared_at_its_end(learner):
  memory = learnt(learner, (0,))
  for name in ('held_gram', 'held_cross', 'fit_gram', 'fit_cross'):
    assert not np.asarray(memory[name]).any()


def test_the_ridge_is_the_best_on_the_tasks_held_out_examples(learner):
  """Held-out errors computed the plain way in float64, from features instead of sums."""
  for t in range(3):
    memory = learnt(learner, range(t + 1))
    h, y, index = projected(learner, learner[-1][t])
    held = np.asarray(held_out(jnp.asarray(index)))
    trace = float(jnp.trace(memory['gram']))
    errors = []
    for ridge in RIDGES:
      w = np.linalg.solve(h[~held].T @ h[~held] + ridge * np.eye(M), h[~held].T @ y[~held])
      resolved = ridge >= np.finfo(np.float32).eps * trace
      errors.append(((h[held] @ w - y[held]) ** 2).sum() if resolved else np.inf)
    assert np.isclose(memory['ridge'], RIDGES[int(np.argmin(errors))]), errors


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('spread', [1.0, 1e-2])
def test_choice_matches_float64_on_random_data(seed, spread):
  """Few examples, many features, one direction far above all others: hard for float32."""
  rng = np.random.default_rng(seed)
  n, width, m = 120, 9, 61
  f = 1 + spread * rng.normal(size=(n, width))
  h = np.maximum(f @ rng.normal(size=(width, m)), 0).astype(np.float32).astype(np.float64)
  labels = (f @ rng.normal(size=(width, 5)) + 0.3 * spread * rng.normal(size=(n, 5))).argmax(1)
  y, held = np.eye(5)[labels], np.arange(n) % 5 == 4
  sums = lambda rows: (h[rows].T @ h[rows], h[rows].T @ y[rows])
  least = np.finfo(np.float32).eps * np.trace(h.T @ h)
  single = [tuple(jnp.asarray(a, jnp.float32) for a in sums(rows)) for rows in (~held, held)]
  chosen = float(best_ridge(*single, least=least))

  def error(ridge):
    g, q = sums(~held)
    w = np.linalg.solve(g + ridge * np.eye(m), q)
    return ((h[held] @ w - y[held]) ** 2).sum()

  errors = {ridge: error(ridge) for ridge in RIDGES if ridge >= least}
  at = min(errors, key=lambda ridge: abs(np.log(ridge / chosen)))
  # Not always the same ridge, where two are as good; never one that is worse.
  assert errors[at] <= 1.02 * min(errors.values()), (chosen, errors)


def test_a_ridge_lost_in_rounding_never_makes_the_classifier_nan(learner):
  """All examples alike: the Gram matrix has rank one, and nothing small can be resolved."""
  method, frozen, params, memory, hooks, data = learner
  some = data[0][0]
  same = some._replace(x=np.broadcast_to(some.x[:1], some.x.shape).copy())
  memory = hooks['consolidate'](params, memory, env(frozen, 0), same)
  params, memory = hooks['end_task'](params, memory, env(frozen, 0))
  assert np.isfinite(memory['weights']).all()
  logits = method.predict(params, memory, env(frozen, 0), some.x)
  assert np.isfinite(np.asarray(logits)[:, :2]).all()


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


def test_the_strongest_ridge_stands_in_where_none_is_solvable():
  nothing = jnp.full((5, 5), jnp.nan), jnp.ones((5, 2))
  assert best_ridge(nothing, nothing, least=0.0) == RIDGES[-1]


def test_ridges_below_the_least_are_not_considered():
  """Features without noise want no ridge at all."""
  h = np.random.default_rng(0).normal(size=(40, 5))
  sums = lambda h: (jnp.asarray(h.T @ h, jnp.float32), jnp.asarray(h.T @ h[:, :2], jnp.float32))
  choose = lambda least: float(best_ridge(sums(h[:30]), sums(h[30:]), least=least))
  assert choose(0.0) < 1e-3
  assert np.isclose(choose(0.05), 0.1)


def test_a_fifth_is_held_out_of_any_eight_rows_one_and_of_all_classes():
  held = np.asarray(held_out(jnp.arange(30000)))
  assert abs(held.mean() - 0.2) < 1e-3
  assert np.diff(np.flatnonzero(held)).max() <= 8
  # Classes that follow one another with any short period.
  for period in range(2, 14):
    shares = [held[c::period][:60].mean() for c in range(period)]
    assert min(shares) > 0.1 and max(shares) < 0.35, period


def test_trains_on_the_first_task_alone_and_only_if_there_is_something_to_train():
  trained, probe = (ranpac(TOY, peft, CAPACITY, projection=M) for peft in (FC, linear_probe()))
  assert [trained.trains(t) for t in range(3)] == [True, False, False]
  assert [probe.trains(t) for t in range(3)] == [False, False, False]
