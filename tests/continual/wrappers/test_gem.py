"""GEM, against the primal programme in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from pecft_jax.continual import finetune, gem
from pecft_jax.continual.core import mean_of_valid
from pecft_jax.continual.wrappers.gem import in_cone
from pecft_jax.peft import lora
from pecft_jax.problems import cross_entropy

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, shaken

INNER = finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


def flat(tree, tasks=None):
  """One vector, or one for each task."""
  leaves = jax.tree.leaves(tree)
  parts = [np.asarray(leaf, np.float64).reshape(*([tasks] if tasks else []), -1) for leaf in leaves]
  return np.concatenate(parts, -1)


def some_gradients(seed, tasks=4):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  g = {'a': draw(3, 2), 'b': draw(5)}
  past = {'a': draw(tasks, 3, 2), 'b': draw(tasks, 5)}
  # Against most of them.
  return g, jax.tree.map(lambda p, v: p - 0.4 * v, past, g)


@pytest.mark.parametrize('seed', range(6))
def test_the_gradient_is_the_nearest_that_agrees_with_all_past_ones(seed):
  """The primal programme: min |x - g|^2 with x . g_k >= 0 for the tasks that count."""
  g, past = some_gradients(seed)
  there = np.array([True, True, False, True])
  found = flat(in_cone(g, past, there, 0.0, 0.0))
  rows, start = flat(past, 4)[there], flat(g)
  assert (rows @ start < 0).any() or seed > 3
  solved = minimize(
    lambda x: ((x - start) ** 2).sum(),
    start,
    jac=lambda x: 2 * (x - start),
    constraints={'type': 'ineq', 'fun': lambda x: rows @ x, 'jac': lambda x: rows},
    options={'ftol': 1e-14, 'maxiter': 500},
  )
  np.testing.assert_allclose(found, solved.x, atol=1e-4)
  assert (rows @ found > -1e-4).all()


def test_margin_and_ridge_are_those_of_the_dual():
  """min v'(GG' + ridge) v / 2 + (Gg)'v with v >= margin; g + G'v, as the authors solve it."""
  g, past = some_gradients(1)
  there = np.ones(4, bool)
  rows, start = flat(past, 4), flat(g)
  square = rows @ rows.T
  square += 0.05 * np.diag(square).mean() * np.eye(4)
  linear = rows @ start
  solved = minimize(
    lambda v: v @ square @ v / 2 + linear @ v,
    np.ones(4),
    jac=lambda v: square @ v + linear,
    bounds=[(0.5, None)] * 4,
    options={'ftol': 1e-15, 'gtol': 1e-10},
  )
  found = flat(in_cone(g, past, there, 0.5, 0.05))
  np.testing.assert_allclose(found, start + solved.x @ rows, atol=1e-4)


def test_a_gradient_that_agrees_is_left_alone():
  g, past = some_gradients(2)
  along = jax.tree.map(lambda p, v: p * 0 + v, past, g)
  equal(in_cone(g, along, np.ones(4, bool), 0.5, 1e-3), g)
  equal(in_cone(g, jax.tree.map(jnp.negative, along), np.zeros(4, bool), 0.5, 1e-3), g)


def made():
  """Memory with the examples of tasks 0 and 1."""
  method, frozen = gem(INNER, size=9, margin=0.0), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  for t in range(2):
    for i in range(3):
      some = batch(TOY.inputs.shape, CLASSES[t], 10 * t + i)
      memory = method.consolidate(params, memory, env(frozen, t), some)
  return method, params, memory, frozen


def test_past_gradients_are_those_of_each_task_s_examples_over_all_classes_seen():
  method, params, memory, frozen = made()
  where, some = env(frozen, 2), batch(TOY.inputs.shape, CLASSES[2], 9)
  bank = memory['bank']
  assert [int(n) for n in bank.count] == [12, 12, 0]
  for t in range(2):
    assert set(np.asarray(bank.items['y'][t]).tolist()) <= set(CLASSES[t])

  def gradient(t):
    def loss(p):
      logits = INNER.forward(p, {}, where, bank.items['x'][t], None).logits
      return mean_of_valid(
        cross_entropy(logits, bank.items['y'][t], where.task.seen), jnp.ones(3, bool)
      )

    return jax.grad(loss)(params)

  past = jax.tree.map(
    lambda *each: jnp.stack([*each, jnp.zeros_like(each[0])]), *map(gradient, (0, 1))
  )
  against = jax.tree.map(lambda p: -p[0] - p[1] + 0.01, past)
  there = np.array([True, True, False])
  found = method.project(against, params, memory, where, some, jax.random.key(2))
  close(found, in_cone(against, past, there, 0.0, 1e-3))
  assert np.abs(flat(found) - flat(against)).max() > 1e-3


def test_the_first_task_is_trained_as_it_is():
  method, params, memory, frozen = made()
  some, grads = batch(TOY.inputs.shape, CLASSES[0], 9), jax.tree.map(jnp.ones_like, params)
  equal(method.project(grads, params, memory, env(frozen, 0), some, jax.random.key(1)), grads)


def test_too_few_slots_and_negative_weights_are_refused():
  with pytest.raises(ValueError, match='an example of each of 3 tasks, got size=2'):
    gem(INNER, size=2)
  for options in ({'margin': -0.1}, {'ridge': -1.0}):
    with pytest.raises(ValueError, match='at least 0'):
      gem(INNER, **options)
