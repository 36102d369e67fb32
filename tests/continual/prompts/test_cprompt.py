import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import cprompt
from pecft_jax.continual.prompts.cprompt import drawn_tasks

from ..tiny import CLASSES, batch, close, env, equal, shaken

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


def made(t):
  """A method, shaken params and memory, and where it stands."""
  method = cprompt(SMALL, CAPACITY, length=2, smooth=1.7, margin=0.2, consistency=0.6)
  params, memory = method.init(jax.random.key(0), weights())
  own = np.zeros((3, 7), bool)
  for i in range(t + 1):
    own[i, list(CLASSES[i])] = True
  home = jnp.array([0, 0, 1, 1, 1, 2, 2], jnp.int32)
  memory = {'bank': shaken(memory['bank'], 6, 0.5), 'own': jnp.asarray(own), 'latest': home}
  return method, shaken(params, 5, 0.5), memory, env(weights(), t)


def behind(prompts, x, task):
  """Features of examples, each behind the prompts of its task."""
  both = [torch.stack([p[i] for i in task]) for p in zip(*prompts, strict=True)]
  return features(x, prompts={0: both[0], 2: both[1]})


def of_tasks(params, memory, t):
  """Prompts by task, with those in training at their place."""
  old = memory['bank']
  return [params['prompts'] if i == t else (old.first[i], old.second[i]) for i in range(3)]


@pytest.mark.parametrize('t', [0, 2])
def test_loss_and_gradient(t):
  method, params, memory, where = made(t)
  given, key = some(t, 4), jax.random.key(2)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, _), slopes = run(params, memory, where, given, key)
  ours = trained(params)
  prompts = of_tasks(ours, wide(memory), t)
  h = behind(prompts, given.x, [t] * 5)
  classify = lambda head, h: h @ head.kernel + head.bias
  wanted = masked_loss(classify(ours['auxiliary'], h), given, CLASSES[t])
  frozen = jax.tree.map(lambda a: a.detach(), ours['head'])
  logits = classify(frozen, h)
  valid = torch.tensor(given.valid)
  for k in range(t):
    old, now = logits[:, list(CLASSES[k])], logits[:, list(CLASSES[t])]
    surer = now.max(1).values > old.max(1).values + 0.2
    soft = torch.softmax(old / torch.where(surer, 1.0, 1.7)[:, None], 1).detach()
    each = -(soft * torch.log_softmax(old, 1)).sum(1)
    wanted = wanted + 0.6 / t * each[valid].mean()
  keys, past = ours['keys'], sum(CLASSES[:t], ())
  rows = [keys[c].detach() if c in past else keys[c] for c in (*past, *CLASSES[t])]
  near = cosines(features(given.x), torch.stack(rows))
  right = torch.tensor(given.y.astype(np.int64))
  wanted = wanted + torch.nn.functional.cross_entropy(near[valid], right[valid])
  task = drawn_tasks(jax.random.split(key)[1], jnp.int32(t), 5).tolist()
  assert t == 0 or len(set(task)) > 1
  mixed = classify(ours['head'], behind(prompts, given.x, task))
  wanted = wanted + masked_loss(mixed, given, CLASSES[t])
  wanted.backward()
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)


def test_the_best_key_finds_the_task():
  method, params, memory, where = made(2)
  x = batch(SMALL.inputs.shape, range(7), 3, rows=9).x
  ours = wide(params)
  best = cosines(features(x), ours['keys']).argmax(1).numpy()
  task = np.array([0, 0, 1, 1, 1, 2, 2])[best]
  assert len(set(task)) > 1
  h = behind(of_tasks(ours, wide(memory), 2), x, task)
  wanted = h @ ours['head'].kernel + ours['head'].bias
  found = jax.jit(method.predict)(params, memory, where, x)
  np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_a_task_keeps_its_prompts_and_the_next_starts_from_them():
  method, params, memory, where = made(1)
  _, kept = method.end_task(params, memory, where)
  equal(jax.tree.map(lambda a: a[1], kept['bank']), params['prompts'])
  new, after = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal((new['prompts'], new['keys'], new['head']),
        (params['prompts'], params['keys'], params['head']))  # fmt: skip
  assert not new['auxiliary'].kernel.any()
  assert after['own'][2].nonzero()[0].tolist() == list(CLASSES[2])


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    cprompt(SMALL, CAPACITY, length=0)
  with pytest.raises(ValueError, match='smooth must be positive'):
    cprompt(SMALL, CAPACITY, smooth=0.0)
