import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import progressive_prompts
from pecft_jax.typing import Given

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


def made(t=1, bottleneck=None):
  """A method, shaken params and memory, and where it stands."""
  method = progressive_prompts(SMALL, CAPACITY, length=2, bottleneck=bottleneck)
  params, memory = method.init(jax.random.key(0), weights())
  own = np.zeros((3, 7), bool)
  for i in range(t + 1):
    own[i, list(CLASSES[i])] = True
  memory = {'bank': shaken(memory['bank'], 6, 0.5), 'own': jnp.asarray(own)}
  return method, shaken(params, 5, 0.5), memory, env(weights(), t)


def theirs(params, memory, t, x, last):
  """Logits behind the prompts of tasks up to `last`, the newest first, with its head."""
  bank, now = memory['bank'], params['prompt']
  if 'mlp' in params:
    w, b, v, c = params['mlp']
    now = now + torch.tanh(now @ w + b) @ v + c
  prompts = [now if i == t else bank.prompts[i] for i in range(3)]
  inserted = torch.cat(prompts[: last + 1][::-1]).expand(len(x), -1, -1)
  kernel, bias = params['head'] if last == t else [leaf[last] for leaf in bank.heads]
  return features(x, prompts={0: inserted}) @ kernel + bias


@pytest.mark.parametrize('bottleneck', [None, 4])
def test_a_task_trains_its_prompt_behind_which_the_older_ones_stand(bottleneck):
  method, params, memory, where = made(1, bottleneck)
  batch = some(1, 4)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, out), slopes = run(params, memory, where, batch, None)
  ours = trained(params)
  logits = theirs(ours, wide(memory), 1, batch.x, 1)
  wanted = masked_loss(logits, batch, CLASSES[1])
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)


def test_each_class_is_judged_behind_the_prompts_of_its_task():
  method, params, memory, where = made(2)
  x = batch(SMALL.inputs.shape, range(7), 3).x
  each = [theirs(wide(params), wide(memory), 2, x, last).numpy() for last in range(3)]
  found = np.asarray(jax.jit(method.predict)(params, memory, where, x))
  for t, classes in enumerate(CLASSES):
    np.testing.assert_allclose(found[:, classes], each[t][:, classes], atol=1e-4)
  # With the task of each example known, one pass is enough.
  task = np.array([0, 2, 1, 1, 0], np.int32)
  given = jax.jit(method.predict)(params, memory, where, Given(x, task=jnp.asarray(task)))
  for row, t in enumerate(task):
    own = list(CLASSES[t])
    np.testing.assert_allclose(given[row, own], each[t][row, own], atol=1e-4)
    assert int(given[row].argmax()) in own


def test_what_is_stored_is_the_prompt_with_what_its_network_adds():
  method, params, memory, where = made(1, 4)
  _, kept = method.end_task(params, memory, where)
  p = params['prompt']
  w, b, v, c = params['mlp']
  close(kept['bank'].prompts[1], p + jnp.tanh(p @ w + b) @ v + c)
  equal(kept['bank'].prompts[0], memory['bank'].prompts[0])
  equal(jax.tree.map(lambda leaf: leaf[1], kept['bank'].heads), params['head'])
  new, after = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal(after['bank'], kept['bank'])
  assert np.abs(new['prompt']).max() < 0.1 and not np.asarray(new['head'].kernel).any()
  assert set(method.renewed) == set(params) == {'prompt', 'mlp', 'head'}


def test_impossible_sizes_are_refused():
  with pytest.raises(ValueError, match='bottleneck must be at least 1, got 0'):
    progressive_prompts(SMALL, CAPACITY, bottleneck=0)
  with pytest.raises(ValueError, match="no 'tokens' site matches"):
    progressive_prompts(TOY, CAPACITY)
