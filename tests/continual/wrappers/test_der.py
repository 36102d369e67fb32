"""Dark experience replay, against torch."""

import jax
import numpy as np
import pytest

from pecft_jax.continual import der, finetune
from pecft_jax.continual.memory.buffer import sample
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, frozen_of, shaken

INNER = finetune(TOY, CAPACITY, peft=lora('fc$', rank=2))


def made(offers=4, **options):
  """A method whose buffer has seen batches of task 0, and the outputs of the time."""
  method, frozen = der(INNER, size=11, **options), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params, outs = shaken(params, 5), []
  for i in range(offers):
    some = batch(TOY.inputs.shape, CLASSES[0], i)
    _, out = method.loss(params, memory, env(frozen, 0), some, jax.random.key(i))
    _, memory = method.observe(params, memory, env(frozen, 0), some, out, None, jax.random.key(i))
    outs.append((some, out))
  return method, shaken(params, 6), memory, env(frozen, 1), outs


def test_loss_and_gradient_are_those_of_torch():
  torch = pytest.importorskip('torch')
  method, params, memory, where, _ = made(alpha=0.7)
  some, key = batch(TOY.inputs.shape, CLASSES[1], 9), jax.random.key(3)
  value, grads = jax.value_and_grad(lambda p: method.loss(p, memory, where, some, key)[0])(params)
  old, _ = sample(memory['buffer'], 5, jax.random.split(key, 3)[1])

  leaves = [
    torch.tensor(np.asarray(leaf, np.float64), requires_grad=True)
    for leaf in jax.tree.leaves(params)
  ]
  weights = {k: torch.tensor(np.asarray(v)) for k, v in where.frozen['block_0']['fc'].items()}
  a, b, head, bias = leaves

  def logits(x):
    rows = torch.tensor((np.asarray(x) / 255 - 0.5) / 0.25).reshape(len(x), 15)
    return torch.tanh(rows @ (weights['kernel'] + 2 * a @ b) + weights['bias']) @ head + bias

  new = torch.nn.functional.cross_entropy(
    logits(some.x[:4])[:, :5], torch.tensor(some.y[:4]).long()
  )
  dark = torch.nn.functional.mse_loss(logits(old['x']), torch.tensor(np.asarray(old['z'])).double())
  want = new + 0.7 * dark
  want.backward()
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  for found, leaf in zip(jax.tree.leaves(grads), leaves, strict=True):
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_logits_are_kept_with_their_example_and_no_label_is():
  _, _, memory, _, outs = made()
  items = memory['buffer'].items
  assert set(items) == {'x', 'z'}
  known = {x.tobytes(): z for some, out in outs for x, z in zip(some.x, out.logits, strict=True)}
  for x, z in zip(np.asarray(items['x']), items['z'], strict=True):
    close(z, known[x.tobytes()])


def test_a_negative_weight_and_an_empty_buffer_are_refused():
  with pytest.raises(ValueError, match='alpha'):
    der(INNER, alpha=-0.1)
  with pytest.raises(ValueError, match='size of at least 1'):
    der(INNER, size=0)
