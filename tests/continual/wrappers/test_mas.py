"""Memory aware synapses, against torch's gradients of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import ease, finetune, mas
from pecft_jax.peft import lora
from pecft_jax.problems import regression

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, repadded, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC)


def made(inner=INNER, **options):
  method, frozen = mas(inner, **options), frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  return method, shaken(params, 5), memory, frozen


@pytest.mark.parametrize('numbers', [False, True])
def test_importance_is_the_mean_size_of_the_gradient_of_the_squared_norm(numbers):
  """Of the logits of classes seen; of all answers where they are no classes."""
  torch = pytest.importorskip('torch')
  capacity = CAPACITY._replace(problem=regression(7)) if numbers else CAPACITY
  method, params, memory, frozen = made(finetune(TOY, capacity, peft=FC))
  some = batch(TOY.inputs.shape, CLASSES[1], 1, rows=18, padding=3)
  rows = some._replace(y=np.zeros((18, 7), np.float32)) if numbers else some
  memory = jax.jit(method.consolidate)(params, memory, env(frozen, 1), rows)
  old = shaken(memory['importance'], 3)
  _, memory = method.end_task(params, {**memory, 'importance': old}, env(frozen, 1))

  wide = lambda leaf: torch.tensor(np.asarray(leaf, np.float64))
  a, b, head, bias = (wide(leaf).requires_grad_() for leaf in jax.tree.leaves(params))
  weights = frozen['block_0']['fc']
  sums = [0.0] * 4
  for x in some.x[:15]:
    row = torch.tensor((x / 255 - 0.5) / 0.25).reshape(15)
    hidden = torch.tanh(row @ (wide(weights['kernel']) + 2 * a @ b) + wide(weights['bias']))
    answers = (hidden @ head + bias)[: 7 if numbers else 5]
    each = torch.autograd.grad(answers.square().sum(), (a, b, head, bias))
    sums = [s + g.abs().numpy() for s, g in zip(sums, each, strict=True)]
  trio = zip(jax.tree.leaves(memory['importance']), jax.tree.leaves(old), sums, strict=True)
  for found, before, s in trio:
    np.testing.assert_allclose(found - before, s / 15, rtol=1e-3, atol=1e-5)


def test_labels_and_padding_do_not_count():
  method, params, memory, frozen = made()
  some = batch(TOY.inputs.shape, CLASSES[1], 1)
  consolidate = jax.jit(method.consolidate)
  once = consolidate(params, memory, env(frozen, 1), some)
  equal(consolidate(params, memory, env(frozen, 1), repadded(some)), once)
  relabelled = some._replace(y=np.full_like(some.y, 2))
  equal(consolidate(params, memory, env(frozen, 1), relabelled), once)


def test_the_loss_gains_the_weighted_squares():
  method, params, memory, frozen = made(strength=0.7)
  weights = jax.tree.map(jnp.abs, shaken(memory['importance'], 4))
  moved, some, where = shaken(params, 8), batch(TOY.inputs.shape, CLASSES[1], 4), env(frozen, 1)
  memory = {**memory, 'importance': weights, 'anchor': params}
  found, _ = method.loss(moved, memory, where, some, None)
  plain, _ = INNER.loss(moved, {}, where, some, None)
  trio = zip(*map(jax.tree.leaves, (weights, params, moved)), strict=True)
  want = 0.7 * sum((np.asarray(w, np.float64) * np.square(p - a)).sum() for w, a, p in trio)
  np.testing.assert_allclose(found - plain, want, rtol=1e-4)


def test_nothing_to_hold_and_a_negative_strength_are_refused():
  with pytest.raises(ValueError, match='mas has no parameters to hold in ease'):
    made(ease(TOY, CAPACITY, peft=FC))
  with pytest.raises(ValueError, match='strength'):
    mas(INNER, strength=-1.0)
