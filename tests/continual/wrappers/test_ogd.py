"""Orthogonal gradient descent, against QR in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease, finetune, ogd
from pecft_jax.continual.wrappers.ogd import direction, within
from pecft_jax.peft import lora
from pecft_jax.recipes import adam, sgd
from pecft_jax.schedules import constant
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC)


def flat(tree, *lead):
  parts = [np.asarray(leaf, np.float64).reshape(*lead, -1) for leaf in jax.tree.leaves(tree)]
  return np.concatenate(parts, -1)


@pytest.fixture(scope='module')
def two_tasks():
  """Memory after two tasks, and the examples whose gradients were taken."""
  method, frozen = ogd(INNER, size=9), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params, samples = shaken(params, 5), []
  (phase,) = method.phases
  for t in range(2):
    for i in range(3):
      some = batch(TOY.inputs.shape, CLASSES[t], 10 * t + i)
      memory = method.consolidate(params, memory, env(frozen, t), some)
    samples.append(memory['sample'].items)
    params, memory = phase.hook(params, memory, env(frozen, t), jax.random.key(0))
  return method, params, memory, frozen, samples


def test_the_bank_spans_the_gradients_of_true_logits(two_tasks):
  _, params, memory, frozen, samples = two_tasks
  gradients = []
  for t, items in enumerate(samples):
    for x, y in zip(items['x'], items['y'], strict=True):
      logit = lambda p, x=x, y=y, t=t: INNER.forward(p, {}, env(frozen, t), x[None], None).logits[
        0, y
      ]
      gradients.append(flat(jax.grad(logit)(params)))
  wide = np.stack(gradients).T  # [P, 6]
  basis = np.linalg.qr(wide)[0]
  bank = flat(memory['bank'], 3, 3).reshape(9, -1)
  np.testing.assert_allclose(bank[:6] @ bank[:6].T, np.eye(6), atol=1e-5)
  np.testing.assert_allclose(bank.T @ bank, basis @ basis.T, atol=1e-4)
  assert not bank[6:].any()


def test_no_example_is_kept_from_task_to_task(two_tasks):
  _, _, memory, _, _ = two_tasks
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(memory['sample']))


@pytest.mark.parametrize('recipe', [sgd(0.1, momentum=0.0, schedule=constant), adam(1e-2)])
def test_an_update_has_no_part_in_the_span(two_tasks, recipe):
  method, params, memory, frozen, _ = two_tasks
  where, some = env(frozen, 2), batch(TOY.inputs.shape, CLASSES[2], 9)
  state = init_state(method, recipe, jax.random.key(0), frozen)
  state = state._replace(params=params, memory=memory, task=where.task)
  after, _ = train_step(method, recipe, state, frozen, some)
  moved = flat(after.params) - flat(params)
  bank = flat(memory['bank'], 3, 3).reshape(9, -1)
  assert np.abs(moved).max() > 1e-3
  np.testing.assert_allclose(bank @ moved, 0, atol=1e-6)
  if recipe.settings['name'] == 'sgd':  # The paper's: the gradient, projected, times the rate.
    g = flat(jax.grad(lambda p: INNER.loss(p, {}, where, some, None)[0])(params))
    np.testing.assert_allclose(moved, -0.1 * (g - bank.T @ (bank @ g)), atol=1e-6)


def test_the_first_task_moves_freely():
  method, frozen = ogd(INNER, size=9), frozen_of(TOY)
  state = init_state(method, sgd(0.1), jax.random.key(0), frozen)
  plain = init_state(INNER, sgd(0.1), jax.random.key(0), frozen)._replace(params=state.params)
  some = batch(TOY.inputs.shape, CLASSES[0], 9)
  where = env(frozen, 0).task
  one, two = (
    train_step(m, sgd(0.1), s._replace(task=where), frozen, some)[0]
    for m, s in ((method, state), (INNER, plain))
  )
  equal(one.params, two.params)


def test_what_adds_nothing_is_no_direction():
  bank = {'a': jnp.zeros((1, 2, 3)).at[0, 0, 0].set(1.0)}
  assert not np.asarray(direction(bank, {'a': jnp.array([2.0, 0, 0])})['a']).any()
  np.testing.assert_allclose(direction(bank, {'a': jnp.array([2.0, 3.0, 4.0])})['a'], [0, 0.6, 0.8])
  np.testing.assert_allclose(within(bank, {'a': jnp.array([2.0, 3.0, 4.0])})['a'], [2, 0, 0])


def test_nothing_to_hold_and_too_few_vectors_are_refused():
  with pytest.raises(ValueError, match='ogd has no parameters to hold in ease'):
    ogd(ease(TOY, CAPACITY, peft=FC)).init(jax.random.key(0), frozen_of(TOY))
  with pytest.raises(ValueError, match='a vector of each of 3 tasks, got size=2'):
    ogd(INNER, size=2)
