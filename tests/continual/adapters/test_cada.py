import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import cada
from pecft_jax.heads import cosine
from pecft_jax.peft import adaptformer, lora

from ..tiny import CLASSES, MODEL, env, equal, run, shaken

torch = pytest.importorskip('torch')

from ..prompts.reference import (  # noqa: E402
  CAPACITY,
  SMALL,
  grads,
  masked_loss,
  some,
  trained,
  weights,
  wide,
)
from .reference import features  # noqa: E402

PLAIN = dict(peft=adaptformer(width=5))


def made(t=2, **options):
  """A method in task t, with slices of earlier tasks; params, memory, and where it stands."""
  method = cada(SMALL, CAPACITY, **{**PLAIN, **options})
  params, memory = method.init(jax.random.key(0), weights())
  past = jnp.arange(3) < t
  shape = lambda leaf: past.reshape(3, *[1] * (leaf.ndim - 1))
  bank = jax.tree.map(lambda leaf: jnp.where(shape(leaf), leaf, 0), shaken(memory['bank'], 6, 0.5))
  return method, shaken(params, 5, 0.5), {'bank': bank}, env(weights(), t)


@pytest.mark.parametrize('side', ['down', 'up', 'both'])
def test_slices_add_up_and_the_new_one_is_kept_apart_from_frozen_ones(side):
  method, params, memory, where = made(side=side, orthogonality=0.3)
  batch = some(2, 4)
  (loss, out), slopes = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(
    params, memory, where, batch, None
  )
  ours, bank, penalty, adapters = trained(params), wide(memory['bank']), 0.0, {}
  for path, new in ours['delta'].items():
    old = bank[path]
    parts = [*zip(*(leaf[:2] for leaf in old), strict=True), tuple(new)]
    adapters[path] = tuple(
      torch.cat([part[i] for part in parts], axis) if axis is not None else sum(p[i] for p in parts)
      for i, axis in enumerate((1, 0, 0, None))
    )
    for i in range(2):
      dots = {'down': old.down[i].T @ new.down, 'up': old.up[i] @ new.up.T}
      for name in dots if side == 'both' else (side,):
        penalty = penalty + 0.3 * (dots[name] ** 2).sum()
  for path, (scale, shift) in ours['scaling'].items():  # Of what the adapter reads.
    down, bias, *rest = adapters[path]
    adapters[path] = (scale[:, None] * down, bias + shift @ down, *rest)
  logits = features(batch.x, adapters) @ ours['head'].kernel + ours['head'].bias
  wanted = masked_loss(logits, batch, CLASSES[2], penalty)
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  for slope, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(grads(ours)), strict=True):
    np.testing.assert_allclose(slope, want, atol=2e-4, rtol=1e-4)


def test_a_task_keeps_its_slice_and_the_next_starts_a_new_one():
  method, params, memory, where = made(1)
  _, kept = method.end_task(params, memory, where)
  equal(jax.tree.map(lambda leaf: leaf[1], kept['bank']), params['delta'])
  equal(jax.tree.map(lambda leaf: leaf[0], kept['bank']),
        jax.tree.map(lambda leaf: leaf[0], memory['bank']))  # fmt: skip
  new, after = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal(after, kept)
  assert not any(np.asarray(each.up).any() for each in new['delta'].values())
  equal(new['head'], params['head'])


def test_scales_and_shifts_are_trained_on_the_first_task_alone():
  ran = run(cada(MODEL, CAPACITY, peft=adaptformer(width=2), head=cosine()), MODEL)
  scaling = lambda name, t: ran.last(name, t).state.params['scaling']
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ran.start.params['scaling'],
                       scaling('end', 0))  # fmt: skip
  assert min(jax.tree.leaves(moved)) > 0
  equal(scaling('end', 2), scaling('end', 0))


def test_odd_choices_are_refused():
  with pytest.raises(ValueError, match='needs a transform whose delta is a bottleneck'):
    cada(SMALL, CAPACITY, peft=lora('q$', rank=2))
  with pytest.raises(ValueError, match=r"expected one of .'down', 'up', 'both'., got 'left'"):
    cada(SMALL, CAPACITY, side='left', **PLAIN)
