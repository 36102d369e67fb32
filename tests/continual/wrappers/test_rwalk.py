"""Riemannian walk, against its recursion in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease, finetune, rwalk
from pecft_jax.continual.wrappers.rwalk import to_unit
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.schedules import constant
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC)
RATE, STEPS = 0.3, 5
RECIPE = sgd(RATE, momentum=0.0, schedule=constant)


def vector(tree):
  return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope='module')
def two_tasks():
  """Two tasks of five updates under plain SGD: parameters and plain gradients of each update."""
  method = rwalk(INNER, strength=0.7, decay=0.4, interval=2, damping=0.02)
  frozen = frozen_of(TOY)
  state = init_state(method, RECIPE, jax.random.key(0), frozen)
  state = state._replace(params=shaken(state.params, 3))
  step = jax.jit(lambda state, some: train_step(method, RECIPE, state, frozen, some)[0])
  gradient = jax.jit(jax.grad(lambda p, where, some: INNER.loss(p, {}, where, some, None)[0]))
  tasks = []
  for t in range(2):
    where = env(frozen, t)
    params, memory = method.begin_task(state.params, state.memory, where, jax.random.key(1))
    state = state._replace(params=params, memory=memory, task=where.task)
    seen, grads = [vector(params)], []
    for i in range(STEPS):
      some = batch(TOY.inputs.shape, CLASSES[t], 10 * t + i)
      grads.append(vector(gradient(state.params, where, some)))
      state = step(state, some)
      seen.append(vector(state.params))
    params, memory = method.end_task(state.params, state.memory, where)
    state = state._replace(params=params, memory=memory)
    tasks.append((seen, grads, memory))
  return method, frozen, tasks


def unit(x):
  return (x - x.min()) / (x.max() - x.min())


def recursion(tasks):
  """Importance after each task, interval by interval: updates 1-2, 3-4, and 5 alone."""
  fisher, score, found = None, None, []
  for seen, grads, _ in tasks:
    gain = 0.0
    for first, last in ((0, 2), (2, 4), (4, 5)):
      path = sum(-grads[i] * (seen[i + 1] - seen[i]) for i in range(first, last))
      mean = sum(grads[i] ** 2 for i in range(first, last)) / (last - first)
      fisher = mean if fisher is None else fisher
      way = (seen[last] - seen[first]) ** 2
      gain = gain + np.maximum(path, 0) / (fisher * way / 2 + 0.02)
      fisher = 0.4 * mean + 0.6 * fisher
    score = gain if score is None else (score + gain) / 2
    found.append((fisher, score, unit(fisher) + unit(score)))
  return found


def test_fisher_score_and_importance_follow_the_recursion(two_tasks):
  _, _, tasks = two_tasks
  for (seen, _, memory), (fisher, score, importance) in zip(tasks, recursion(tasks), strict=True):
    np.testing.assert_allclose(vector(memory['fisher']), fisher, rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(vector(memory['score']), score, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(vector(memory['importance']), importance, rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(vector(memory['anchor']), seen[-1])
    for name in ('gain', 'path', 'squares'):
      assert not vector(memory[name]).any(), name
    assert memory['updates'] == 0


def test_updates_follow_the_gradient_and_the_penalty(two_tasks):
  """In the second task each update is that of the loss plus 0.7 sum w (theta - anchor)^2."""
  _, _, ((_, _, memory), (seen, grads, _)) = two_tasks
  weight, anchor = vector(memory['importance']), vector(memory['anchor'])
  for i, g in enumerate(grads):
    want = seen[i] - RATE * (g + 2 * 0.7 * weight * (seen[i] - anchor))
    np.testing.assert_allclose(seen[i + 1], want, rtol=1e-3, atol=1e-5)


def test_all_numbers_of_a_tree_are_scaled_together():
  found = to_unit({'a': jnp.array([1.0, 3.0]), 'b': jnp.array([[5.0]])})
  np.testing.assert_allclose(found['a'], [0, 0.5])
  np.testing.assert_allclose(found['b'], [[1.0]])
  assert not np.asarray(to_unit({'a': jnp.full(2, 4.0)})['a']).any()


def test_nothing_to_hold_and_odd_numbers_are_refused():
  with pytest.raises(ValueError, match='rwalk has no parameters to hold in ease'):
    rwalk(ease(TOY, CAPACITY, peft=FC)).init(jax.random.key(0), frozen_of(TOY))
  for options in ({'strength': -1.0}, {'interval': 0}, {'damping': 0.0}, {'decay': 0.0}):
    with pytest.raises(ValueError):
      rwalk(INNER, **options)
