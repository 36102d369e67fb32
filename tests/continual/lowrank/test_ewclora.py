"""EWC-LoRA, against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ewclora
from pecft_jax.continual.core import normalised
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, frozen_of, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


def tensor(a):
  return torch.tensor(np.asarray(a, np.float64))


def inputs(x):
  x = np.asarray(normalised(TOY.inputs, jnp.asarray(x)), np.float64)
  return tensor(x.reshape(len(x), -1))


def own_losses(change, params, where, some, t):
  """Cross-entropy of each valid example among the classes of task t, of W + change."""
  weights = where.frozen['block_0']['fc']
  features = torch.tanh(
    inputs(some.x) @ (tensor(weights['kernel']) + change) + tensor(weights['bias'])
  )
  logits = features @ tensor(params['head'].kernel) + tensor(params['head'].bias)
  own = torch.full((7,), -torch.inf, dtype=torch.float64)
  own[list(CLASSES[t])] = 0
  y = torch.tensor(some.y.astype(np.int64))
  losses = torch.nn.functional.cross_entropy(logits + own, y, reduction='none')
  return losses[torch.tensor(some.valid)]


def fisher_of(change, params, where, batches, t, per_example):
  """The Fisher information of the matrix, example by example or batch by batch."""
  total, count = torch.zeros_like(change), 0
  for some in batches:
    change = change.detach().requires_grad_()
    losses = own_losses(change, params, where, some, t)
    count += len(losses)
    for loss in losses if per_example else [losses.mean()]:
      (grad,) = torch.autograd.grad(loss, change, retain_graph=True)
      total += grad**2 * (1 if per_example else len(losses))
  return total / count


@functools.cache
def two_tasks(**options):
  """State in the third task, with the Fisher information and changes of two in float64."""
  method, frozen = ewclora(TOY, CAPACITY, peft=FC, **options), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  consolidate = jax.jit(method.consolidate)
  past, fisher, factors = torch.zeros(15, 6), torch.zeros(15, 6), []
  for t in range(2):
    where = env(frozen, t)
    params, memory = method.begin_task(params, memory, where, jax.random.key(t))
    params = shaken(params, 5 + t)
    batches = [batch(TOY.inputs.shape, CLASSES[t], 10 * t + i, padding=i) for i in range(2)]
    for some in batches:
      memory = consolidate(params, memory, where, some)
    a, b = (tensor(leaf) for leaf in params['delta'][PATH])
    factors.append((a, b))
    change = past + 3 * a @ b
    more = fisher_of(change, params, where, batches, t, options.get('per_example', True))
    fisher = options.get('decay', 1.0) * fisher + more
    if options.get('by_factors'):
      past = 3 * sum(a for a, _ in factors) @ sum(b for _, b in factors)
    else:
      past = change
    params, memory = method.end_task(params, memory, where)
  params, memory = method.begin_task(params, memory, env(frozen, 2), jax.random.key(9))
  return method, shaken(params, 8), memory, env(frozen, 2), past, fisher


FORMS = [{}, {'per_example': False}, {'decay': 0.5}]


@pytest.mark.parametrize('options', FORMS, ids=str)
def test_fisher_information_is_that_of_the_matrix(options):
  _, _, memory, _, _, fisher = two_tasks(**options)
  np.testing.assert_allclose(memory['fisher'][PATH], fisher, rtol=1e-4, atol=1e-8)
  assert not np.asarray(memory['squares'][PATH]).any() and memory['count'] == 0


@pytest.mark.parametrize('options', [{}, {'by_factors': True}], ids=str)
def test_loss_and_gradients_are_those_of_the_equation(options):
  method, params, memory, where, past, fisher = two_tasks(strength=30.0, **options)
  some = batch(TOY.inputs.shape, CLASSES[2], 3)
  found = lambda p: method.loss(p, memory, where, some, None)[0]
  loss, grads = jax.value_and_grad(found)(params)
  a, b = (tensor(leaf).requires_grad_() for leaf in params['delta'][PATH])
  product = 3 * a @ b
  want = own_losses(past + product, params, where, some, 2).mean()
  penalty = 15 * (fisher * product**2).sum()
  assert penalty > 0.01
  (want + penalty).backward()
  np.testing.assert_allclose(loss, (want + penalty).item(), rtol=1e-5)
  np.testing.assert_allclose(grads['delta'][PATH].a, a.grad, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(grads['delta'][PATH].b, b.grad, rtol=1e-4, atol=1e-6)


def test_past_products_are_merged_into_the_weights():
  _, _, memory, _, past, _ = two_tasks()
  np.testing.assert_allclose(memory['past'][PATH], past, rtol=1e-4, atol=1e-6)


def test_sums_of_factors_have_products_across_tasks():
  *_, of_products, _ = two_tasks()
  *_, of_factors, _ = two_tasks(by_factors=True)
  assert (of_products - of_factors).abs().max() > 0.01


def test_squares_of_batches_are_smaller_by_about_their_size():
  by_example, by_batch = two_tasks()[-1], two_tasks(per_example=False)[-1]
  assert 1 < by_example.sum() / by_batch.sum() < 5  # Batches of 4 and 5.


@pytest.mark.parametrize('options', [{'strength': -1.0}, {'decay': 1.5}])
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError):
    ewclora(TOY, CAPACITY, peft=FC, **options)


def test_other_transforms_are_refused():
  with pytest.raises(ValueError, match='EWC-LoRA needs a transform whose delta is LoRA factors'):
    ewclora(MODEL, CAPACITY, peft=adaptformer(width=3))
