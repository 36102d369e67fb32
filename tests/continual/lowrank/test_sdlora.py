"""SD-LoRA, against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import sdlora
from pecft_jax.continual.core import normalised
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, run, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


def made(t=2, **options):
  """A method in task t, whose magnitudes and factors are random."""
  method, frozen = sdlora(TOY, CAPACITY, peft=FC, **options), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  for i in range(t):
    params, memory = method.begin_task(params, memory, env(frozen, i), jax.random.key(i))
    params, memory = method.end_task(shaken(params, 5 + i), memory, env(frozen, i))
  params, memory = method.begin_task(params, memory, env(frozen, t), jax.random.key(9))
  return method, shaken(params, 8), memory, env(frozen, t)


def inputs(x):
  x = np.asarray(normalised(TOY.inputs, jnp.asarray(x)), np.float64)
  return x.reshape(len(x), -1)


def torch_loss(params, memory, where, some, norm):
  """The paper's equation in float64: leaves that need gradients, and the masked loss."""
  tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
  bank, t = memory['bank'][PATH], int(where.task.index)
  leaves = {
    'a': tensor(params['delta'][PATH].a), 'b': tensor(params['delta'][PATH].b),
    'magnitude': tensor(params['magnitude']), 'kernel': tensor(params['head'].kernel),
  }  # fmt: skip
  for leaf in leaves.values():
    leaf.requires_grad_()
  w = tensor(where.frozen['block_0']['fc']['kernel'])
  for i in range(t):
    a, b = tensor(bank.a[i]), tensor(bank.b[i])
    w = w + 3 * leaves['magnitude'][i] * (a @ b) / norm(a, b)
  w = w + 3 * leaves['magnitude'][t] * (leaves['a'] @ leaves['b'])
  bias = tensor(where.frozen['block_0']['fc']['bias'])
  features = torch.tanh(tensor(inputs(some.x)) @ w + bias)
  logits = features @ leaves['kernel'] + tensor(params['head'].bias)
  own = torch.full((7,), -torch.inf, dtype=torch.float64)
  own[list(CLASSES[t])] = 0
  valid = torch.tensor(some.valid)
  y = torch.tensor(some.y.astype(np.int64))
  loss = torch.nn.functional.cross_entropy((logits + own)[valid], y[valid])
  return loss, leaves


BY_FACTORS = lambda a, b: torch.linalg.norm(a) * torch.linalg.norm(b)
BY_PRODUCT = lambda a, b: torch.linalg.norm(a @ b)


@pytest.mark.parametrize(('of_product', 'norm'), [(False, BY_FACTORS), (True, BY_PRODUCT)])
def test_loss_and_gradients_are_those_of_the_equation(of_product, norm):
  method, params, memory, where = made(of_product=of_product)
  some = batch(TOY.inputs.shape, CLASSES[2], 3)
  found = lambda p: method.loss(p, memory, where, some, None)[0]
  loss, grads = jax.value_and_grad(found)(params)
  want, leaves = torch_loss(params, memory, where, some, norm)
  want.backward()
  np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
  got = {
    'a': grads['delta'][PATH].a, 'b': grads['delta'][PATH].b,
    'magnitude': grads['magnitude'], 'kernel': grads['head'].kernel,
  }  # fmt: skip
  for name, leaf in leaves.items():
    np.testing.assert_allclose(got[name], leaf.grad, atol=1e-6, rtol=1e-4, err_msg=name)


@functools.cache
def ran(**options):
  return run(sdlora(TOY, CAPACITY, peft=FC, **options), TOY)


def features(state, method, frozen, t, x):
  return method.forward(state.params, state.memory, env(frozen, t), x, None).features


def test_keeping_a_direction_leaves_the_model_as_it_was_trained():
  some = batch(TOY.inputs.shape, CLASSES[1], 3).x
  trained = [s for s in ran().stages if (s.name, s.task) == ('train', 1)][-1].state
  ended, begun = ran().last('end', 1).state, ran().last('begin', 2).state
  want = features(trained, ran().method, ran().frozen, 1, some)
  for state, t in ((ended, 1), (begun, 2)):
    got = features(state, ran().method, ran().frozen, t, some)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_kept_direction_has_norm_1_and_the_magnitude_that_it_was_learnt_with():
  trained = [s for s in ran().stages if (s.name, s.task) == ('train', 1)][-1].state
  ended = ran().last('end', 1).state
  a, b = (np.asarray(leaf, np.float64) for leaf in trained.params['delta'][PATH])
  norm = np.linalg.norm(a) * np.linalg.norm(b)
  np.testing.assert_allclose(ended.memory['scale'][PATH][1], 1 / norm, rtol=1e-5)
  want = trained.params['magnitude'][1] * norm
  np.testing.assert_allclose(ended.params['magnitude'][1], want, rtol=1e-5)


def test_later_tasks_train_past_magnitudes_and_no_others():
  trained = [s for s in ran().stages if (s.name, s.task) == ('train', 1)][-1].state
  begun = ran().last('begin', 1).state
  changed = np.asarray(trained.params['magnitude'] != begun.params['magnitude'])
  assert changed[0] and not changed[2]
  np.testing.assert_array_equal(begun.params['magnitude'][1:], 1)


def test_as_published_all_magnitudes_start_again_at_each_task():
  found = ran(handed=False, start=0.8)
  some = batch(TOY.inputs.shape, CLASSES[1], 3).x
  trained = [s for s in found.stages if (s.name, s.task) == ('train', 1)][-1].state
  ended, begun = found.last('end', 1).state, found.last('begin', 2).state
  same = features(trained, found.method, found.frozen, 1, some)
  got = features(ended, found.method, found.frozen, 1, some)
  np.testing.assert_allclose(got, same, atol=1e-5)
  np.testing.assert_array_equal(begun.params['magnitude'], np.float32(0.8))
  for i in range(2):
    a, b = (np.asarray(leaf[i], np.float64) for leaf in begun.memory['bank'][PATH])
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    np.testing.assert_allclose(begun.memory['scale'][PATH][i], 1 / norm, rtol=1e-5)
  jump = features(begun, found.method, found.frozen, 2, some) - same
  assert np.abs(np.asarray(jump)).max() > 1e-3


def test_sites_share_a_magnitude_and_keep_their_proportions():
  method, frozen = sdlora(MODEL, CAPACITY, peft=lora('fc', 2, alpha=2)), frozen_of(MODEL)
  params, memory = method.init(jax.random.key(0), frozen)
  params, where = shaken(params, 3), env(frozen, 0)
  ended, memory = method.end_task(params, memory, where)
  norm = lambda each: np.linalg.norm(each.a) * np.linalg.norm(each.b)
  mean = np.mean([norm(each) for each in params['delta'].values()])
  assert len(params['delta']) == 2
  for scale in memory['scale'].values():
    np.testing.assert_allclose(scale[0], 1 / mean, rtol=1e-5)
  np.testing.assert_allclose(ended['magnitude'][0], params['magnitude'][0] * mean, rtol=1e-5)


def test_ranks_fall_at_their_tasks():
  peft = lora('fc$', rank=4, alpha=4)
  found = run(sdlora(TOY, CAPACITY, peft=peft, ranks=((1, 3), (2, 1))), TOY)
  bank = found.last('end', 2).state.memory['bank'][PATH]
  for t, rank in enumerate((4, 3, 1)):
    assert np.asarray(bank.a[t]).any(0).sum() == np.asarray(bank.b[t]).any(1).sum() == rank
    assert not np.asarray(bank.a[t, :, rank:]).any() and not np.asarray(bank.b[t, rank:]).any()


def test_a_direction_that_was_never_trained_divides_by_no_zero():
  method, frozen = sdlora(TOY, CAPACITY, peft=FC), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params, memory = method.end_task(params, memory, env(frozen, 0))
  assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((params, memory)))


@pytest.mark.parametrize('options', [
  {'start': 0.0}, {'ranks': ((2, 3), (1, 2))}, {'ranks': ((0, 0),)},
])  # fmt: skip
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError):
    sdlora(TOY, CAPACITY, peft=FC, **options)


def test_other_transforms_are_refused():
  with pytest.raises(ValueError, match='SD-LoRA needs a transform whose delta is LoRA factors'):
    sdlora(MODEL, CAPACITY, peft=adaptformer(width=3))
