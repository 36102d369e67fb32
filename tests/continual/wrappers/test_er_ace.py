"""The asymmetric cross-entropy, against float64."""

import jax
import numpy as np
import pytest

from pecft_jax.continual import er, er_ace, ewc, finetune
from pecft_jax.continual.memory.buffer import sample
from pecft_jax.continual.wrappers.er_ace import classes_in
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, repadded, shaken

INNER = finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


def filled(method):
  """Parameters, and memory whose buffer has seen batches of task 0."""
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  for i in range(4):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    _, out = method.loss(params, memory, env(frozen, 0), some, jax.random.key(i))
    _, memory = method.observe(params, memory, env(frozen, 0), some, out, None, jax.random.key(i))
  return params, memory, env(frozen, 1)


def entropy(logits, y, among):
  """The mean cross-entropy in float64, over a list of classes."""
  logits = np.asarray(logits, np.float64)[:, among]
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -log_p[np.arange(len(y)), np.searchsorted(among, y)].mean()


def test_new_examples_compete_with_classes_of_their_batch_and_old_ones_with_all_seen():
  method = er_ace(INNER, size=11, strength=0.6)
  params, memory, where = filled(method)
  some, key = batch(TOY.inputs.shape, (2, 4), 9), jax.random.key(3)  # Class 3 is of the task, too.
  assert set(some.y[:4]) == {2, 4}
  loss, _ = method.loss(params, memory, where, some, key)
  old, _ = sample(memory['buffer'], 5, jax.random.split(key, 3)[1])
  logits = lambda x: INNER.forward(params, {}, where, x, None).logits
  want = entropy(logits(some.x[:4]), some.y[:4], [2, 4])
  want += 0.6 * entropy(logits(old['x']), np.asarray(old['y']), [0, 1, 2, 3, 4])
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_the_gradient_of_new_examples_leaves_old_classes_of_the_head_alone():
  method = er_ace(INNER, size=11, strength=0.0)
  params, memory, where = filled(method)
  some = batch(TOY.inputs.shape, (2, 4), 9)
  grads = jax.grad(lambda p: method.loss(p, memory, where, some, jax.random.key(3))[0])(params)
  kernel = np.asarray(grads['head'].kernel)
  assert not kernel[:, [0, 1, 3, 5, 6]].any() and kernel[:, [2, 4]].any()


def test_replay_inside_and_outside_is_over_all_classes_seen():
  """The limit concerns the batch alone: `er` within sees no other loss of its own examples."""
  inside = er_ace(er(INNER, size=7), size=11)
  params, memory, where = filled(inside)
  some, key = batch(TOY.inputs.shape, (2, 4), 9), jax.random.key(3)
  loss, _ = inside.loss(params, memory, where, some, key)
  assert 0 < loss < 100  # A class that may not be chosen costs 1e9.
  around = ewc(er_ace(INNER, size=11))
  assert around.name == 'ewc(er_ace(finetune))'


def test_the_classes_of_a_batch_are_those_of_its_valid_rows():
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  want = np.isin(np.arange(7), some.y[:4])
  np.testing.assert_array_equal(classes_in(some, 7), want)
  np.testing.assert_array_equal(classes_in(repadded(some), 7), want)


def test_a_masked_method_is_limited_to_what_is_in_both():
  method = er_ace(finetune(TOY, CAPACITY, peft=lora('fc$', rank=2), masked=True), strength=0.0)
  plain = er_ace(INNER, strength=0.0)
  params, memory, where = filled(plain)
  some = batch(TOY.inputs.shape, (2, 4), 9)
  losses = [m.loss(params, memory, where, some, jax.random.key(1))[0] for m in (method, plain)]
  equal(*losses)


def test_a_negative_strength_is_refused():
  with pytest.raises(ValueError, match='strength'):
    er_ace(INNER, strength=-1.0)
