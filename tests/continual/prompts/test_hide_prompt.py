import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import hide_prompt

from ..tiny import CLASSES, TOY, batch, close, env, equal, shaken

torch = pytest.importorskip('torch')

from .reference import (  # noqa: E402
  CAPACITY,
  SMALL,
  features,
  grads,
  masked_loss,
  some,
  trained,
  weights,
  wide,
)  # fmt: skip

BLEND, CONTRAST = 0.3, 0.05


def made(t):
  """A method, shaken params and memory, and where it stands."""
  method = hide_prompt(SMALL, CAPACITY, length=2, samples=8, blend=BLEND, contrast=CONTRAST)
  params, memory = method.init(jax.random.key(0), weights())
  inner = memory['inner']
  past = np.isin(np.arange(7), sum(CLASSES[:t], ()))
  home = np.array([0, 0, 1, 1, 1, 2, 2], np.int32)
  inner = {
    **inner,
    'bank': shaken(inner['bank'], 6, 0.5),
    'means': inner['means']._replace(
      counts=jnp.float32(3 * past), sums=shaken(inner['means'].sums, 7, 3.0) * past[:, None]
    ),
    'latest': jnp.asarray(home),
  }
  return method, shaken(params, 5, 0.5), {**memory, 'inner': inner}, env(weights(), t)


def blended(params, memory, t):
  """The prefixes of task t, with a torch gradient."""
  mean = lambda leaf: leaf[:t].mean(0)
  mix = lambda new, old: (1 - BLEND) * new + BLEND * mean(old) if t else new
  return jax.tree.map(mix, params['delta'], memory['inner']['bank'])


def by_block(prefixes, rows):
  """Prefixes by number of block, the same for all examples."""
  wide = lambda a: a.expand(rows, *a.shape)
  return {
    i: (wide(prefixes[f'block_{i}/attn'].k), wide(prefixes[f'block_{i}/attn'].v)) for i in range(3)
  }


@pytest.mark.parametrize('t', [0, 1])
def test_loss_and_gradient_within_a_task(t):
  method, params, memory, where = made(t)
  given = some(t, 4)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, out), slopes = run(params, memory, where, given, None)
  ours, known = trained(params), wide(memory)
  h = features(given.x, by_block(blended(ours, known, t), 5))
  logits = h @ ours['head'].kernel + ours['head'].bias
  means = known['inner']['means']
  old = [means.sums[c] / 3 for i in range(t) for c in CLASSES[i]]
  rows = torch.stack([*old, *h[torch.tensor(given.valid)]])
  apart = torch.nn.functional.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows)))
  wanted = masked_loss(logits, given, CLASSES[t]) + CONTRAST * apart
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)
  assert np.abs(slopes['delta']['block_1/attn'].k).max() > 1e-4
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes['identity']))


def test_the_head_on_frozen_features_finds_the_task():
  method, params, memory, where = made(2)
  x = batch(SMALL.inputs.shape, range(7), 3, rows=9).x
  known, ours = wide(memory), wide(params)
  asked = features(x) @ ours['identity']['head'].kernel + ours['identity']['head'].bias
  task = np.array([0, 0, 1, 1, 1, 2, 2])[asked.argmax(1).numpy()]
  assert len(set(task)) > 1
  last = blended(ours, known, 2)
  each = []
  for t in range(3):
    own = last if t == 2 else jax.tree.map(lambda a, t=t: a[t], known['inner']['bank'])
    each.append(features(x, by_block(own, 9)) @ ours['head'].kernel + ours['head'].bias)
  found = jax.jit(method.predict)(params, memory, where, x)
  wanted = torch.stack([each[t][i] for i, t in enumerate(task)])
  np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_a_task_starts_from_the_one_before_and_keeps_what_it_was_trained_with():
  method, params, memory, where = made(1)
  _, kept = method.end_task(params, memory, where)
  wanted = jax.tree.map(lambda a: a.numpy(), blended(wide(params), wide(memory), 1))
  close(jax.tree.map(lambda a: a[1], kept['inner']['bank']), jax.tree.map(jnp.float32, wanted))
  equal(jax.tree.map(lambda a: a[0], kept['inner']['bank']),
        jax.tree.map(lambda a: a[0], memory['inner']['bank']))  # fmt: skip
  new, _ = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal(new['delta'], jax.tree.map(lambda a: a[1], kept['inner']['bank']))
  equal((new['head'], new['identity']), (params['head'], params['identity']))


def test_a_class_that_comes_again_is_of_the_latest_task():
  again = ((0, 1), (0, 1, 2), (0,))
  method, params, memory, _ = made(0)
  for t in range(3):
    params, memory = method.begin_task(params, memory, env(weights(), t, again), jax.random.key(t))
  assert memory['inner']['latest'][:3].tolist() == [2, 1, 1]


def test_each_head_learns_from_gaussians_of_what_it_reads():
  method, params, memory, where = made(1)
  given = some(1, 4, padding=0)
  memory = jax.jit(method.consolidate)(params, memory, where, given)
  h = features(given.x).numpy()
  prompted = features(given.x, by_block(blended(wide(params), wide(memory), 1), 5)).numpy()
  for c in set(given.y):
    mine = given.y == c
    np.testing.assert_allclose(
      memory['inner']['identity']['gaussians'].mean[c], h[mine].mean(0), atol=1e-4
    )
    np.testing.assert_allclose(memory['gaussians'].mean[c], prompted[mine].mean(0), atol=1e-4)
    means = memory['inner']['means']
    np.testing.assert_allclose(means.sums[c] / means.counts[c], prompted[mine].mean(0), atol=1e-4)
  phases = [(phase.name, phase.after) for phase in method.phases]
  assert phases == [
    ('identify', 'begin'),
    ('identity gaussians', 'consolidate'),
    ('identity align', 'identity gaussians'),
    ('gaussians', 'consolidate'),
    ('align', 'gaussians'),
  ]
  assert [getattr(phase, 'trains', None) for phase in method.phases[::2]] == [
    ('identity',), ('identity',), ('head',)
  ]  # fmt: skip


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match=r'blend must be in 0\.\.1, got 2'):
    hide_prompt(SMALL, CAPACITY, blend=2.0)
  with pytest.raises(ValueError, match='temperature must be positive'):
    hide_prompt(SMALL, CAPACITY, temperature=0.0)
  with pytest.raises(ValueError, match="no 'attend' site matches"):
    hide_prompt(TOY, CAPACITY)
