"""C-LoRA, against PyTorch in float64."""

import jax
import numpy as np
import pytest

from pecft_jax.continual import clora
from pecft_jax.continual.core import normalised
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


def tensor(a):
  return torch.tensor(np.asarray(a, np.float64))


def in_third_task(strength):
  """The method and its state, and the sum of two past products."""
  method, frozen = clora(TOY, CAPACITY, peft=FC, strength=strength), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  past = torch.zeros(15, 6, dtype=torch.float64)
  for t in range(2):
    params, memory = method.begin_task(params, memory, env(frozen, t), jax.random.key(t))
    params = shaken(params, 5 + t)
    a, b = (tensor(leaf) for leaf in params['delta'][PATH])
    past = past + 3 * a @ b
    params, memory = method.end_task(params, memory, env(frozen, t))
  where = env(frozen, 2)
  params, memory = method.begin_task(params, memory, where, jax.random.key(9))
  return method, shaken(params, 8), memory, where, past


def test_past_products_are_summed_and_the_new_one_begins_at_zero():
  method, params, memory, where, past = in_third_task(1.0)
  np.testing.assert_allclose(memory['past'][PATH], past, rtol=1e-5, atol=1e-7)
  fresh, _ = method.begin_task(params, memory, where, jax.random.key(3))
  assert not np.asarray(fresh['delta'][PATH].b).any()


@pytest.mark.parametrize('strength', [0.0, 7.0])
def test_loss_and_gradients_are_those_of_the_equation(strength):
  method, params, memory, where, past = in_third_task(strength)
  some = batch(TOY.inputs.shape, CLASSES[2], 3, padding=1)
  loss, grads = jax.value_and_grad(lambda p: method.loss(p, memory, where, some, None)[0])(params)
  a, b = (tensor(leaf).requires_grad_() for leaf in params['delta'][PATH])
  product = 3 * a @ b
  weights = where.frozen['block_0']['fc']
  x = tensor(normalised(TOY.inputs, jax.numpy.asarray(some.x))).reshape(len(some.x), -1)
  hidden = x @ (tensor(weights['kernel']) + past + product) + tensor(weights['bias'])
  logits = torch.tanh(hidden) @ tensor(params['head'].kernel) + tensor(params['head'].bias)
  own = torch.full((7,), -torch.inf, dtype=torch.float64)
  own[list(CLASSES[2])] = 0
  y = torch.tensor(some.y.astype(np.int64))
  each = torch.nn.functional.cross_entropy(logits + own, y, reduction='none')
  penalty = strength * ((past * product) ** 2).sum()
  assert strength == 0 or penalty > 0.01
  want = each[torch.tensor(some.valid)].mean() + penalty
  want.backward()
  np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].a, a.grad, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(grads['delta'][PATH].b, b.grad, rtol=1e-4, atol=1e-6)


def test_only_lora_and_strengths_that_are_not_negative_are_taken():
  with pytest.raises(ValueError, match='needs a transform whose delta is LoRA factors'):
    clora(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match='strength'):
    clora(TOY, CAPACITY, peft=FC, strength=-1.0)
