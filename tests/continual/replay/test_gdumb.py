"""Greedy sampler and dumb learner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import finetune, gdumb
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.typing import PeftTransform

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, run, shaken

FC = lora('fc$', rank=2)
OPTIONS = {'peft': FC, 'size': 7, 'epochs': 2, 'batch_size': 4}


@pytest.fixture(scope='module')
def ran():
  return run(gdumb(TOY, CAPACITY, **OPTIONS), TOY)


def test_all_classes_seen_have_examples(ran):
  for t in range(3):
    label = np.asarray(ran.last('end', t).state.memory['buffer'].label)
    offered = [
      y
      for s in ran.stages
      if s.name == 'consolidate' and s.task <= t
      for y in s.batch.y[:4].tolist()
    ]
    assert set(label[label >= 0].tolist()) == set(offered), t


def test_each_task_starts_from_scratch(ran):
  for t in range(3):
    head = ran.last('begin', t).state.params['head']
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(head))
    trained = ran.last('end', t).state.params['head']
    assert np.asarray(trained.kernel).any()


def test_an_update_is_the_mean_over_distinct_stored_examples_of_all_classes_seen():
  method, frozen = gdumb(TOY, CAPACITY, **OPTIONS), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  for i in range(3):
    some = batch(TOY.inputs.shape, CLASSES[1], i)
    memory = method.consolidate(params, memory, env(frozen, 1), some)
  (fit,) = method.phases
  key, where = jax.random.key(4), env(frozen, 1)
  loss, buffer = fit.loss(params, memory, where, None, key), memory['buffer']
  # The least of all means of four of the seven, and the largest, are around it.
  inner = finetune(TOY, CAPACITY, peft=FC)
  logits = np.asarray(inner.forward(params, {}, where, buffer.items['x'], None).logits, np.float64)
  log_p = logits[:, :5] - np.log(np.exp(logits[:, :5]).sum(1, keepdims=True))
  each = -log_p[np.arange(7), buffer.label]
  rows = np.argsort(jax.random.uniform(jax.random.split(key)[0], (7,)))[:4]
  assert len(set(rows.tolist())) == 4
  np.testing.assert_allclose(loss, each[rows].mean(), rtol=1e-5)


def test_slots_that_are_empty_do_not_count():
  method, frozen = gdumb(TOY, CAPACITY, **OPTIONS), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  (fit,) = method.phases
  value, grads = jax.value_and_grad(
    lambda p: fit.loss(p, memory, env(frozen, 0), None, jax.random.key(1))
  )(shaken(params, 5))
  assert value == 0 and not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_transforms_have_their_penalty_and_their_life_in_the_fit():
  """The trainer calls them in fits that train a delta, as in training."""
  counted = lambda delta, grads, progress: jax.tree.map(lambda leaf: leaf + progress, delta)
  zero = lambda leaf: jnp.zeros_like(leaf)
  still = FC._replace(
    penalty=lambda delta: 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(delta)) + 3.0,
    after=lambda delta, grads, progress: counted(jax.tree.map(zero, delta), grads, progress),
  )
  assert isinstance(still, PeftTransform)
  method = gdumb(TOY, CAPACITY, **{**OPTIONS, 'peft': still, 'recipe': sgd(0.1)})
  found = run(method, TOY)
  delta = found.last('end', 0).state.params['delta']
  for leaf in jax.tree.leaves(delta):  # After the second of two updates.
    np.testing.assert_allclose(leaf, 0.5)
  equal(found.last('end', 2).state.params['delta'], delta)


def test_sizes_that_do_not_do_are_refused():
  with pytest.raises(ValueError, match='size must be at least 7, got 6'):
    gdumb(TOY, CAPACITY, size=6, batch_size=2)
  with pytest.raises(ValueError, match='size must be at least 16, got 9'):
    gdumb(TOY, CAPACITY, size=9)
  with pytest.raises(ValueError, match='epochs'):
    gdumb(TOY, CAPACITY, epochs=0)
