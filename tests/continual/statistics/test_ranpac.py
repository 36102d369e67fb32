import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ranpac
from pecft_jax.continual.core import normalised
from pecft_jax.continual.memory.ridge import RIDGES, TIE, solve_moments
from pecft_jax.continual.memory.sample import scattered
from pecft_jax.continual.statistics.ranpac import held_out
from pecft_jax.peft import linear_probe, lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=2)
M = 31


@pytest.fixture(scope='module')
def learner():
  """A method with a random delta, its hooks compiled, and six batches of each task."""
  method = ranpac(TOY, CAPACITY, peft=FC, projection=M)
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
  a, b = h - h.mean(0), y - y.mean(0)
  np.testing.assert_allclose(memory['moments'].gram, a.T @ a, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(memory['moments'].cross, a.T @ b, rtol=1e-4, atol=1e-3)
  # A ridge at which float32 has digits to spare.
  want = np.linalg.solve(h.T @ h + 10 * np.eye(M), h.T @ y)
  found = solve_moments(memory['moments'], jnp.float32(10))
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
  assert there['ridge'] == back['ridge']
  for one, other in zip(there['moments'], back['moments'], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


def test_examples_of_a_task_are_forgotten_at_its_end(learner):
  memory = learnt(learner, (0,))
  for name in ('fit', 'held'):
    assert not memory[name].filled.any()
    assert not any(np.asarray(part).any() for part in memory[name].items)


def resolved_errors(h, y, held, trace):
  """Held-out error of each ridge in float64, from features; infinite where float32 has no say."""
  errors = []
  for ridge in RIDGES:
    w = np.linalg.solve(h[~held].T @ h[~held] + ridge * np.eye(M), h[~held].T @ y[~held])
    resolved = ridge >= 16 * np.finfo(np.float32).eps * trace
    errors.append(((h[held] @ w - y[held]) ** 2).sum() if resolved else np.inf)
  return np.array(errors)


def assert_best(ridge, errors):
  """Of ridges as good to a thousandth the strongest; float32 sees errors to a hundredth."""
  chosen = int(np.argmin(np.abs(np.log(np.array(RIDGES) / float(ridge)))))
  assert errors[chosen] <= (1 + TIE) * 1.02 * errors.min(), (ridge, errors)


def test_the_ridge_is_the_best_on_the_tasks_held_out_examples(learner):
  for t in range(3):
    memory = learnt(learner, range(t + 1))
    h, y, index = projected(learner, learner[-1][t])
    held = np.asarray(held_out(jnp.asarray(index)))
    trace = float(jnp.trace(memory['moments'].gram))
    assert_best(memory['ridge'], resolved_errors(h, y, held, trace))


@pytest.mark.parametrize('size', [20, 43])
def test_of_a_large_task_the_ridge_is_chosen_on_a_sample(learner, size):
  """Four fifths of the sample and one, each those of the lowest ranks; two sizes of system."""
  method = ranpac(TOY, CAPACITY, peft=FC, projection=M, sample=size)
  _, frozen, params, _, _, data = learner
  _, memory = method.init(jax.random.key(0), frozen)
  consolidate, end_task = jax.jit(method.consolidate), jax.jit(method.end_task)
  for some in data[0]:
    memory = consolidate(params, memory, env(frozen, 0), some)
  _, memory = end_task(params, memory, env(frozen, 0))
  h, y, index = projected(learner, data[0])
  order = np.argsort(np.asarray(scattered(jnp.asarray(index))))
  held = np.asarray(held_out(jnp.asarray(index)))[order]
  fit, judge = order[~held][: size - size // 5], order[held][: size // 5]
  some = np.concatenate([fit, judge])
  errors = resolved_errors(
    h[some], y[some], np.arange(len(some)) >= len(fit), float(jnp.trace(memory['moments'].gram))
  )
  assert_best(memory['ridge'], errors)
  whole = learnt(learner, (0,))
  found, wanted = memory['moments'].gram, whole['moments'].gram
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_a_sample_without_a_fifth_is_refused():
  with pytest.raises(ValueError, match='sample must be at least 5'):
    ranpac(TOY, CAPACITY, peft=FC, sample=4)


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


def test_a_fifth_is_held_out_of_any_eight_rows_one_and_of_all_classes():
  held = np.asarray(held_out(jnp.arange(30000)))
  assert abs(held.mean() - 0.2) < 1e-3
  assert np.diff(np.flatnonzero(held)).max() <= 8
  # Classes that follow one another with any short period.
  for period in range(2, 14):
    shares = [held[c::period][:60].mean() for c in range(period)]
    assert min(shares) > 0.1 and max(shares) < 0.35, period


def test_trains_on_the_first_task_alone_and_only_if_there_is_something_to_train():
  trained, probe = (ranpac(TOY, CAPACITY, peft=peft, projection=M) for peft in (FC, linear_probe()))
  assert [trained.trains(t) for t in range(3)] == [True, False, False]
  assert [probe.trains(t) for t in range(3)] == [False, False, False]
