import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import decoder
from pecft_jax.continual import l2p
from pecft_jax.continual.core import normalised
from pecft_jax.peft import prompt, vpt_deep
from pecft_jax.typing import Given, PeftTransform, Update

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, close, env, equal, frozen_of, shaken

SIZES = dict(pool=5, length=2, top_k=3)


def made(**options):
  """A method, its shaken state, and where it stands."""
  method = l2p(MODEL, CAPACITY, **{**SIZES, **options})
  frozen = frozen_of(MODEL)
  params, memory = method.init(jax.random.key(0), frozen)
  return method, shaken(params, 5), memory, env(frozen, 1)


@pytest.fixture(scope='module')
def x():
  return batch(MODEL.inputs.shape, range(7), 3).x


@pytest.fixture(scope='module')
def default(x):
  method, params, memory, where = made()
  forward = jax.jit(method.forward)
  return method, params, memory, where, forward(params, memory, where, x, None)


def cosines(params, where, x):
  """[B, M] in numpy."""
  query = MODEL.apply(where.frozen, normalised(MODEL.inputs, x)).pooled
  direction = lambda a: np.asarray(a) / np.linalg.norm(a, axis=-1, keepdims=True)
  return direction(query) @ direction(params['pool'].keys).T


def read_at_prompts(where, x, prompts, extra=()):
  """The mean output at tokens put behind the class token, with all rows computed."""

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'tokens' or site.path != 'encoder':
      return next_fn(*args)
    tokens = jnp.concatenate([*(jnp.broadcast_to(e, (5, *e.shape)) for e in extra), prompts], 1)
    stream, mask = args
    return next_fn(jnp.concatenate([stream[:, :1], tokens, stream[:, 1:]], 1), mask)

  peft = PeftTransform(lambda *_: {}, intercept)
  inputs = normalised(MODEL.inputs, x)
  tokens = MODEL.apply(where.frozen, inputs, {}, peft=peft).tokens
  first = 1 + sum(e.shape[0] for e in extra)
  return tokens[:, first : first + prompts.shape[1]].mean(1)


def test_reads_the_mean_output_at_the_prompts_with_the_nearest_keys(default, x):
  _, params, _, where, out = default
  chosen = np.argsort(-cosines(params, where, x), 1)[:, :3]
  assert len({tuple(row) for row in chosen}) > 1  # Or the selection would not show.
  prompts = params['pool'].prompts[chosen].reshape(5, 6, 24)
  close(out.features, read_at_prompts(where, x, prompts), atol=1e-4)
  close(out.logits, out.features @ params['head'].kernel + params['head'].bias, atol=1e-4)


def test_pull_is_the_sum_of_distances_to_the_selected_keys(x):
  method, params, memory, where = made(pull=0.7)
  out = jax.jit(method.forward)(params, memory, where, x, None)
  near = -np.sort(-cosines(params, where, x), 1)[:, :3]
  np.testing.assert_allclose(out.aux_loss, 0.7 * (1 - near).sum(1), atol=1e-5)


def test_loss_adds_the_mean_pull_to_the_masked_cross_entropy(x):
  method, params, memory, where = made()
  some = batch(MODEL.inputs.shape, CLASSES[1], 4)
  loss, out = jax.jit(method.loss)(params, memory, where, some, None)
  log_p = jax.nn.log_softmax(out.logits[:, list(CLASSES[1])])
  each = -log_p[np.arange(5), some.y - CLASSES[1][0]] + out.aux_loss
  np.testing.assert_allclose(loss, each[some.valid].mean(), rtol=1e-5)


def test_gradients_reach_the_selected_prompts_and_keys_alone(x):
  method, params, memory, where = made(pool=9, top_k=1)
  some = batch(MODEL.inputs.shape, CLASSES[1], 4)
  grads = jax.jit(jax.grad(lambda p: method.loss(p, memory, where, some, None)[0]))(params)
  chosen = set(cosines(params, where, some.x).argmax(1)[some.valid])
  for leaf in grads['pool']:
    moved = {m for m in range(9) if np.abs(leaf[m]).max() > 1e-9}
    assert moved == chosen


def test_an_example_alone_is_treated_as_in_a_batch(default, x):
  method, params, memory, where, out = default
  alone = jax.jit(method.forward)(params, memory, where, x[2:3], None)
  close(alone.logits, out.logits[2:3], atol=1e-5)


def test_batchwise_selection_is_the_vote_of_the_batch(x):
  method, params, memory, where = made(batchwise=True)
  out = jax.jit(method.forward)(params, memory, where, x, None)
  near = cosines(params, where, x)
  votes = np.bincount(np.argsort(-near, 1)[:, :3].ravel(), minlength=5)
  chosen = np.argsort(-votes, kind='stable')[:3]
  np.testing.assert_allclose(out.aux_loss, (1 - near[:, chosen]).sum(1), atol=1e-5)
  prompts = jnp.broadcast_to(params['pool'].prompts[chosen].reshape(1, 6, 24), (5, 6, 24))
  close(out.features, read_at_prompts(where, x, prompts), atol=1e-4)


def test_training_diversifies_by_eq_4_and_predictions_by_keys_alone(x):
  method, params, memory, where = made(select='frequency', pull=1.0)
  past = jnp.array([4.0, 0.0, 9.0, 2.0, 6.0])
  memory = {**memory, 'past': past}
  near = cosines(params, where, x).astype(np.float64)
  products = (1 - near) * np.asarray(past, np.float64) / 21
  chosen = np.argsort(products, 1)[:, :3]
  assert (np.sort(chosen) != np.sort(np.argsort(-near, 1)[:, :3])).any()
  out = jax.jit(method.forward)(params, memory, where, x, None)
  close(out.aux_loss, (1 - np.take_along_axis(near, chosen, 1)).sum(1), atol=1e-5)
  close(out.features, read_at_prompts(where, x, params['pool'].prompts[chosen].reshape(5, 6, 24)),
        atol=1e-4)  # fmt: skip
  plain, *_ = made()
  equal(method.predict(params, memory, where, x), plain.predict(params, {}, where, x))


def test_selections_of_valid_examples_count_from_the_next_task_on():
  method, params, memory, where = made(select='frequency')
  some = batch(MODEL.inputs.shape, CLASSES[1], 4, padding=2)
  update = Update(None, params)
  _, after = method.observe(params, memory, where, some, None, update, None)
  chosen = np.argsort(-cosines(params, where, some.x), 1)[:3, :3]
  assert after['now'].tolist() == np.bincount(chosen.ravel(), minlength=5).tolist()
  assert not after['past'].any()
  _, ended = method.end_task(params, after, where)
  equal(ended, {'past': after['now'], 'now': jnp.zeros(5)})


@pytest.mark.parametrize(('t', 'own'), [(0, [0, 1]), (1, [2, 3]), (2, None)])
def test_a_task_trains_its_own_block_while_the_pool_has_one(t, own, x):
  method, params, memory, where = made(top_k=2, select='task')
  where = env(where.frozen, t)
  near = cosines(params, where, x)
  chosen = np.argsort(-near, 1)[:, :2] if own is None else np.tile(own, (5, 1))
  out = jax.jit(method.forward)(params, memory, where, x, None)
  close(out.aux_loss, (1 - np.take_along_axis(near, chosen, 1)).sum(1), atol=1e-5)
  plain, *_ = made(top_k=2)
  equal(method.predict(params, memory, where, x), plain.predict(params, {}, where, x))


@pytest.mark.parametrize(('t', 'copied'), [(0, False), (1, True), (2, False)])
def test_a_block_starts_as_that_of_the_task_before(t, copied):
  method, params, memory, where = made(top_k=2, transfer=True)
  after, _ = method.begin_task(params, memory, env(where.frozen, t), jax.random.key(0))
  want = np.array(params['pool'].prompts)
  if copied:
    want[2:4] = want[:2]
  equal(after, {**params, 'pool': params['pool']._replace(prompts=jnp.asarray(want))})


def test_a_cached_query_changes_nothing(default, x):
  method, params, memory, where, out = default
  cached = Given(x, jax.jit(method.query)(where.frozen, x))
  again = jax.jit(method.forward)(params, memory, where, cached, None)
  close(again, out, atol=1e-6)


@pytest.mark.parametrize('beside', [prompt(length=4), vpt_deep(length=4)])
def test_prompts_of_another_transform_are_not_read(x, beside):
  method, params, memory, where = made(peft=beside)
  out = jax.jit(method.forward)(params, memory, where, x, None)
  chosen = np.argsort(-cosines(params, where, x), 1)[:, :3]
  prompts = params['pool'].prompts[chosen].reshape(5, 6, 24)
  # In a model of one block, both put their tokens before the same attention.
  (extra,) = params['delta'].values()
  close(out.features, read_at_prompts(where, x, prompts, [extra.tokens]), atol=1e-4)


def test_starts_as_published():
  method = l2p(MODEL, CAPACITY)
  params, memory = method.init(jax.random.key(0), frozen_of(MODEL))
  assert params['pool'].prompts.shape == (10, 10, 24) and params['pool'].keys.shape == (10, 24)
  for leaf in params['pool']:
    assert 0 <= leaf.min() < 0.001 and 0.009 < leaf.max() < 0.01
  assert not memory and method.passes(3) == 2
  equal(params['head'], jax.tree.map(jnp.zeros_like, params['head']))


def test_impossible_selections_are_refused():
  with pytest.raises(ValueError, match=r'top_k must be in 1\.\.pool=5, got 6'):
    l2p(MODEL, CAPACITY, pool=5, top_k=6)
  with pytest.raises(ValueError, match="no 'tokens' site matches"):
    l2p(TOY, CAPACITY)


def test_a_decoder_is_refused_for_it_has_no_class_token():
  reader = decoder(vocabulary=9, width=8, depth=1, heads=2, kv_heads=1, hidden=6, length=5)
  with pytest.raises(ValueError, match='in place of a class token, and decoder has none'):
    l2p(reader, CAPACITY)
