import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import dualprompt
from pecft_jax.typing import Batch, Given

from ..tiny import CLASSES, TOY, batch, close, env, equal, shaken

torch = pytest.importorskip('torch')

from .reference import (  # noqa: E402
  CAPACITY,
  SMALL,
  cosines,
  features,
  grads,
  masked_loss,
  some,
  trained,
  weights,
  wide,
)  # fmt: skip

SIZES = dict(general=2, expert=4, general_layers=[0, 1], expert_layers=[1, 2], pull=0.7)


def made(t=1, **options):
  """A method, shaken params and memory, and where it stands."""
  method = dualprompt(SMALL, CAPACITY, **{**SIZES, **options})
  params, memory = method.init(jax.random.key(0), weights())
  return method, shaken(params, 5, 0.5), shaken(memory, 6, 0.5), env(weights(), t)


def theirs(params, memory, t, x, task):
  """Logits and cosines [B, T] by the equations, each example with the expert of its task."""
  keys = torch.cat([memory['bank'].keys[:t], params['key'][None], memory['bank'].keys[t + 1 :]])
  near = cosines(features(x), keys)

  def expert(path):
    stack = memory['bank'].prefixes[path]
    each = lambda bank, now: torch.stack([now if i == t else bank[i] for i in task])
    return [each(*pair) for pair in zip(stack, params['expert'][path], strict=True)]

  general = lambda path: [leaf.expand(len(task), *leaf.shape) for leaf in params['general'][path]]
  first, second = general('block_0/attn'), general('block_1/attn')
  middle, last = expert('block_1/attn'), expert('block_2/attn')
  both = [torch.cat(pair, 1) for pair in zip(second, middle, strict=True)]
  h = features(x, {0: first, 1: both, 2: last})
  return h @ params['head'].kernel + params['head'].bias, near


def test_training_uses_the_expert_of_the_task_and_draws_its_key():
  method, params, memory, where = made()
  batch = some(1, 4)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, out), slopes = run(params, memory, where, batch, None)
  ours = trained(params)
  logits, near = theirs(ours, wide(memory), 1, batch.x, [1] * 5)
  wanted = masked_loss(logits, batch, CLASSES[1], 0.7 * (1 - near[:, 1]))
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), atol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)


def test_prediction_uses_the_expert_whose_key_is_nearest_among_tasks_seen():
  method, params, memory, where = made(t=1)
  x = batch(SMALL.inputs.shape, range(7), 3, rows=9).x
  h = jnp.float32(features(x))
  h = h - h.mean(0)  # Keys that differ in what examples differ in.
  params = {**params, 'key': h[4]}
  memory = {'bank': memory['bank']._replace(keys=h[jnp.array([0, 4, 8])])}
  found = jax.jit(method.predict)(params, memory, where, x)
  _, near = theirs(wide(params), wide(memory), 1, x, [0] * 9)
  assert set(near.argmax(1).tolist()) == {0, 1, 2}  # Or the restriction would not show.
  task = near[:, :2].argmax(1).tolist()
  logits, _ = theirs(wide(params), wide(memory), 1, x, task)
  np.testing.assert_allclose(found[:, :5], logits[:, :5].numpy(), atol=1e-4)
  given = jax.jit(method.predict)(params, memory, where, Given(x, task=jnp.ones(9, jnp.int32)))
  logits, _ = theirs(wide(params), wide(memory), 1, x, [1] * 9)
  np.testing.assert_allclose(given[:, :5], logits[:, :5].numpy(), atol=1e-4)
  # A majority of the batch selects for all.
  method, *_ = made(t=1, batchwise=True)
  logits, _ = theirs(wide(params), wide(memory), 1, x, [int(np.bincount(task).argmax())] * 9)
  found = jax.jit(method.predict)(params, memory, where, x)
  np.testing.assert_allclose(found[:, :5], logits[:, :5].numpy(), atol=1e-4)


def test_a_replayed_example_has_the_expert_of_its_class():
  method, params, memory, where = made(t=2)
  y = np.array([0, 2, 4, 5, 6], np.int32)
  mixed = Batch(some(2, 1).x, y, np.ones(5, bool), y)
  _, out = jax.jit(method.loss)(params, memory, where, mixed, None)
  logits, near = theirs(wide(params), wide(memory), 2, mixed.x, [0, 1, 1, 2, 2])
  np.testing.assert_allclose(out.logits, logits.numpy(), atol=1e-4)
  pulled = 0.7 * (1 - near[np.arange(5), [0, 1, 1, 2, 2]])
  np.testing.assert_allclose(out.aux_loss, pulled.numpy(), atol=1e-5)


def test_a_task_starts_from_the_expert_before_it_with_a_fresh_key():
  method, params, memory, where = made()
  done, kept = method.end_task(params, memory, where)
  equal(done, params)
  equal(jax.tree.map(lambda leaf: leaf[1], kept['bank'].prefixes), params['expert'])
  equal(kept['bank'].keys[1], params['key'])
  equal(kept['bank'].keys[0], memory['bank'].keys[0])
  new, same = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal(same, kept)
  equal({**new, 'key': params['key']}, params)
  assert np.abs(new['key'] - params['key']).min() > 1e-3 and new['key'].min() >= 0
  fresh, _ = made(transfer=False)[0].begin_task(params, kept, where, jax.random.key(1))
  assert max(leaf.max() for leaf in jax.tree.leaves(fresh['expert'])) < 0.01


def test_ports_give_half_of_a_batch_keys_alone_and_the_other_values():
  method, params, memory, where = made(reshaped=True)
  x = some(1, 4)._replace(x=some(1, 4).x[:4]).x
  found = jax.jit(method.forward)(params, memory, where, x, None)
  twice = lambda each: [type(each)(each.k, each.k)] * 2 + [type(each)(each.v, each.v)] * 2
  for i in range(4):
    mine = {**params, 'expert': {p: twice(each)[i] for p, each in params['expert'].items()}}
    logits, _ = theirs(wide(mine), wide(memory), 1, x[i : i + 1], [1])
    np.testing.assert_allclose(found.logits[i], logits[0].numpy(), atol=1e-4)


def test_starts_as_published():
  method = dualprompt(SMALL, CAPACITY)
  params, memory = method.init(jax.random.key(0), weights())
  assert sorted(params['general']) == ['block_0/attn', 'block_1/attn']
  assert sorted(params['expert']) == ['block_2/attn']  # Of blocks 2 to 4, the one that is there.
  for part in ('general', 'expert'):
    for leaf in jax.tree.leaves(params[part]):
      assert leaf.shape == (5, 3, 4) and leaf.min() >= 0 and leaf.max() < 0.01
  assert memory['bank'].keys.shape == (3, 12) and method.passes(3) == 2


def test_impossible_prompts_are_refused():
  with pytest.raises(ValueError, match='expert must be at least 1, got 0'):
    dualprompt(SMALL, CAPACITY, expert=0)
  with pytest.raises(ValueError, match=r'no blocks \[7\]; blocks: \[0, 1, 2\]'):
    dualprompt(SMALL, CAPACITY, expert_layers=[7])
  with pytest.raises(ValueError, match="no 'attend' site matches"):
    dualprompt(TOY, CAPACITY)
