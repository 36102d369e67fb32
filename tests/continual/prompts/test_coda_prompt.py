import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import coda_prompt
from pecft_jax.continual.prompts.coda_prompt import orthogonal_to

from ..tiny import CLASSES, TOY, close, env, equal, shaken

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

PATHS = {'block_0/attn': 0, 'block_2/attn': 2}


def made(**options):
  """A method in task 1 of 3 with 2 components per task, shaken params and memory."""
  options = {'pool': 6, 'length': 5, 'layers': [0, 2], 'orthogonality': 0.3, **options}
  method = coda_prompt(SMALL, CAPACITY, **options)
  params, memory = method.init(jax.random.key(0), weights())
  memory = jax.tree.map(lambda leaf: leaf.at[1:].set(0), shaken(memory, 6, 0.5))
  return method, shaken(params, 5, 0.1), memory, env(weights(), 1)


def theirs(params, memory, x):
  """Logits and penalty by the equations: component by component, for each example."""
  query, prefixes, penalty = features(x), {}, 0.0
  for path, block in PATHS.items():
    parts = zip(memory['bank'][path], params['components'][path], strict=True)
    k, v, keys, attention = (torch.cat([old[0], new]) for old, new in parts)  # Tasks 0 and 1.
    alpha = torch.stack(
      [torch.nn.functional.cosine_similarity(query * a, b[None], -1)
       for a, b in zip(attention, keys, strict=True)], 1
    )  # fmt: skip
    prefixes[block] = [torch.einsum('bm,mphk->bphk', alpha, part) for part in (k, v)]
    for rows in (torch.cat([k.flatten(1), v.flatten(1)], 1), keys, attention):
      penalty = penalty + ((rows @ rows.T - torch.eye(4, dtype=rows.dtype)) ** 2).mean()
  return features(x, prefixes) @ params['head'].kernel + params['head'].bias, penalty


def test_prefixes_are_weighted_by_cosines_and_only_new_components_are_trained():
  method, params, memory, where = made()
  batch = some(1, 4)
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, out), slopes = run(params, memory, where, batch, None)
  ours = trained(params)
  logits, penalty = theirs(ours, wide(memory), batch.x)
  wanted = masked_loss(logits, batch, CLASSES[1], 0.3 * penalty)
  wanted.backward()
  np.testing.assert_allclose(out.logits, logits.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
  close(slopes, jax.tree.map(jnp.float32, grads(ours)), atol=1e-4)


def test_a_task_adds_components_orthogonal_to_all_before():
  method, params, memory, where = made()
  done, kept = method.end_task(params, memory, where)
  new, same = method.begin_task(done, kept, env(weights(), 2), jax.random.key(1))
  equal(same, kept)
  equal(new['head'], params['head'])
  for path in PATHS:
    bank, own = kept['bank'][path], new['components'][path]
    equal(jax.tree.map(lambda leaf: leaf[1], bank), params['components'][path])
    np.testing.assert_allclose(own.keys @ own.keys.T, np.eye(2), atol=0.5)  # Old ones are moved.
    flat = np.concatenate([own.k.reshape(2, -1), own.v.reshape(2, -1)], 1)
    np.testing.assert_allclose(np.square(flat).sum(1), 1, atol=1e-5)
  # Without old components, they are orthogonal.
  first = method.init(jax.random.key(2), weights())[0]['components']['block_0/attn']
  for leaf in (first.keys, first.attention):
    np.testing.assert_allclose(leaf @ leaf.T, np.eye(2), atol=1e-5)


def test_gram_schmidt_takes_away_projections_one_by_one():
  rng = np.random.default_rng(0)
  old = np.concatenate([rng.normal(size=(3, 11)), np.zeros((2, 11))]).astype(np.float32)
  key = jax.random.key(3)
  found = orthogonal_to(jnp.asarray(old), 4, key)
  random = np.asarray(jax.random.normal(key, (4, 11)), np.float64)
  made = [*old[:3].astype(np.float64)]
  for vector in random:
    made.append(vector - sum((vector @ u) / (u @ u) * u for u in made))
  wanted = np.array(made[3:])
  np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1)[:, None], atol=1e-5)
  straight = np.linalg.qr(rng.normal(size=(11, 5)))[0].T.astype(np.float32)
  found = orthogonal_to(jnp.asarray(straight), 4, key)
  np.testing.assert_allclose(found @ straight.T, 0, atol=1e-6)
  np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-6)


def test_starts_as_published():
  method = coda_prompt(SMALL, CAPACITY)
  params, memory = jax.eval_shape(method.init, jax.random.key(0), weights())
  assert sorted(params['components']) == ['block_0/attn', 'block_1/attn', 'block_2/attn']
  assert params['components']['block_0/attn'].k.shape == (33, 4, 3, 4)  # 100 / 3 of a task.
  assert memory['bank']['block_0/attn'].keys.shape == (3, 33, 12)
  assert method.passes(3) == 2 and method.renewed == ('components',)


def test_impossible_components_are_refused():
  with pytest.raises(ValueError, match='a component per task, got pool=2 for 3 tasks'):
    coda_prompt(SMALL, CAPACITY, pool=2)
  with pytest.raises(ValueError, match='orthogonality must be at least 0'):
    coda_prompt(SMALL, CAPACITY, orthogonality=-0.1)
  with pytest.raises(ValueError, match="no 'attend' site matches"):
    coda_prompt(TOY, CAPACITY)
