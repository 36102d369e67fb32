"""Gradient projection memory, against SVDs of all inputs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import finetune, gpm
from pecft_jax.continual.lowrank.gpm import with_share
from pecft_jax.peft import lora
from pecft_jax.recipes import adam, sgd
from pecft_jax.schedules import constant
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

FC = lora('fc$', rank=4)
SITE = 'block_0/fc'


def extended(basis, rows, share):
  """The basis after a task as the paper has it (eqs. 5, 8, 9): rows [n, d] -> [d, k]."""
  inputs = rows.T
  total = (inputs**2).sum()
  left, values, _ = np.linalg.svd(inputs - basis @ basis.T @ inputs, full_matrices=False)
  held, k = total - (values**2).sum(), 0
  while held < share * total and k < len(values) and values[k] ** 2 > 1e-6 * total:
    held, k = held + values[k] ** 2, k + 1
  return np.hstack([basis, left[:, :k]])


@pytest.mark.parametrize('share', [0.5, 0.9, 0.99, 1.0])
def test_directions_are_those_of_the_svd_of_all_inputs(share):
  rng = np.random.default_rng(3)
  basis, found = np.zeros((7, 0)), jnp.zeros((7, 7))
  for t in range(3):
    rows = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 7)) * 10.0**t
    basis = extended(basis, rows, share)
    found = jax.jit(with_share)(found, jnp.float32(rows.T @ rows), share)
    np.testing.assert_allclose(found, basis @ basis.T, atol=1e-4)
  assert basis.shape[1] == (7 if share == 1.0 else basis.shape[1])


@pytest.fixture(scope='module')
def two_tasks():
  """State after two tasks; examples and factors of each."""
  method, frozen = gpm(TOY, CAPACITY, peft=FC, threshold=0.8, growth=0.05), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  consolidate, past = jax.jit(method.consolidate), []
  for t in range(2):
    params = shaken(params, 5 + t)
    batches = [batch(TOY.inputs.shape, CLASSES[t], 10 * t + i) for i in range(2)]
    for some in batches:
      memory = consolidate(params, memory, env(frozen, t), some)
    x = np.concatenate([some.x[:4] for some in batches])
    rows = ((x / 255 - 0.5) / 0.25).reshape(8, 15)
    past.append((rows, np.asarray(params['delta'][SITE].a, np.float64)))
    params, memory = method.end_task(params, memory, env(frozen, t))
  return method, params, memory, frozen, past


def test_each_factor_has_the_projector_of_what_it_reads(two_tasks):
  _, _, memory, _, past = two_tasks
  of_a, of_b = np.zeros((15, 0)), np.zeros((4, 0))
  for t, (rows, a) in enumerate(past):
    of_a = extended(of_a, rows, 0.8 + 0.05 * t)
    of_b = extended(of_b, rows @ a, 0.8 + 0.05 * t)
  np.testing.assert_allclose(memory['old'][SITE].a, of_a @ of_a.T, atol=1e-4)
  np.testing.assert_allclose(memory['old'][SITE].b, of_b @ of_b.T, atol=1e-4)
  assert 0 < of_a.shape[1] < 15 and 0 < of_b.shape[1] < 4
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(memory['moments']))


@pytest.mark.parametrize('recipe', [sgd(0.1, momentum=0.0, schedule=constant), adam(1e-2)])
def test_an_update_has_no_part_along_old_inputs(two_tasks, recipe):
  method, params, memory, frozen, _ = two_tasks
  where, some = env(frozen, 2), batch(TOY.inputs.shape, CLASSES[2], 9)
  state = init_state(method, recipe, jax.random.key(0), frozen)
  state = state._replace(params=params, memory=memory, task=where.task)
  after, _ = train_step(method, recipe, state, frozen, some)
  inner = finetune(TOY, CAPACITY, peft=FC, masked=True)
  grads = jax.grad(lambda p: inner.loss(p, {}, where, some, None)[0])(params)
  for name in ('a', 'b'):
    leaf = lambda tree, name=name: np.asarray(getattr(tree['delta'][SITE], name), np.float64)
    moved = leaf(after.params) - leaf(params)
    old = np.asarray(getattr(memory['old'][SITE], name), np.float64)
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(old @ moved, 0, atol=1e-5)
    if recipe.settings['name'] == 'sgd':
      np.testing.assert_allclose(moved, -0.1 * (leaf(grads) - old @ leaf(grads)), atol=1e-6)


def test_old_examples_pass_the_factors_unchanged_where_the_basis_holds_all_of_them():
  method, frozen = gpm(TOY, CAPACITY, peft=FC, threshold=1.0), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params, old = shaken(params, 5), batch(TOY.inputs.shape, CLASSES[0], 1, padding=2)
  memory = method.consolidate(params, memory, env(frozen, 0), old)
  params, memory = method.end_task(params, memory, env(frozen, 0))
  recipe, where = adam(1e-1), env(frozen, 1)
  state = init_state(method, recipe, jax.random.key(0), frozen)
  state = state._replace(params=params, memory=memory, task=where.task)
  step = jax.jit(lambda state, some: train_step(method, recipe, state, frozen, some)[0])
  for i in range(3):
    state = step(state, batch(TOY.inputs.shape, CLASSES[1], 10 + i))
  features = lambda p: method.forward(p, memory, where, old.x[:3], None).features
  np.testing.assert_allclose(features(state.params), features(params), atol=2e-4)
  fresh = batch(TOY.inputs.shape, CLASSES[1], 10).x
  new = lambda p: method.forward(p, memory, where, fresh, None).features
  assert np.abs(np.asarray(new(state.params)) - new(params)).max() > 1e-2


def test_the_first_task_moves_freely():
  method, frozen = gpm(TOY, CAPACITY, peft=FC), frozen_of(TOY)
  inner, recipe = finetune(TOY, CAPACITY, peft=FC, masked=True), sgd(0.1)
  some, where = batch(TOY.inputs.shape, CLASSES[0], 9), env(frozen, 0).task
  one, two = (
    train_step(m, recipe, init_state(m, recipe, jax.random.key(0), frozen)._replace(task=where),
               frozen, some)[0].params
    for m in (method, inner)
  )  # fmt: skip
  equal(one, two)


def test_thresholds_that_are_no_share_are_refused():
  for options in ({'threshold': 0.0}, {'threshold': 1.1}, {'growth': -0.1}):
    with pytest.raises(ValueError):
      gpm(TOY, CAPACITY, peft=FC, **options)
