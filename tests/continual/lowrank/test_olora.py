import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.stacks import stack_blocks
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import olora
from pecft_jax.continual.core import normalised
from pecft_jax.peft import at_layers, chain, dora, full, linear_probe, lora, rslora, take
from pecft_jax.typing import Capacity

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, close, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)


def made(peft=FC, backbone=TOY, filled=2, **options):
  """A method in task `filled`, with as many random slots before it."""
  method = olora(backbone, CAPACITY, peft=peft, **options)
  frozen = frozen_of(backbone)
  params, memory = method.init(jax.random.key(0), frozen)
  for t in range(filled):
    params, memory = method.begin_task(params, memory, env(frozen, t), jax.random.key(t))
    params, memory = method.end_task(shaken(params, 5 + t), memory, env(frozen, t))
  params, memory = method.begin_task(params, memory, env(frozen, filled), jax.random.key(9))
  return method, shaken(params, 8), memory, env(frozen, filled)


@pytest.mark.parametrize('peft', [lora('fc$', 2, alpha=3.0), rslora('fc$', 2, alpha=3.0)])
def test_the_model_is_the_sum_of_all_loras(peft):
  method, params, memory, where = made(peft)
  x = batch(TOY.inputs.shape, range(7), 0).x
  merged = where.frozen
  for delta in (take(memory['bank'], 0), take(memory['bank'], 1), params['delta']):
    merged = peft.merge(delta, merged)
  want = TOY.apply(merged, normalised(TOY.inputs, x)).pooled
  out = method.forward(params, memory, where, x, None)
  close(out.features, want, atol=1e-5)


def test_the_same_in_a_transformer_with_fused_and_stacked_weights():
  sizes = dict(image_size=16, channels=1, patch=8, width=24, depth=2, heads=2, mean=(0.5,))
  peft = at_layers(lora(r'attn/(q|v|out)$', 3), [1])
  loop, scan = (vit(**sizes, std=(0.5,), scan=scan) for scan in (False, True))
  frozen = frozen_of(loop)
  stacked = stack_blocks(frozen, 2)
  method, again = (olora(each, CAPACITY, peft=peft) for each in (loop, scan))
  state = jax.eval_shape(method.init, jax.random.key(0), frozen)
  params, memory = shaken(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state), 3)
  x = batch(loop.inputs.shape, range(7), 0).x
  merged = frozen
  for delta in (*(take(memory['bank'], t) for t in range(3)), params['delta']):
    merged = peft.merge(delta, merged)
  want = jax.jit(loop.apply)(merged, normalised(loop.inputs, x)).pooled
  for each, weights in ((method, frozen), (again, stacked)):
    out = jax.jit(each.forward)(params, memory, env(weights, 2), x, None)
    close(out.features, want, atol=1e-4)


@pytest.mark.parametrize('squared', [False, True])
def test_penalty_is_the_overlap_of_the_down_projections(squared):
  method, params, memory, where = made(orthogonality=0.3, squared=squared)
  x = batch(TOY.inputs.shape, range(7), 0).x
  new = np.asarray(params['delta']['block_0/fc'].a, np.float64)
  total = 0.0
  for i in range(2):
    old = np.asarray(memory['bank']['block_0/fc'].a[i], np.float64)
    overlap = old.T @ new
    total += (overlap**2).sum() if squared else np.abs(overlap).sum()
  out = method.forward(params, memory, where, x, None)
  np.testing.assert_allclose(out.aux_loss, np.full(5, 0.3 * total), rtol=1e-5)


def test_without_a_penalty_it_is_a_new_lora_per_task_and_their_sum():
  method, params, memory, where = made(orthogonality=0.0)
  x = batch(TOY.inputs.shape, range(7), 0).x
  out = method.forward(params, memory, where, x, None)
  assert not np.asarray(out.aux_loss).any()
  kernel = np.asarray(where.frozen['block_0']['fc']['kernel'], np.float64)
  bank, new = memory['bank']['block_0/fc'], params['delta']['block_0/fc']
  for a, b in ((bank.a[0], bank.b[0]), (bank.a[1], bank.b[1]), new):
    kernel = kernel + 2 * np.asarray(a, np.float64) @ np.asarray(b, np.float64)
  rows = np.asarray(normalised(TOY.inputs, jnp.asarray(x)), np.float64).reshape(len(x), -1)
  want = np.tanh(rows @ kernel + np.asarray(where.frozen['block_0']['fc']['bias']))
  close(out.features, np.float32(want))


def test_decay_adds_the_norms_of_the_new_factors():
  with_decay, params, memory, where = made(decay=0.2)
  without = made()[0]
  x = batch(TOY.inputs.shape, range(7), 0).x
  aux = lambda method: method.forward(params, memory, where, x, None).aux_loss[0]
  norms = sum(np.linalg.norm(leaf) for leaf in params['delta']['block_0/fc'])
  np.testing.assert_allclose(aux(with_decay) - aux(without), 0.2 * norms, rtol=1e-4)


def test_the_first_task_is_not_penalised_and_its_gradient_is_finite():
  method = olora(TOY, CAPACITY, peft=FC, decay=0.1)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  some = batch(TOY.inputs.shape, CLASSES[0], 0)
  loss = lambda params: method.loss(params, memory, env(frozen, 0), some, None)[0]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss)(params)))
  plain = olora(TOY, CAPACITY, peft=FC).forward(params, memory, env(frozen, 0), some.x, None)
  assert not np.asarray(plain.aux_loss).any()


def test_a_task_acts_once_before_and_after_it_moves_to_its_slot():
  method, params, memory, where = made()
  x = batch(TOY.inputs.shape, range(7), 0).x
  before = method.predict(params, memory, where, x)
  params, memory = method.end_task(params, memory, where)
  close(method.predict(params, memory, where, x), before, atol=1e-5)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params['delta']))


def test_a_new_task_starts_as_the_old_model():
  method, params, memory, where = made()
  x = batch(TOY.inputs.shape, range(7), 0).x
  params, memory = method.end_task(params, memory, where)
  before = method.predict(params, memory, where, x)
  fresh, same = method.begin_task(params, memory, where, jax.random.key(4))
  close(method.predict(fresh, same, where, x), before, atol=1e-6)
  assert np.asarray(fresh['delta']['block_0/fc'].a).any()
  equal(same, memory)


def test_past_factors_get_no_gradient():
  method, params, memory, where = made()
  some = batch(TOY.inputs.shape, CLASSES[2], 0)
  grads = jax.grad(lambda memory: method.loss(params, memory, where, some, None)[0])(
    jax.tree.map(jnp.asarray, memory)
  )
  # The penalty alone depends on them, through the down-projections.
  assert not np.asarray(grads['bank']['block_0/fc'].b).any()


@pytest.mark.parametrize(
  ('peft', 'got'),
  [
    (full(), 'ShapeDtypeStruct'),
    (linear_probe(), 'nothing'),
    (dora('fc$', 2), 'DoraDelta'),
    (chain(a=lora('fc$', 2)), 'dict'),
  ],
)
def test_other_transforms_are_refused(peft, got):
  with pytest.raises(ValueError, match=f'LoRA factors at every site.*{got}'):
    olora(TOY, CAPACITY, peft=peft)


def test_cost_does_not_grow_with_the_rank_of_the_bank_on_activations():
  """Past products go into the weights: a longer bank leaves the batch's matmuls alone."""
  frozen = jax.eval_shape(MODEL.init, jax.random.key(0))
  x = batch(MODEL.inputs.shape, (0,), 0, rows=64).x

  def flops(tasks, rows):
    method = olora(MODEL, Capacity(tasks, 7), peft=lora(rank=3))
    params, memory = jax.eval_shape(method.init, jax.random.key(0), frozen)
    run = jax.jit(lambda p, m, f, x: method.forward(p, m, env(f, 0), x, None).logits)
    return run.lower(params, memory, frozen, x[:rows]).cost_analysis()['flops']

  each = lambda tasks: flops(tasks, 64) - flops(tasks, 32)
  np.testing.assert_allclose(each(20), each(2), rtol=1e-3)
