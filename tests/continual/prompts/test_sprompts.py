import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import sprompts
from pecft_jax.continual.memory.kmeans import lloyd
from pecft_jax.continual.prompts.sprompts import distances

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

DOMAINS = ((0, 1), (0, 1), (0, 1, 2))  # The same classes come again.


def made(t=1, classes=CLASSES):
  """A method, shaken params and memory, and where it stands."""
  method = sprompts(SMALL, CAPACITY, length=5, centres=2, sample=16)
  params, memory = method.init(jax.random.key(0), weights())
  own = np.zeros((3, 7), bool)
  for i in range(t + 1):
    own[i, list(classes[i])] = True
  bank = shaken(memory['bank'], 6, 0.5)
  memory = {**memory, 'bank': bank, 'own': jnp.asarray(own)}
  return method, shaken(params, 5, 0.5), memory, env(weights(), t, classes)


def theirs(prompts, heads, x, task):
  """Logits of each example with the prompt and the head of its task."""
  h = features(x, prompts={0: torch.stack([prompts[i] for i in task])})
  return torch.stack([row @ heads[i][0] + heads[i][1] for row, i in zip(h, task, strict=True)])


def of_tasks(params, memory, t):
  """Prompts and heads by task, with those in training at their place."""
  bank, (name,) = memory['bank'], params['prompt']
  now = (params['prompt'][name].tokens, (params['head'].kernel, params['head'].bias))
  old = [
    (bank.prompts[name].tokens[i], (bank.heads.kernel[i], bank.heads.bias[i])) for i in range(3)
  ]
  return tuple(zip(*(now if i == t else old[i] for i in range(3)), strict=True))


def test_a_task_trains_its_prompt_and_its_head_alone():
  method, params, memory, where = made()
  batch = some(1, 4)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, out), slopes = run(params, memory, where, batch, None)
  ours = trained(params)
  logits = theirs(*of_tasks(ours, wide(memory), 1), batch.x, [1] * 5)
  wanted = masked_loss(logits, batch, CLASSES[1])
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)


@pytest.mark.parametrize('classes', [CLASSES, DOMAINS])
def test_prediction_is_by_the_task_with_the_nearest_centre(classes):
  method, params, memory, where = made(2, classes)
  x = batch(SMALL.inputs.shape, range(7), 3, rows=9).x
  h = features(x).numpy()
  h /= np.linalg.norm(h, axis=1, keepdims=True)
  centres = np.stack([h[[0, 1]], h[[4, 5]], h[[7, 8]]])
  memory = {**memory, 'bank': memory['bank']._replace(centres=jnp.float32(centres))}
  near = np.abs(h[:, None, None] - centres).sum(-1).min(-1)
  np.testing.assert_allclose(distances(jnp.float32(h), jnp.float32(centres)), near, atol=1e-5)
  task = near.argmin(1)
  assert set(task) == {0, 1, 2}
  logits = theirs(*of_tasks(wide(params), wide(memory), 2), x, task).numpy()
  found = np.asarray(jax.jit(method.predict)(params, memory, where, x))
  for row, t in enumerate(task):
    own = list(classes[t])
    np.testing.assert_allclose(found[row, own], logits[row, own], atol=1e-4)
    assert found[row].argmax() in own


def test_centres_are_those_of_k_means_on_features_of_length_one():
  method, params, memory, where = made()
  batches = [some(1, seed)._replace(index=np.arange(5) + 5 * seed) for seed in (0, 1)]
  for each in batches:
    memory = method.consolidate(params, memory, where, each)
  _, memory = method.phases[0].hook(params, memory, where, jax.random.key(1))
  h = np.concatenate([features(each.x).numpy()[each.valid] for each in batches])
  h = jnp.float32(h / np.linalg.norm(h, axis=1, keepdims=True))
  found = memory['bank'].centres[1]
  close(found, lloyd(h, jnp.ones(8, bool), found, 5), atol=1e-5)  # They stay where they are,
  # and no split of so few points is better.
  best = min(
    sum(float(jnp.square(h[m] - h[m].mean(0)).sum()) for m in (mask, ~mask))
    for mask in (np.array([i >> j & 1 for j in range(8)], bool) for i in range(1, 255))
  )
  nearest = ((h[:, None] - found) ** 2).sum(-1).min(1).sum()
  assert float(nearest) == pytest.approx(best, rel=1e-4)
  assert not memory['sample'].filled.any()


def test_a_task_keeps_what_it_learned_and_the_next_starts_afresh():
  method, params, memory, where = made()
  _, kept = method.end_task(params, memory, where)
  equal(jax.tree.map(lambda leaf: leaf[1], kept['bank'].prompts), params['prompt'])
  equal(jax.tree.map(lambda leaf: leaf[1], kept['bank'].heads), params['head'])
  new, after = method.begin_task(params, kept, env(weights(), 2), jax.random.key(1))
  equal(after['bank'], kept['bank'])
  assert after['own'][2].nonzero()[0].tolist() == list(CLASSES[2])
  tokens = new['prompt']['encoder'].tokens
  assert tokens.shape == (5, 12) and 0.2 < np.abs(tokens).max() < 12**-0.5
  equal(new['head'], jax.tree.map(jnp.zeros_like, params['head']))


def test_impossible_sizes_are_refused():
  with pytest.raises(ValueError, match='centres must be at least 1, got 0'):
    sprompts(SMALL, CAPACITY, centres=0)
  with pytest.raises(ValueError, match="no 'tokens' site matches"):
    sprompts(TOY, CAPACITY)
