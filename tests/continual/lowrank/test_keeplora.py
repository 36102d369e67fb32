"""KeepLoRA, against its equations in NumPy at float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import keeplora
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.keeplora import residual_directions
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, run

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


@functools.cache
def ran():
  return run(keeplora(TOY, CAPACITY, peft=FC, threshold=0.9, kept=0.6), TOY)


def f64(a):
  return np.asarray(a, np.float64)


def inputs(some):
  x = f64(normalised(TOY.inputs, jnp.asarray(some.x)))
  return x.reshape(len(x), -1)


def protecting(old, moments, share):
  """The projector on old directions and the fewest new ones that hold a share of the energy."""
  rest = np.eye(len(old)) - old
  left, values, _ = np.linalg.svd(rest @ moments @ rest)
  held, count = np.trace(old @ moments), 0
  while held < share * np.trace(moments):
    held, count = held + values[count], count + 1
  return old + left[:, :count] @ left[:, :count].T


def pushed(head, weights, some, t):
  """The gradient of the sum of losses with respect to the weights of the site: [15, 6]."""
  x = inputs(some)
  y = np.tanh(x @ weights + f64(ran().frozen['block_0']['fc']['bias']))
  logits = y @ f64(head.kernel) + f64(head.bias)
  own = list(CLASSES[t])
  share = np.zeros_like(logits)
  share[:, own] = np.exp(logits[:, own]) / np.exp(logits[:, own]).sum(1, keepdims=True)
  back = (share - np.eye(7)[some.y]) * some.valid[:, None]
  return x.T @ ((back @ f64(head.kernel).T) * (1 - y**2))


def frozen_kernel():
  return f64(ran().frozen['block_0']['fc']['kernel'])


@pytest.mark.parametrize('kept', [0.0, 0.6, 1.0])
def test_the_fewest_input_directions_that_hold_a_share_of_the_weights_are_protected(kept):
  frozen = frozen_of(TOY)
  _, memory = keeplora(TOY, CAPACITY, peft=FC, kept=kept).init(jax.random.key(0), frozen)
  w = f64(frozen['block_0']['fc']['kernel'])
  want = protecting(np.zeros((15, 15)), w @ w.T, min(kept, 1 - 1e-9))
  assert round(np.trace(want)) == {0.0: 0, 0.6: 3, 1.0: 6}[kept]
  np.testing.assert_allclose(memory['protected'][PATH], want, atol=1e-4)


def test_the_published_code_protects_output_directions_of_the_weights():
  frozen = frozen_of(MODEL)
  method = keeplora(MODEL, CAPACITY, peft=lora('attn/out$', rank=2), kept=0.5, of_outputs=True)
  _, memory = method.init(jax.random.key(0), frozen)
  w = f64(frozen['block_0']['attn']['out']['kernel'])
  want = protecting(np.zeros((24, 24)), w.T @ w, 0.5)
  np.testing.assert_allclose(memory['protected']['block_0/attn/out'], want, atol=1e-4)
  with pytest.raises(ValueError, match='as many outputs as inputs'):
    keeplora(TOY, CAPACITY, peft=FC, of_outputs=True)


@pytest.mark.parametrize('t', range(3))
def test_a_task_starts_in_the_leading_gradient_directions_that_are_not_protected(t):
  passes = [s for s in ran().stages if s.name == 'prepare' and s.task == t]
  state = passes[-1].state
  weights = frozen_kernel() + f64(state.memory['past'][PATH])
  sums = [pushed(state.memory['awake'], weights, s.batch, t) for s in passes]
  np.testing.assert_allclose(state.memory['gradient'][PATH], sum(sums), rtol=1e-3, atol=1e-4)
  designed = ran().last('design', t).state
  free = np.eye(15) - f64(state.memory['protected'][PATH])
  u, s, vt = np.linalg.svd(free @ sum(sums) / 8)  # 4 rows of each batch are valid.
  a, b = f64(designed.memory['down'][PATH]), f64(designed.params['up'][PATH])
  np.testing.assert_allclose(a @ a.T, u[:, :2] @ u[:, :2].T, atol=2e-3)
  np.testing.assert_allclose(a @ b, u[:, :2] * s[:2] @ vt[:2], atol=2e-4)
  np.testing.assert_allclose(f64(state.memory['protected'][PATH]) @ a, 0, atol=1e-5)
  # Taken off the weights again: answers are the same.
  method, where, x = ran().method, env(ran().frozen, t), passes[0].batch.x
  before = method.forward(state.params, state.memory, where, x, None).logits
  after = method.forward(designed.params, designed.memory, where, x, None).logits
  np.testing.assert_allclose(before, after, atol=1e-6)


def test_columns_of_new_classes_are_random_for_the_gradient_and_zero_in_the_head():
  begun = ran().last('begin', 1).state
  new = list(CLASSES[1])
  assert not np.asarray(begun.params['head'].kernel)[:, new].any()
  assert np.abs(np.asarray(begun.memory['awake'].kernel)[:, new]).min() > 0
  seen = list(CLASSES[0])
  np.testing.assert_array_equal(
    begun.memory['awake'].kernel[:, seen], begun.params['head'].kernel[:, seen]
  )


def test_up_projections_alone_are_trained_with_the_gradient_of_the_equations():
  stage = ran().last('train', 1)
  state, some, where = stage.state, stage.batch, env(ran().frozen, 1)
  loss = lambda p: ran().method.loss(p, state.memory, where, some, None)[0]
  grads = jax.grad(loss)(state.params)
  assert set(grads) == {'up', 'head'}
  a = f64(state.memory['down'][PATH])
  moved = f64(state.params['up'][PATH]) - f64(state.memory['start'][PATH])
  weights = frozen_kernel() + f64(state.memory['past'][PATH]) + 3 * a @ moved
  want = 3 * a.T @ pushed(state.params['head'], weights, some, 1) / 4
  assert np.abs(want).max() > 1e-3
  np.testing.assert_allclose(grads['up'][PATH], want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('t', range(3))
def test_a_finished_task_is_merged_and_its_inputs_are_protected(t):
  before, after = ran().before(ran().last('end', t)), ran().last('end', t).state
  rows = np.concatenate([
    inputs(s.batch)[s.batch.valid]
    for s in ran().stages if s.name == 'consolidate' and s.task == t
  ])  # fmt: skip
  want = protecting(f64(before.memory['protected'][PATH]), rows.T @ rows, 0.9)
  np.testing.assert_allclose(after.memory['protected'][PATH], want, atol=2e-3)
  moved = f64(before.params['up'][PATH]) - f64(before.memory['start'][PATH])
  total = f64(before.memory['past'][PATH]) + 3 * f64(before.memory['down'][PATH]) @ moved
  np.testing.assert_allclose(after.memory['past'][PATH], total, rtol=1e-5, atol=1e-7)
  method, where, x = ran().method, env(ran().frozen, t), batch(TOY.inputs.shape, CLASSES[t], 4).x
  answers = [method.predict(s.params, s.memory, where, x) for s in (before, after)]
  np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-6)


def test_directions_without_gradient_are_left_out():
  protected = np.diag([1.0, 1.0, 0.0, 0.0])
  gradient = np.outer([3.0, 1.0, 2.0, 0.0], [1.0, 0.0, 2.0])
  found = residual_directions(jnp.asarray(gradient), jnp.asarray(protected), 2)
  np.testing.assert_allclose(np.abs(found.a), [[0, 0], [0, 0], [1, 0], [0, 0]], atol=1e-6)
  np.testing.assert_allclose(
    f64(found.a) @ f64(found.b), gradient * [[0], [0], [1], [1]], atol=1e-5
  )


def test_only_lora_and_shares_in_their_range_are_taken():
  with pytest.raises(ValueError, match='needs a transform whose delta is LoRA factors'):
    keeplora(MODEL, CAPACITY, peft=adaptformer(width=3))
  for wrong in ({'threshold': 0.0}, {'threshold': 1.5}, {'kept': -0.1}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      keeplora(TOY, CAPACITY, peft=FC, **wrong)
