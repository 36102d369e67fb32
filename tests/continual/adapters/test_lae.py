"""LAE: the online and the offline delta."""

import jax
import numpy as np
import pytest

from pecft_jax.continual import lae
from pecft_jax.continual.core import normalised
from pecft_jax.peft import lora
from pecft_jax.recipes import adam
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)
RECIPE = adam(1e-2, weight_decay=0.1)


def started(t, **options):
  method, frozen = lae(TOY, CAPACITY, peft=FC, **options), frozen_of(TOY)
  state = init_state(method, RECIPE, jax.random.key(0), frozen)
  where = env(frozen, t)
  task = where.task._replace(start=np.int32(0), steps=np.int32(4))
  params = shaken(state.params, 3)
  state = state._replace(params=params, memory={'offline': shaken(params['delta'], 4)}, task=task)
  return method, frozen, state


def stepped(method, frozen, state, count):
  states = [state]
  for i in range(count):
    some = batch(TOY.inputs.shape, CLASSES[int(state.task.index)], i)
    states.append(train_step(method, RECIPE, states[-1], frozen, some)[0])
  return states


def test_the_delta_stands_still_for_the_first_part_of_later_tasks():
  method, frozen, state = started(1, frozen_share=0.5)
  states = stepped(method, frozen, state, 4)
  for before, after, still in zip(states[:-1], states[1:], (True, True, False, False), strict=True):
    same = jax.tree.map(np.array_equal, before.params['delta'], after.params['delta'])
    assert set(jax.tree.leaves(same)) == {still}
    assert not np.array_equal(before.params['head'].kernel, after.params['head'].kernel)


def test_the_first_task_trains_all_and_has_no_average_yet():
  method, frozen, state = started(0, frozen_share=0.5, decay=0.9)
  for after in stepped(method, frozen, state, 2)[1:]:
    first = lambda state: state.params['delta']['block_0/fc'].a
    assert not np.array_equal(first(after), first(state))
    equal(after.memory['offline'], after.params['delta'])


def test_the_offline_delta_is_the_moving_average_of_the_online_one():
  method, frozen, state = started(1, frozen_share=0.0, decay=0.75)
  states = stepped(method, frozen, state, 3)
  want = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.memory['offline'])
  for after in states[1:]:
    want = jax.tree.map(
      lambda old, new: 0.75 * old + 0.25 * np.asarray(new, np.float64), want, after.params['delta']
    )
  close(jax.tree.map(np.float32, want), states[-1].memory['offline'], atol=1e-6)


def test_a_class_has_the_larger_of_its_two_shares():
  method, frozen, state = started(1)
  x = batch(TOY.inputs.shape, range(7), 5, rows=6).x
  where = env(frozen, 1)
  seen = np.asarray(where.task.seen)

  def shares(delta):
    features = TOY.apply(frozen, normalised(TOY.inputs, x), delta, peft=FC).pooled
    head = state.params['head']
    logits = np.asarray(features, np.float64) @ np.asarray(head.kernel) + np.asarray(head.bias)
    exp = np.exp(logits) * seen
    return exp / exp.sum(1, keepdims=True)

  want = np.maximum(shares(state.params['delta']), shares(state.memory['offline']))
  found = np.asarray(method.predict(state.params, state.memory, where, x))
  np.testing.assert_allclose(found[:, seen], want[:, seen], rtol=1e-4)
  assert np.isneginf(found[:, ~seen]).all()


def test_shares_outside_of_0_to_1_are_refused():
  with pytest.raises(ValueError, match='decay and frozen_share'):
    lae(TOY, CAPACITY, peft=FC, decay=1.2)
