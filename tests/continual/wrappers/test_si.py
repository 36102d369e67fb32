"""Synaptic intelligence, against float64."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease, finetune, si
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.schedules import constant
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Update

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC)


def leaves(tree):
  return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def learnt(steps=3, **options):
  """The path of one task under plain SGD: parameters and gradients of each step, and the end."""
  method, frozen = si(INNER, **options), frozen_of(TOY)
  recipe = sgd(0.3, momentum=0.0, schedule=constant)
  state = init_state(method, recipe, jax.random.key(0), frozen)
  where = env(frozen, 0)
  params, memory = method.begin_task(
    shaken(state.params, 3), state.memory, where, jax.random.key(1)
  )
  state = state._replace(params=params, memory=memory, task=where.task)
  seen = [params]
  for i in range(steps):
    state, _ = train_step(method, recipe, state, frozen, batch(TOY.inputs.shape, CLASSES[0], i))
    seen.append(state.params)
  return method, state, seen, where


def test_the_path_integral_is_the_sum_of_gradients_times_changes():
  """Under plain SGD with rate 0.3 the change is -0.3 g, so a step adds |change|^2 / 0.3."""
  _, state, seen, _ = learnt()
  want = [0.0] * len(leaves(seen[0]))
  for old, new in itertools.pairwise(seen):
    moves = zip(leaves(old), leaves(new), strict=True)
    want = [total + np.square(b - a) / 0.3 for total, (a, b) in zip(want, moves, strict=True)]
  for found, each in zip(leaves(state.memory['path']), want, strict=True):
    np.testing.assert_allclose(found, each, rtol=1e-3, atol=1e-7)


def test_importance_is_the_path_over_the_squared_way():
  method, state, seen, where = learnt(damping=0.02)
  path = [np.maximum(p, 0) for p in leaves(state.memory['path'])]
  _, memory = method.end_task(state.params, state.memory, where)
  start, end = leaves(seen[0]), leaves(seen[-1])
  for found, p, a, b in zip(leaves(memory['importance']), path, start, end, strict=True):
    np.testing.assert_allclose(found, p / (np.square(b - a) + 0.02), rtol=1e-4, atol=1e-7)


def test_the_loss_gains_the_weighted_squares():
  method, state, _, where = learnt(strength=0.7)
  params, memory = method.end_task(state.params, state.memory, where)
  moved, some = shaken(params, 8), batch(TOY.inputs.shape, CLASSES[1], 4)
  where = env(where.frozen, 1)
  found, _ = method.loss(moved, memory, where, some, None)
  plain, _ = INNER.loss(moved, {}, where, some, None)
  trio = zip(leaves(memory['importance']), leaves(memory['anchor']), leaves(moved), strict=True)
  want = 0.7 * sum((o * np.square(p - a)).sum() for o, a, p in trio)
  assert want > 1e-3
  np.testing.assert_allclose(found - plain, want, rtol=1e-4)


def test_the_path_is_that_of_the_loss_without_the_penalty():
  method = si(INNER, strength=5.0)
  zeros = jax.tree.map(jnp.zeros_like, INNER.init(jax.random.key(0), frozen_of(TOY))[0])
  ones = jax.tree.map(jnp.ones_like, zeros)
  memory = {'inner': {}, 'anchor': zeros, 'importance': ones, 'path': zeros}
  twos = jax.tree.map(lambda leaf: leaf * 2, ones)
  grads = jax.tree.map(lambda leaf: 10 * leaf + 3, ones)  # 2 x 5 x 1 x (1 - 0) of it is the term's.
  _, after = method.observe(twos, memory, None, None, None, Update(grads, ones), None)
  chex.assert_trees_all_equal_structs(after['path'], zeros)
  for leaf in leaves(after['path']):
    np.testing.assert_allclose(leaf, -3.0)


def test_nothing_to_hold_and_odd_numbers_are_refused():
  method = si(ease(TOY, CAPACITY, peft=FC))
  with pytest.raises(ValueError, match='si has no parameters to hold in ease'):
    method.init(jax.random.key(0), frozen_of(TOY))
  with pytest.raises(ValueError, match='damping > 0'):
    si(INNER, damping=0.0)
