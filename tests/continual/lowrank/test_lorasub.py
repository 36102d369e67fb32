"""LoRA-Sub-DRS, against float64 and loops in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import lorasub
from pecft_jax.continual.core import normalised
from pecft_jax.continual.lowrank.lorasub import leading, triplet_losses
from pecft_jax.peft import adaptformer, lora
from pecft_jax.recipes import adam, sgd
from pecft_jax.schedules import constant
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Update

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, run, shaken

torch = pytest.importorskip('torch')

FC = lora('fc$', rank=2, alpha=6)  # A scale of 3.
PATH = 'block_0/fc'


@functools.cache
def ran(**options):
  return run(lorasub(TOY, CAPACITY, peft=FC, threshold=0.9, **options), TOY)


def inputs(some):
  x = np.asarray(normalised(TOY.inputs, jnp.asarray(some.x)), np.float64)
  return x.reshape(len(x), -1)


def features(state, some):
  """tanh of x (W + past + now) + b, in float64."""
  w = jax.tree.map(lambda a: np.asarray(a, np.float64), ran().frozen['block_0']['fc'])
  a, b = (np.asarray(leaf, np.float64) for leaf in state.params['delta'][PATH])
  past = np.asarray(state.memory['past'][PATH], np.float64)
  return np.tanh(inputs(some) @ (w['kernel'] + past + 3 * a @ b) + w['bias'])


def projector_of(rows, share):
  """From the SVD of all inputs: the fewest directions with a share of their energy."""
  _, values, right = np.linalg.svd(rows)
  energy = np.cumsum(values**2) / np.sum(values**2)
  count = int(np.argmax(energy >= share)) + 1
  return right[:count].T @ right[:count], count


def test_the_space_is_that_of_the_inputs_of_the_new_task():
  assert not [s for s in ran().stages if s.task == 0 and s.name in ('subtract', 'design')]
  rows = np.concatenate([
    inputs(s.batch)[s.batch.valid] for s in ran().stages if (s.name, s.task) == ('subtract', 1)
  ])  # fmt: skip
  want, count = projector_of(rows, 0.9)
  state = ran().last('design', 1).state
  assert 1 < count < 15
  np.testing.assert_allclose(state.memory['projector'][PATH], want, atol=1e-4)
  assert not np.asarray(state.memory['moments'][PATH]).any()


def test_past_loras_are_subtracted_where_the_inputs_are_read():
  """In a transformer, where the input of a site depends on the sites before it."""
  peft = lora('fc', rank=2, alpha=6)
  method = lorasub(MODEL, CAPACITY, peft=peft)
  frozen = MODEL.init(jax.random.key(0))
  params, memory = jax.eval_shape(method.init, jax.random.key(0), frozen)
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (params, memory))
  params, memory = shaken(zeros, 3)
  gather = next(phase for phase in method.phases if phase.name == 'subtract')
  some, where = batch(MODEL.inputs.shape, CLASSES[1], 1), env(frozen, 1)
  found = jax.jit(gather.hook)(params, memory, where, some)['moments']
  less, path = jax.tree.map(lambda a: a, frozen), 'block_0/mlp/fc2'
  assert path in found
  for name, change in memory['past'].items():
    block, part, layer = name.split('/')
    kernel = less[block][part][layer]['kernel'] - change
    less = {**less, block: {**less[block], part: {**less[block][part], layer: {
      **less[block][part][layer], 'kernel': kernel}}}}  # fmt: skip

  def watch(site, args, out):
    return args[0] if (site.kind, site.path) == ('linear', path) else None

  images = normalised(MODEL.inputs, jnp.asarray(some.x[some.valid]))
  seen = np.asarray(MODEL.apply(less, images, watch=watch).taps[f'linear:{path}'], np.float64)
  rows = seen.reshape(-1, seen.shape[-1])
  np.testing.assert_allclose(found[path] - memory['moments'][path], rows.T @ rows, atol=1e-3)


@pytest.mark.parametrize('divided', [False, True])
@pytest.mark.parametrize(
  'recipe', [sgd(0.1, momentum=0.0, schedule=constant), adam(1e-2, schedule=constant)]
)
def test_an_update_of_a_is_projected_after_the_optimizer(recipe, divided):
  method = lorasub(TOY, CAPACITY, peft=FC, threshold=0.9, divided=divided)
  begun, where = ran().last('begin', 1).state, env(ran().frozen, 1)
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  rows = np.random.default_rng(0).normal(size=(20, 4)) @ np.random.default_rng(1).normal(
    size=(4, 15)
  )
  projector = leading(jnp.float32(rows.T @ rows), 0.9, divided)
  want, count = projector_of(rows, 0.9)
  np.testing.assert_allclose(projector, want / np.sqrt(count) if divided else want, atol=1e-4)
  state = init_state(method, recipe, jax.random.key(0), ran().frozen)
  params = shaken(begun.params, 4)
  memory = {**begun.memory, 'projector': {PATH: projector}}
  state = state._replace(params=params, memory=memory, task=where.task)
  plain = method._replace(observe=None)
  after, _ = train_step(method, recipe, state, ran().frozen, some)
  free, _ = train_step(plain, recipe, state, ran().frozen, some)
  change = lambda s, name: np.asarray(
    getattr(s.params['delta'][PATH], name) - getattr(params['delta'][PATH], name), np.float64
  )
  np.testing.assert_allclose(
    change(after, 'a'), np.asarray(projector) @ change(free, 'a'), atol=1e-5
  )
  np.testing.assert_array_equal(change(after, 'b'), change(free, 'b'))
  assert np.abs(change(free, 'a')).max() > 1e-4


def triplets(x, y, valid, means, past, margin):
  """By loops in PyTorch: the loss of each valid example."""
  found = []
  for i in np.flatnonzero(valid):
    same = [j for j in np.flatnonzero(valid) if y[j] == y[i] and j != i]
    others = [j for j in np.flatnonzero(valid) if y[j] != y[i]]
    apart = lambda z, i=i: torch.linalg.norm(x[i] - z)
    positive = max([apart(x[j]) for j in same], default=torch.tensor(1e-6))
    negatives = [apart(x[j]) for j in others] or [positive + margin]
    negatives += [apart(means[c]) for c in np.flatnonzero(past) if c != y[i]]
    found.append(torch.clamp(positive - min(negatives) + margin, min=0))
  return torch.stack(found)


@pytest.mark.parametrize('labels', [[0, 1, 0, 2, 1, 0], [1] * 6])
@pytest.mark.parametrize('past', [[False] * 4, [True, False, False, True]])
def test_triplet_losses_and_gradients(labels, past):
  rng = np.random.default_rng(3)
  norm = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  x, means = norm(rng.normal(size=(6, 5))), norm(rng.normal(size=(4, 5)))
  y, valid = np.array(labels, np.int32), np.array([True] * 5 + [False])
  mine = lambda x: jnp.where(
    valid, triplet_losses(x, y, valid, jnp.float32(means), np.array(past), 0.5), 0
  )
  leaf = torch.tensor(x, requires_grad=True)
  want = triplets(leaf, y, valid, torch.tensor(means), past, 0.5)
  np.testing.assert_allclose(mine(jnp.float32(x))[:5], want.detach(), atol=1e-5)
  if want.sum().requires_grad:
    want.sum().backward()
    grad = jax.grad(lambda x: mine(x).sum())(jnp.float32(x))
    np.testing.assert_allclose(grad, leaf.grad, atol=1e-4)
  # With one class and no past ones, the nearest of another class is as far as the margin asks.
  assert (float(want.detach().max()) > 0.1) == (len(set(labels)) > 1 or any(past))


def test_loss_is_cross_entropy_and_a_share_of_the_triplet_loss():
  state = ran().before(next(s for s in ran().stages if s.task == 1 and s.name == 'train'))
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  where, losses = env(ran().frozen, 1), []
  for strength in (0.0, 2.0):
    method = lorasub(TOY, CAPACITY, peft=FC, strength=strength)
    losses.append(float(method.loss(state.params, state.memory, where, some, None)[0]))
  x = torch.tensor(features(state, some))
  x = x / torch.linalg.norm(x, axis=1, keepdims=True)
  means = torch.tensor(np.asarray(state.memory['means'].sums, np.float64))
  means = means / torch.linalg.norm(means, axis=1, keepdims=True)
  want = triplets(x, some.y, some.valid, means, np.isin(np.arange(7), CLASSES[0]), 1.0).mean()
  np.testing.assert_allclose(losses[1] - losses[0], 2 * want.item(), rtol=1e-4)


def test_the_nearest_class_mean_predicts():
  sums = np.zeros((7, 6))
  for t in range(2):
    for s in ran().stages:
      if (s.name, s.task) == ('consolidate', t):
        found = features(ran().before(s), s.batch)
        for row, label in zip(found[s.batch.valid], s.batch.y[s.batch.valid], strict=True):
          sums[label] += row
  state, some = ran().last('end', 1).state, batch(TOY.inputs.shape, (0, 3), 4)
  x = features(state, some)
  norm = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-6)
  want = norm(x) @ norm(sums).T
  got = ran().method.predict(state.params, state.memory, env(ran().frozen, 1), some.x)
  np.testing.assert_allclose(got[:, :5], want[:, :5], atol=1e-5)


def test_as_published_updates_of_b_are_projected_on_the_side_of_outputs():
  square = lora('attn/q$', rank=2, alpha=2)
  method = lorasub(MODEL, CAPACITY, peft=square, outputs=True)
  frozen = MODEL.init(jax.random.key(0))
  params, memory = method.init(jax.random.key(0), frozen)
  path = 'block_0/attn/q'
  projector = np.diag(np.arange(24) < 5).astype(np.float32)
  memory = {**memory, 'projector': {path: jnp.asarray(projector)}}
  after = shaken(params, 3)
  got, _ = method.observe(after, memory, env(frozen, 1), None, None, Update(None, params), None)
  before, free, found = (p['delta'][path] for p in (params, after, got))
  np.testing.assert_allclose(found.b, before.b + (free.b - before.b) @ projector, atol=1e-6)
  np.testing.assert_allclose(found.a, before.a + projector @ (free.a - before.a), atol=1e-6)


def test_other_transforms_and_thresholds_are_refused():
  with pytest.raises(ValueError, match='LoRA-Sub-DRS needs a transform whose delta is LoRA'):
    lorasub(MODEL, CAPACITY, peft=adaptformer(width=3))
  with pytest.raises(ValueError, match=r'threshold in \(0, 1\], got 0'):
    lorasub(TOY, CAPACITY, peft=FC, threshold=0.0)
