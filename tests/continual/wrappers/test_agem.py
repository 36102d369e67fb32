"""A-GEM, against the projection in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import agem, finetune
from pecft_jax.continual.core import mean_of_valid
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.wrappers.agem import projected
from pecft_jax.peft import lora
from pecft_jax.problems import cross_entropy

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

INNER = finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


def made():
  """A method whose buffer has the examples of task 0."""
  method, frozen = agem(INNER, size=11), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  for i in range(4):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    memory = method.consolidate(params, memory, env(frozen, 0), some)
  return method, params, memory, frozen


def flat(tree):
  return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def test_a_gradient_against_the_reference_loses_its_part_along_it():
  g = {'a': jnp.array([1.0, -2.0]), 'b': jnp.array([[0.5]])}
  r = {'a': jnp.array([-1.0, 3.0]), 'b': jnp.array([[2.0]])}
  x, y = flat(g), flat(r)
  np.testing.assert_allclose(flat(projected(g, r)), x - x @ y / (y @ y) * y, rtol=1e-6)
  assert abs(flat(projected(g, r)) @ y) < 1e-5
  equal(projected(g, jax.tree.map(jnp.negative, r)), g)  # They agree: nothing changes.
  equal(projected(g, jax.tree.map(jnp.zeros_like, r)), g)


def test_the_reference_is_the_gradient_on_stored_examples_over_all_classes_seen():
  method, params, memory, frozen = made()
  where, some, key = env(frozen, 1), batch(TOY.inputs.shape, CLASSES[1], 9), jax.random.key(2)
  _, k_draw, _ = jax.random.split(key, 3)
  stored, valid = buffers.sample(memory['buffer'], 5, k_draw)

  def replayed(params):
    logits = INNER.forward(params, {}, where, stored['x'], None).logits
    return mean_of_valid(cross_entropy(logits, stored['y'], where.task.seen), valid)

  reference = jax.grad(replayed)(params)
  against = jax.tree.map(lambda r: -r + 0.01, reference)
  found = method.project(against, params, memory, where, some, key)
  np.testing.assert_allclose(flat(found), flat(projected(against, reference)), atol=1e-6)
  assert np.abs(flat(found) - flat(against)).max() > 1e-3


def test_the_buffer_holds_past_tasks_alone():
  _, _, memory, _ = made()
  assert int(memory['buffer'].count) == 16
  assert set(np.asarray(memory['buffer'].items['y']).tolist()) <= set(CLASSES[0])


def test_the_first_task_is_trained_as_it_is():
  method, params, memory, frozen = made()
  some = batch(TOY.inputs.shape, CLASSES[0], 9)
  grads = jax.tree.map(jnp.ones_like, params)
  equal(method.project(grads, params, memory, env(frozen, 0), some, jax.random.key(1)), grads)


def test_a_buffer_without_room_is_refused():
  with pytest.raises(ValueError, match='size of at least 1'):
    agem(INNER, size=0)
