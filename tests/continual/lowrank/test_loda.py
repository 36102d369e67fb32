"""LoDA, against its equations in NumPy at float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import loda
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.loda import (
  first_half,
  kept_share,
  leading_directions,
  new_against_old,
)
from pecft_jax.heads import linear
from pecft_jax.peft import adaptformer, lora
from pecft_jax.problems import regression
from pecft_jax.typing import Capacity

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, run, shaken

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'
WAYS = {'general': 0.5, 'isolated': 2.0}


def made(**options):
  return loda(TOY, CAPACITY, peft=FC, head=linear(), **WAYS, **options)


@functools.cache
def ran(twice=False):
  return run(made(twice=twice, balance=2.0), TOY)


def f64(a):
  return np.asarray(a, np.float64)


def inputs(some):
  x = f64(normalised(TOY.inputs, jnp.asarray(some.x)))
  return x.reshape(len(x), -1)


def mean_moments(t, name):
  """The mean of x x^T over the valid rows of a pass of task t."""
  passes = [s.batch for s in ran().stages if s.name == name and s.task == t]
  rows = np.concatenate([inputs(each)[each.valid] for each in passes])
  return rows.T @ rows / len(rows)


def grown(seed, size=9, rows=40):
  x = np.random.default_rng(seed).normal(size=(rows, size)) * np.linspace(0.3, 2, size)
  return x.T @ x / rows


def test_shared_directions_are_leading_eigenvectors():
  moments = grown(0) + grown(1)
  vectors = np.linalg.svd(moments)[0][:, :3]
  found = f64(leading_directions(jnp.float32(moments), 3))
  np.testing.assert_allclose(np.abs(found), np.abs(vectors) / np.sqrt(3), atol=1e-4)


def test_isolated_directions_have_most_of_the_new_against_the_old():
  new, old = grown(0), grown(1)
  root = np.linalg.inv(np.linalg.cholesky(old))
  top = root.T @ np.linalg.svd(root @ new @ root.T)[0][:, :3]
  basis = np.linalg.qr(top)[0]
  found = f64(new_against_old(jnp.float32(new), jnp.float32(old), 3))
  np.testing.assert_allclose(np.abs(found), np.abs(basis) / np.sqrt(3), atol=2e-3)
  # The first one has the highest ratio that there is.
  ratio = (found[:, 0] @ new @ found[:, 0]) / (found[:, 0] @ old @ found[:, 0])
  assert ratio == pytest.approx(np.linalg.eigvals(np.linalg.solve(old, new)).real.max(), rel=1e-3)


def test_directions_that_old_tasks_read_keep_less_of_the_update():
  new, old, a = grown(0), grown(1), np.random.default_rng(2).normal(size=(9, 4))
  want = [1 - (c @ old @ c) / (c @ old @ c + 3 * (c @ new @ c)) for c in a.T]
  np.testing.assert_allclose(kept_share(a, old, new, 3.0), want, rtol=1e-5)
  np.testing.assert_allclose(kept_share(a, 0 * old, new, 3.0), 1.0)


@pytest.mark.parametrize(('labels', 'count'), [([3, 3], 1), ([0, 2, 2], 1), ([0, 1, 2, 5, 6], 2)])
def test_a_half_holds_whole_classes_of_those_in_the_batch(labels, count):
  y, valid = jnp.asarray([*labels, 4]), jnp.asarray([True] * len(labels) + [False])
  drawn = set()
  for i in range(12):
    first = np.asarray(first_half(jax.random.key(i), y, valid, 7))
    chosen = {c for c, inside in zip(labels, first, strict=False) if inside}
    assert len(chosen) == count and not first[-1]
    np.testing.assert_array_equal(first[:-1], [c in chosen for c in labels])
    drawn.add(tuple(sorted(chosen)))
  assert len(drawn) > 1 or len(set(labels)) == 1


@pytest.mark.parametrize('t', range(3))
def test_down_projections_come_from_the_inputs_of_the_task_and_of_past_ones(t):
  found = mean_moments(t, 'prepare')
  old = sum((mean_moments(i, 'merged inputs') for i in range(t)), np.zeros((15, 15)))
  memory = ran().last('design', t).state.memory
  np.testing.assert_allclose(memory['inputs'][PATH], old, rtol=1e-4, atol=1e-5)
  shared, own = f64(memory['shared'][PATH]), f64(memory['own'][PATH])
  top = np.linalg.svd(found + old)[0][:, :2]
  np.testing.assert_allclose(3 * shared @ shared.T, top @ top.T, atol=2e-3)
  if t == 0:
    assert not own.any()
  else:
    np.testing.assert_allclose(3 * own.T @ own, np.eye(2), atol=1e-4)


def state_of(t):
  """The state in a task with its directions, where nothing that is trained is zero."""
  state = ran().last('design', t).state
  return shaken(state.params, 3, 0.5), state.memory, env(ran().frozen, t)


def pushed(params, memory, where, some, rows, own):
  """The gradients of the mean loss of some rows, by entry: of the factors, in float64."""
  t, x = int(where.task.index), inputs(some)
  shared = f64(memory['shared'][PATH]) + (f64(params['factors']['turn'][PATH]) if t == 0 else 0)
  isolated = f64(memory['own'][PATH])
  general, up = (f64(params['factors'][name][PATH]) for name in ('general', 'isolated'))
  site = where.frozen['block_0']['fc']
  change = 3 * (0.5 * shared @ general + 2 * isolated @ up) + f64(memory['past'][PATH])
  y = np.tanh(x @ (f64(site['kernel']) + change) + f64(site['bias']))
  kernel = f64(params['head'].kernel)
  logits = y @ kernel + f64(params['head'].bias)
  share = np.zeros_like(logits)
  share[:, own] = np.exp(logits[:, own]) / np.exp(logits[:, own]).sum(1, keepdims=True)
  right = np.eye(7)[some.y]
  loss = -np.log((share * right).sum(1)[rows]).mean()
  back = (share - right) * rows[:, None] / rows.sum()
  g = x.T @ ((back @ kernel.T) * (1 - y**2))
  turn = 1.5 * g @ general.T if t == 0 else 0 * shared
  return loss, {'general': 1.5 * shared.T @ g, 'isolated': 6 * isolated.T @ g, 'turn': turn}


@pytest.mark.parametrize('t', [0, 1])
def test_without_alignment_the_loss_is_the_cross_entropy_of_the_batch(t):
  params, memory, where = state_of(t)
  some = batch(TOY.inputs.shape, CLASSES[t], 3)
  of = lambda p: made(radius=0.0).loss(p, memory, where, some, jax.random.key(0))[0]
  loss, grads = jax.value_and_grad(of)(params)
  want, pushes = pushed(params, memory, where, some, some.valid, list(CLASSES[t]))
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  for name, push in pushes.items():
    np.testing.assert_allclose(
      grads['factors'][name][PATH], push, rtol=1e-3, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize('t', [0, 1])
def test_each_half_is_learned_where_the_gradient_of_the_other_leads(t):
  params, memory, where = state_of(t)
  some, key, own = batch(TOY.inputs.shape, CLASSES[t], 3), jax.random.key(4), list(CLASSES[t])
  of = lambda p: made(radius=0.7).loss(p, memory, where, some, key)
  (loss, out), grads = jax.value_and_grad(of, has_aux=True)(params)
  k_half, k_far = jax.random.split(key)
  first = np.asarray(first_half(k_half, some.y, some.valid, 7))
  halves, far = (first, some.valid & ~first), 0.7 * float(jax.random.uniform(k_far))
  assert all(rows.any() for rows in halves) and far > 0.05
  total, sums = 0, {name: 0 for name in ('general', 'isolated', 'turn')}
  for rows, other in (halves, halves[::-1]):
    _, down = pushed(params, memory, where, some, other, own)
    moved = {
      name: {PATH: f64(params['factors'][name][PATH]) - far * g / (np.linalg.norm(g) + 1e-12)}
      for name, g in down.items()
    }
    part, pushes = pushed({**params, 'factors': moved}, memory, where, some, rows, own)
    total += part
    sums = {name: sums[name] + pushes[name] for name in sums}
  np.testing.assert_allclose(loss, total, rtol=1e-4)
  for name, push in sums.items():
    np.testing.assert_allclose(
      grads['factors'][name][PATH], push, rtol=2e-3, atol=2e-5, err_msg=name
    )
  assert out.logits.shape == (5, 7)


@pytest.mark.parametrize('t', range(3))
def test_a_finished_task_is_merged_with_less_of_it_where_old_tasks_read(t):
  before, after = ran().before(ran().last('merge', t)), ran().last('merge', t).state
  a = f64(before.memory['shared'][PATH]) + (
    f64(before.params['factors']['turn'][PATH]) if t == 0 else 0
  )
  old, new = f64(before.memory['inputs'][PATH]), mean_moments(t, 'consolidate')
  kept = [1 - (c @ old @ c) / (c @ old @ c + 2 * (c @ new @ c)) for c in a.T]
  assert t == 0 or max(kept) < 0.99
  general = np.array(kept)[:, None] * f64(before.params['factors']['general'][PATH])
  own = f64(before.memory['own'][PATH]) @ f64(before.params['factors']['isolated'][PATH])
  want = f64(before.memory['past'][PATH]) + 3 * (0.5 * a @ general + 2 * own)
  np.testing.assert_allclose(after.memory['past'][PATH], want, rtol=1e-4, atol=1e-6)
  end = ran().last('end', t).state
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(end.params['factors']))
  # The inputs of a site are those of the merged weights; they are the same on the toy.
  np.testing.assert_allclose(
    end.memory['inputs'][PATH] - old, mean_moments(t, 'merged inputs'), rtol=1e-3, atol=1e-4
  )


def test_the_published_code_counts_the_inputs_of_a_task_twice():
  once, twice = (ran(each).last('end', 0).state.memory['inputs'][PATH] for each in (False, True))
  # The toy has one site, which reads the same before and after the merge.
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_only_lora_classes_and_values_in_their_range_are_taken():
  with pytest.raises(ValueError, match='needs a transform whose delta is LoRA factors'):
    loda(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match='needs classes'):
    loda(TOY, Capacity(3, 2, regression(2)), peft=FC)
  for name, value in {'general': -1.0, 'isolated': -1.0, 'radius': -0.1, 'balance': 0.0}.items():
    with pytest.raises(ValueError, match=name):
      loda(TOY, CAPACITY, peft=FC, **{name: value})
