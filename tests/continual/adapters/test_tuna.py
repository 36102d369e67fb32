import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import tuna
from pecft_jax.continual.adapters.tuna import unified
from pecft_jax.peft import adaptformer, lora, take

from ..tiny import CLASSES, MODEL, batch, env, equal, run, shaken

torch = pytest.importorskip('torch')

from ..prompts.reference import (  # noqa: E402
  CAPACITY,
  SMALL,
  cosines,
  grads,
  masked_loss,
  some,
  trained,
  weights,
  wide,
)
from .reference import features  # noqa: E402

PEFT = adaptformer(width=5, scale=2.0)
HOME = np.array([0, 0, 1, 1, 1, 2, 2])


def made(t=2, **options):
  """A method in task t, with adapters of earlier tasks; params, memory, and where it stands."""
  method = tuna(SMALL, CAPACITY, peft=PEFT, **options)
  params, memory = method.init(jax.random.key(0), weights())
  filled = lambda leaf: (jnp.arange(3) < t).reshape(3, *[1] * (leaf.ndim - 1))
  bank = jax.tree.map(lambda leaf: jnp.where(filled(leaf), leaf, 0), shaken(memory['bank'], 6, 0.5))
  head = params['head']
  head = head._replace(kernel=shaken(head.kernel, 4, 0.5))
  params = {'delta': shaken(params['delta'], 5, 0.5), 'head': head}
  return method, params, {**memory, 'bank': bank}, env(weights(), t)


def test_the_loss_is_local_with_the_new_adapter_apart_from_past_ones():
  method, params, memory, where = made(orthogonality=30.0)
  batch = some(2, 4)
  kernel = params['head'].kernel
  run = lambda delta: method.loss({**params, 'delta': delta}, memory, where, batch, None)
  (loss, out), slopes = jax.jit(jax.value_and_grad(run, has_aux=True))(params['delta'])
  ours, bank, apart = trained(params['delta']), wide(memory['bank']), 0.0
  for i in range(2):
    for path, new in ours.items():
      rows, old = new.up.T, bank[path].up[i].T  # [D, r]
      apart = apart + cosines(rows, old).mean().abs() / 3
  logits = 20 * cosines(features(batch.x, ours, scale=2.0), wide(kernel).T)
  wanted = masked_loss(logits, batch, CLASSES[2], 30 * np.exp(-3) * apart)
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  for slope, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(grads(ours)), strict=True):
    np.testing.assert_allclose(slope, want, atol=2e-4, rtol=1e-3)


def merged(adapters):
  """The universal adapter, entry by entry."""
  stack = np.stack(adapters)
  out = np.zeros(stack.shape[1:])
  for at in np.ndindex(out.shape):
    values = stack[:, *at]
    sign = 1 if values.mean() > 0 else -1
    out[at] = sign * max([abs(v) for v in values if v * sign > 0], default=0)
  return torch.tensor(out)


@pytest.mark.parametrize('t', [0, 2])
def test_the_surest_adapter_and_the_universal_one_answer_together(t):
  method, params, memory, where = made(t)
  x = batch(SMALL.inputs.shape, range(7), 3, rows=11).x
  deltas = [*(take(memory['bank'], i) for i in range(t)), params['delta']]
  arrays = [jax.tree.map(lambda a: np.asarray(a, np.float64), each) for each in deltas]
  universal = jax.tree.map(lambda *leaves: merged(leaves), *arrays)
  seen = np.flatnonzero(t >= HOME)

  def shares(delta):
    h = features(x, delta, scale=2.0)
    return (20 * cosines(h, wide(params['head'].kernel).T))[:, seen].softmax(1)

  all_of = torch.stack([shares(wide(delta)) for delta in deltas])
  surest = (all_of * (all_of + 1e-10).log()).sum(-1).argmax(0)
  want = shares(universal) + all_of[surest, torch.arange(11)]
  found = jax.jit(method.predict)(params, memory, where, x)
  np.testing.assert_allclose(found[:, seen], want, atol=1e-4)
  assert t == 0 or len(set(surest.tolist())) > 1


def test_slots_that_are_empty_have_no_part_in_the_universal_adapter():
  bank = {'w': jnp.array([[2.0, -1.0], [0.0, 0.0]])}
  assert unified(bank, jnp.array([True, False]))['w'].tolist() == [2, -1]


def test_a_task_starts_from_the_adapter_of_the_last():
  ran = run(tuna(MODEL, CAPACITY, peft=adaptformer(width=2), epochs=1, samples=6), MODEL)
  for t in (1, 2):
    before = ran.last('end', t - 1).state
    equal(ran.last('begin', t).state.params['delta'], before.params['delta'])
    equal(take(before.memory['bank'], t - 1), before.params['delta'])
  assert [stage.task for stage in ran.stages if stage.name == 'align'] == [1, 1, 2, 2]


def test_transforms_other_than_adapters_are_refused():
  with pytest.raises(ValueError, match='TUNA needs a transform whose delta is a bottleneck'):
    tuna(SMALL, CAPACITY, peft=lora('q$', rank=2))
