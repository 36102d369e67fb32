"""InfLoRA, against float64 and its own promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import inflora
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.inflora import new_directions, with_directions
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, run

FC = lora('fc$', rank=2, alpha=2)
PATH = 'block_0/fc'


@functools.cache
def ran():
  return run(inflora(TOY, CAPACITY, peft=FC, threshold=0.6), TOY)


def inputs(some):
  """What arrives at the toy's site, of the valid rows: [n, 15] float64."""
  x = np.asarray(normalised(TOY.inputs, jnp.asarray(some.x)), np.float64)
  return x.reshape(len(x), -1)[some.valid]


def test_second_moments_are_those_of_what_arrives_at_the_site():
  gathered = [s for s in ran().stages if s.task == 1 and s.name == 'prepare']
  x = np.concatenate([inputs(s.batch) for s in gathered])
  found = gathered[-1].state.memory['moments'][PATH]
  np.testing.assert_allclose(found, x.T @ x, rtol=1e-5, atol=1e-4)


def test_the_down_projection_spans_what_is_new():
  stage = ran().last('design', 1)
  before = ran().before(stage).memory
  old, moments = (np.asarray(before[k][PATH], np.float64) for k in ('old', 'moments'))
  u, _, _ = np.linalg.svd(moments - old @ moments)
  want = u[:, :2]
  down = np.asarray(stage.state.memory['down'][PATH], np.float64)
  # Singular vectors have no sign of their own: their projector does.
  np.testing.assert_allclose(3 * down @ down.T, want @ want.T, atol=2e-4)
  np.testing.assert_allclose(old @ down, 0, atol=1e-4)


def energy_held(projector, moments):
  return 1 - np.square(moments - projector @ moments).sum() / np.square(moments).sum()


def spectrum(values, seed=0):
  """A symmetric matrix with these singular values."""
  q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
  return q, (q * np.array(values)) @ q.T


def grown(old, moments, share, first):
  found = with_directions(jnp.float32(old), jnp.float32(moments), jnp.float32(share), first)
  return np.asarray(found, np.float64)


def test_the_first_task_keeps_directions_below_the_share_and_at_least_one():
  q, moments = spectrum([5.0, 2.0, 1.0, 0.1])  # Energies 25, 4, 1, 0.01 of 30.01.
  none = np.zeros((4, 4))
  for share, kept in ((0.5, 1), (0.9, 1), (0.97, 2), (0.9999, 3)):
    found = grown(none, moments, share, True)
    np.testing.assert_allclose(found, q[:, :kept] @ q[:, :kept].T, atol=1e-4)


def test_later_tasks_add_directions_until_the_share_is_reached():
  q, moments = spectrum([5.0, 2.0, 1.0, 0.1])
  old = q[:, 1:2] @ q[:, 1:2].T  # Holds 4 of 30.01.
  for share, kept in ((0.1, [1]), (0.5, [0, 1]), (0.97, [0, 1, 2]), (1.0, [0, 1, 2, 3])):
    found = grown(old, moments, share, False)
    np.testing.assert_allclose(found, q[:, kept] @ q[:, kept].T, atol=1e-4)
    assert energy_held(found, moments) >= share - 1e-5


def test_directions_stay_orthonormal_over_tasks():
  old = np.asarray(ran().last('end', 2).state.memory['old'][PATH], np.float64)
  np.testing.assert_allclose(old @ old, old, atol=1e-4)
  np.testing.assert_allclose(old, old.T, atol=1e-5)


def test_an_update_leaves_inputs_in_old_directions_as_they_are():
  """What the paper promises: of inputs within P, the new branch gives nothing."""
  stage = [s for s in ran().stages if s.task == 2 and s.name == 'train'][-1]
  memory, params = stage.state.memory, stage.state.params
  rows = np.random.default_rng(0).normal(size=(4, 15)) @ np.asarray(memory['old'][PATH])
  out = rows @ np.asarray(memory['down'][PATH]) @ np.asarray(params['up'][PATH])
  assert np.abs(np.asarray(params['up'][PATH])).max() > 1e-3
  np.testing.assert_allclose(out, 0, atol=1e-4)


def test_the_sum_of_branches_is_in_the_features():
  stage = ran().last('end', 2)
  memory, where = stage.state.memory, env(ran().frozen, 2)
  some = batch(TOY.inputs.shape, CLASSES[2], 3, padding=0)
  out = ran().method.forward(stage.state.params, memory, where, some.x, None)
  w = jax.tree.map(lambda a: np.asarray(a, np.float64), ran().frozen['block_0']['fc'])
  bank = memory['bank'][PATH]
  total = sum(np.asarray(bank.a[t], np.float64) @ np.asarray(bank.b[t]) for t in range(3))
  want = np.tanh(inputs(some) @ (w['kernel'] + total) + w['bias'])
  np.testing.assert_allclose(out.features, want, atol=1e-5)


def test_other_transforms_and_thresholds_are_refused():
  with pytest.raises(ValueError, match='InfLoRA needs a transform whose delta is LoRA factors'):
    inflora(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match=r'threshold in \(0, 1\], got 1.5'):
    inflora(TOY, CAPACITY, peft=FC, threshold=1.5)


def test_the_largest_directions_come_first():
  q, moments = spectrum([3.0, 1.0, 2.0, 0.5])
  found = np.asarray(new_directions(jnp.float32(moments), jnp.zeros((4, 4)), 2), np.float64)
  np.testing.assert_allclose(np.abs(q.T @ found), np.eye(4)[:, [0, 2]] / 3**0.5, atol=1e-5)
