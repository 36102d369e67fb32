"""SplitLoRA, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import splitlora
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.splitlora import drawn_within, minor_space
from pecft_jax.peft import adaptformer, lora

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, run

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


@functools.cache
def ran():
  return run(splitlora(TOY, CAPACITY, peft=FC, balance=2.0, temperature=4.0), TOY)


def inputs(some):
  x = np.asarray(normalised(TOY.inputs, jnp.asarray(some.x)), np.float64)
  return x.reshape(len(x), -1)


def split(moments, tasks, balance):
  """The minor directions, by trying every number of them: [d, k]."""
  left, values, _ = np.linalg.svd(moments)
  size = len(values)
  cost = lambda k: tasks * values[size - k :].sum() / values.sum() - balance * k / size
  k = min(range(size), key=cost)
  return left[:, size - k :]


@pytest.mark.parametrize(('tasks', 'balance'), [(1, 0.5), (1, 2.0), (5, 2.0), (3, 0.0), (1, 50.0)])
def test_minor_directions_balance_what_they_hold_with_their_number(tasks, balance):
  rng = np.random.default_rng(2)
  rows = rng.normal(size=(30, 7)) * 2.0 ** -np.arange(7) @ np.linalg.qr(rng.normal(size=(7, 7)))[0]
  moments = rows.T @ rows
  want = split(moments, tasks, balance)
  found = np.asarray(minor_space(jnp.float32(moments), tasks, balance), np.float64)
  np.testing.assert_allclose(found, want @ want.T, atol=1e-3)
  if balance == 50.0:
    assert want.shape[1] == 6  # One direction is never minor.


def test_moments_are_those_of_all_tasks_so_far():
  for t in range(3):
    rows = np.concatenate([
      inputs(s.batch)[s.batch.valid]
      for s in ran().stages if s.name == 'consolidate' and s.task <= t
    ])  # fmt: skip
    memory = ran().last('end', t).state.memory
    np.testing.assert_allclose(memory['moments'][PATH], rows.T @ rows, rtol=1e-4, atol=1e-3)
    want = split(rows.T @ rows, t + 1, 2.0)
    found = np.asarray(memory['minor'][PATH], np.float64)
    np.testing.assert_allclose(found, want @ want.T, atol=2e-3)


@pytest.mark.parametrize('t', [1, 2])
def test_a_new_down_projection_lies_among_minor_directions_and_shrinks(t):
  begun = ran().last('begin', t).state
  down = np.asarray(begun.memory['down'][PATH], np.float64)
  minor = np.asarray(begun.memory['minor'][PATH], np.float64)
  assert 2 <= round(np.trace(minor)) < 15
  np.testing.assert_allclose(minor @ down, down, atol=1e-6)
  # A fresh A is uniform in +-1 / sqrt(15).
  assert 0.6 < np.linalg.norm(down) * (t + 1) / np.sqrt(2 / 3) < 1.4


def test_down_projections_are_gaussian_with_the_norm_that_is_asked_for():
  basis = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))[0] * (np.arange(9) < 4)
  fresh = jnp.full((9, 3), 0.5)
  projector = basis @ basis.T
  found = drawn_within(jax.random.key(1), jnp.float32(projector), fresh, jnp.float32(4))
  drawn = projector @ np.asarray(jax.random.normal(jax.random.key(1), (9, 3)), np.float64)
  want = drawn / np.linalg.norm(drawn) * np.linalg.norm(fresh) / 4
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_loss_and_gradients_are_those_of_the_equation():
  state = [s for s in ran().stages if (s.name, s.task) == ('train', 2)][-1].state
  some, where = batch(TOY.inputs.shape, CLASSES[2], 3), env(ran().frozen, 2)
  found = lambda p: ran().method.loss(p, state.memory, where, some, None)[0]
  loss, grads = jax.value_and_grad(found)(state.params)
  tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
  up = tensor(state.params['up'][PATH]).requires_grad_()
  weights = jax.tree.map(tensor, ran().frozen['block_0']['fc'])
  kernel = weights['kernel'] + 3 * tensor(state.memory['down'][PATH]) @ up
  for t in range(2):
    down = tensor(ran().last('begin', t).state.memory['down'][PATH])
    end = [s for s in ran().stages if (s.name, s.task) == ('train', t)][-1].state
    kernel = kernel + 3 * down @ tensor(end.params['up'][PATH])
  features = torch.tanh(torch.tensor(inputs(some)) @ kernel + weights['bias'])
  head = state.params['head']
  own = torch.full((7,), -torch.inf, dtype=torch.float64)
  own[list(CLASSES[2])] = 0
  logits = (features @ tensor(head.kernel) + tensor(head.bias)) / 4 + own
  valid, y = torch.tensor(some.valid), torch.tensor(some.y.astype(np.int64))
  want = torch.nn.functional.cross_entropy(logits[valid], y[valid])
  want.backward()
  np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
  np.testing.assert_allclose(grads['up'][PATH], up.grad, rtol=1e-4, atol=1e-6)


def test_an_update_hardly_moves_what_past_inputs_give():
  """Within the minor directions past inputs have the share of their energy that was allowed."""
  memory = ran().last('begin', 2).state.memory
  minor = np.asarray(memory['minor'][PATH], np.float64)
  moments = np.asarray(memory['moments'][PATH], np.float64)
  held = np.trace(minor @ moments) / np.trace(moments)
  assert held < np.trace(minor) / 15 / 2


def test_impossible_options_are_refused():
  with pytest.raises(ValueError, match='SplitLoRA needs a transform whose delta is LoRA factors'):
    splitlora(MODEL, CAPACITY, peft=adaptformer(width=3))
  for options in ({'balance': -1.0}, {'temperature': 0.0}):
    with pytest.raises(ValueError):
      splitlora(TOY, CAPACITY, peft=FC, **options)
