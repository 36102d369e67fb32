"""SLAO, against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import finetune, slao
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.slao import orthonormal
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, close, env, frozen_of, run

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)
PATH = 'block_0/fc'


@functools.cache
def ran():
  return run(slao(TOY, CAPACITY, peft=FC), TOY)


def trained(t):
  """The factors at the end of training of a task."""
  state = [s for s in ran().stages if (s.name, s.task) == ('train', t)][-1].state
  return [np.asarray(leaf, np.float64) for leaf in state.params['delta'][PATH]]


@pytest.mark.parametrize('t', [1, 2])
def test_a_task_starts_with_orthonormal_rows_of_the_last_a_and_with_the_last_b(t):
  a, b = trained(t - 1)
  q, r = torch.linalg.qr(torch.tensor(a))
  begun = ran().last('begin', t).state.params['delta'][PATH]
  np.testing.assert_allclose(begun.a, (q * torch.sign(torch.diag(r))).numpy(), atol=1e-5)
  np.testing.assert_array_equal(begun.b, np.float32(b))


def test_merged_factors_are_the_last_a_and_a_running_mean_of_b():
  merged = np.zeros((2, 6))
  for t in range(3):
    a, b = trained(t)
    merged += (b - merged) / np.sqrt(t + 1)
    ended = ran().last('end', t).state.params['delta'][PATH]
    np.testing.assert_array_equal(ended.a, np.float32(a))
    np.testing.assert_allclose(ended.b, merged, atol=1e-6)
  assert np.abs(merged - b).max() > 1e-3


def test_the_merged_lora_predicts_and_the_trained_one_learns():
  x = batch(TOY.inputs.shape, CLASSES[2], 3).x
  images = normalised(TOY.inputs, jnp.asarray(x))
  frozen, where = ran().frozen, env(ran().frozen, 2)
  merged = TOY.apply(FC.merge(ran().last('end', 2).state.params['delta'], frozen), images).pooled
  state = ran().last('end', 2).state
  out = ran().method.forward(state.params, state.memory, where, x, None)
  close(out.features, merged)
  a, b = trained(2)
  kernel = np.asarray(frozen['block_0']['fc']['kernel'], np.float64) + 3 * a @ b
  inputs = np.asarray(images, np.float64).reshape(len(x), -1)
  own = np.tanh(inputs @ kernel + np.asarray(frozen['block_0']['fc']['bias']))
  state = [s for s in ran().stages if (s.name, s.task) == ('train', 2)][-1].state
  out = ran().method.forward(state.params, state.memory, where, x, None)
  np.testing.assert_allclose(out.features, own, atol=1e-5)


def test_the_first_task_is_masked_fine_tuning():
  frozen = frozen_of(TOY)
  method, plain = slao(TOY, CAPACITY, peft=FC), finetune(TOY, CAPACITY, peft=FC, masked=True)
  params, memory = method.init(jax.random.key(0), frozen)
  some, where = batch(TOY.inputs.shape, CLASSES[0], 3), env(frozen, 0)
  loss = lambda m, memory: jax.grad(lambda p: m.loss(p, memory, where, some, None)[0])(params)
  close(loss(method, memory), loss(plain, {}))
  ended, _ = method.end_task(params, memory, where)
  close(ended, params)


@pytest.mark.parametrize('power', [0.0, 1.0])
def test_powers_of_0_and_1_are_the_last_b_and_the_mean(power):
  method, frozen = slao(TOY, CAPACITY, peft=FC, power=power), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  for t in range(3):
    b = {PATH: params['delta'][PATH]._replace(b=jnp.full((2, 6), t + 1.0))}
    params, memory = method.end_task({**params, 'delta': b}, memory, env(frozen, t))
  np.testing.assert_allclose(params['delta'][PATH].b, 3.0 if power == 0 else 2.0, rtol=1e-6)


def test_columns_are_orthonormal_and_span_what_they_did():
  a = np.random.default_rng(0).normal(size=(7, 3))
  q = np.asarray(orthonormal(jnp.float32(a)), np.float64)
  np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(q @ q.T @ a, a, atol=1e-5)
  assert (np.diag(q.T @ a) > 0).all()


def test_other_transforms_and_negative_powers_are_refused():
  with pytest.raises(ValueError, match='SLAO needs a transform whose delta is LoRA factors'):
    slao(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError):
    slao(TOY, CAPACITY, peft=FC, power=-1.0)
