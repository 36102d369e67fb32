import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual import emr
from pecft_jax.continual.core import model
from pecft_jax.continual.merging.emr import emr_parts
from pecft_jax.peft import lora
from pecft_jax.typing import Given

from ..tiny import CAPACITY, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=2)


def numpy_emr(rows):
  """Task vectors [T, N] as they are answered, from the paper's equations in float64."""
  sign = np.where(rows.sum(0) > 0, 1, -1)
  elected = sign * np.max(np.where(rows * sign > 0, np.abs(rows), 0), 0)
  masks = rows * elected > 0
  scales = np.abs(rows).sum(1) / np.abs(masks * elected).sum(1)
  return scales[:, None] * masks * elected


def test_masks_and_scales_are_those_of_the_paper():
  rng = np.random.default_rng(0)
  bank = {'a': rng.normal(size=(4, 2, 3)), 'b': rng.normal(size=(4, 5))}
  elected, masks, scales = emr_parts(jax.tree.map(jnp.float32, bank), jnp.arange(4) < 3)
  flat = lambda tree: np.concatenate([np.reshape(tree[name], (-1,)) for name in 'ab'])
  rows = np.stack([flat({name: bank[name][t] for name in 'ab'}) for t in range(3)])
  for t, want in enumerate(numpy_emr(rows)):
    mine = flat({name: masks[name][t] * elected[name] * scales[t] for name in 'ab'})
    np.testing.assert_allclose(mine, want, rtol=1e-4)


def learnt(method, frozen):
  params, memory = method.init(jax.random.key(0), frozen)
  params = {**params, 'head': shaken(params['head'], 9)}
  base, deltas = params['delta'], []
  for t in range(3):
    params, memory = method.begin_task(params, memory, env(frozen, t), jax.random.key(t))
    params = {**params, 'delta': shaken(params['delta'], t)}
    deltas.append(params['delta'])
    params, memory = method.end_task(params, memory, env(frozen, t))
  return params, memory, base, deltas


def test_each_task_is_answered_by_its_own_mask_and_scale():
  frozen = frozen_of(TOY)
  method = emr(TOY, CAPACITY, peft=FC)
  params, memory, base, deltas = learnt(method, frozen)
  flat = lambda delta: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(delta)])
  start = flat(base).astype(np.float64)
  answered = start + numpy_emr(np.stack([flat(d) for d in deltas]) - start)
  _, unravel = jax.flatten_util.ravel_pytree(base)
  x = batch(TOY.inputs.shape, range(7), 77).x
  net = model(TOY, FC)
  each = np.stack([
    method.head.logits(params['head'], net.features(frozen, unravel(jnp.float32(row)), x))
    for row in answered
  ])  # fmt: skip
  home = np.array([0, 0, 1, 1, 1, 2, 2])
  found = method.predict(params, memory, env(frozen, 2), x)
  np.testing.assert_allclose(found, each[home, :, np.arange(7)].T, atol=1e-4)
  # A task that is given decides which classes come first.
  tasks = np.array([0, 1, 2, 1, 0], np.int32)
  known = method.predict(params, memory, env(frozen, 2), Given(x, task=tasks))
  assert (home[np.argmax(known, 1)] == tasks).all()
  best = [
    each[t, i][home == t].argmax() + np.flatnonzero(home == t)[0] for i, t in enumerate(tasks)
  ]
  assert np.argmax(known, 1).tolist() == best
