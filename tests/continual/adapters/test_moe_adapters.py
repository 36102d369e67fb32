import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import moe_adapters
from pecft_jax.continual.core import frozen_features
from pecft_jax.continual.memory.novelty import bounded_errors
from pecft_jax.peft import adaptformer, lora
from pecft_jax.peft.sites import site_key
from pecft_jax.typing import Given, Update

from ..tiny import CAPACITY, CLASSES, MODEL, TOY, batch, env, equal, frozen_of, shaken

KEY = jax.random.key(5)
PATH = 'block_0/mlp'
PEFT = adaptformer(width=3, read='residual')
SIZES = dict(peft=PEFT, experts=4, hidden=5)


@functools.cache
def made(**options):
  """A method with all parameters shaken, after the first of its tasks; two experts are frozen."""
  method = moe_adapters(MODEL, CAPACITY, **{**SIZES, **options})
  frozen = frozen_of(MODEL)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 3)
  where, some = env(frozen, 0), batch(MODEL.inputs.shape, CLASSES[0], 1, rows=9)
  memory = method.consolidate(params, memory, where, some)
  params, memory = method.end_task(params, memory, where)
  where = env(frozen, 1)
  params, memory = method.begin_task(params, memory, where, jax.random.key(2))
  return method, shaken(params, 4), memory, where


@pytest.fixture(scope='module')
def some():
  return batch(MODEL.inputs.shape, CLASSES[1], 7)


def test_an_expert_that_a_task_used_most_never_changes_again(some):
  method, params, memory, where = made()
  still = np.asarray(memory['still'][PATH])
  assert still.sum() == 2
  loss = lambda p: method.loss(p, memory, where, some, KEY)[0]
  grads = jax.jit(jax.grad(loss))(params)['experts'][PATH]
  moved = np.array([any(np.asarray(leaf[e]).any() for leaf in grads) for e in range(4)])
  assert not moved[still].any() and moved[~still].any()
  # A decay of weights would move what has no gradient.
  decayed = jax.tree.map(lambda leaf: 0.9 * leaf, params)
  after, _ = method.observe(decayed, memory, where, some, None, Update(None, params), None)
  for was, went, now in zip(
    params['experts'][PATH], decayed['experts'][PATH], after['experts'][PATH], strict=True
  ):
    np.testing.assert_array_equal(now[still], was[still])
    np.testing.assert_array_equal(now[~still], went[~still])


def test_frozen_experts_add_up_and_counts_begin_anew(some):
  method, params, memory, where = made()
  memory = {**memory, 'used': {PATH: jnp.array([5, 0, 9, 7], jnp.int32)}}
  memory['still'] = {PATH: jnp.array([True, False, True, False])}
  _, after = method.end_task(params, memory, where)
  assert after['still'][PATH].tolist() == [True, False, True, True]
  assert not after['used'][PATH].any()
  never = moe_adapters(MODEL, CAPACITY, **SIZES, freeze=0)
  assert never.end_task(params, memory, where)[1]['still'][PATH].tolist() == [1, 0, 1, 0]


def test_examples_are_counted_for_the_experts_that_they_are_given_to(some):
  method, params, memory, where = made()
  counts = method.consolidate(params, memory, where, some)['used'][PATH]
  assert counts.sum() == 2 * some.valid.sum()
  # The class token after attention, times the router of the task.

  def watch(site, args, out):
    return args[1][:, 0] if site.kind == 'sublayer' and site.path == PATH else None

  images = MODEL.inputs.normalised(jnp.asarray(some.x))
  seen = MODEL.apply(where.frozen, images, watch=watch).taps[f'sublayer:{PATH}']
  scores = np.asarray(seen, np.float64) @ np.asarray(params['router'][PATH].weight, np.float64)
  best = np.argsort(-scores, 1)[some.valid][:, :2]
  assert counts.tolist() == np.bincount(best.ravel(), minlength=4).tolist()


def test_routers_of_past_tasks_stay_and_a_new_one_starts_at_zero():
  method, params, memory, where = made()
  _, after = method.end_task(params, memory, where)
  first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
  equal(first(after['routers']), first(memory['routers']))
  begun, _ = method.begin_task(params, after, env(where.frozen, 2), jax.random.key(0))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(begun['router']))
  equal(begun['experts'], params['experts'])


def test_the_autoencoder_with_the_smallest_error_names_the_router(some):
  method, params, memory, where = made()
  query = frozen_features(MODEL, where.frozen, some.x)
  coders = [jax.tree.map(lambda leaf: leaf[0], memory['bank']), params['coder']]
  errors = np.stack([bounded_errors(coder, query) for coder in coders], 1)
  task = errors.argmin(1).astype(np.int32)
  assert set(task) == {0, 1}
  predict = jax.jit(method.predict)
  found = predict(params, memory, where, some.x)
  equal(found, predict(params, memory, where, Given(some.x, task=task)))
  other = predict(params, memory, where, Given(some.x, task=1 - task))
  assert not np.allclose(found[:, :5], other[:, :5], atol=1e-3)


def test_by_batch_all_examples_go_through_one_router(some):
  method, params, memory, where = made(batchwise=True)
  query = frozen_features(MODEL, where.frozen, some.x)
  first = jax.tree.map(lambda leaf: leaf[0], memory['bank'])
  errors = [bounded_errors(coder, query).mean() for coder in (first, params['coder'])]
  task = np.full(5, np.argmin(errors), np.int32)
  found = method.predict(params, memory, where, some.x)
  np.testing.assert_allclose(
    found, method.predict(params, memory, where, Given(some.x, task=task)), atol=1e-6
  )


def test_above_the_threshold_class_means_of_frozen_features_answer(some):
  plain, *_ = made()
  method, params, memory, where = made(threshold=0.0)
  memory = method.consolidate(params, memory, where, some)
  query = np.asarray(frozen_features(MODEL, where.frozen, some.x), np.float64)
  first = batch(MODEL.inputs.shape, CLASSES[0], 1, rows=9)
  old = np.asarray(frozen_features(MODEL, where.frozen, first.x), np.float64)
  means = np.zeros((7, 24))
  for features, part in ((old, first), (query, some)):
    for h, y in zip(features[part.valid], part.y[part.valid], strict=True):
      means[y] += h
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  found = method.predict(params, memory, where, some.x)
  np.testing.assert_allclose(found[:, :5], (unit(query) @ unit(means).T)[:, :5], atol=1e-5)
  assert np.isneginf(found[:, 5:]).all()
  # Where the scenario gives the task, there is nothing to find.
  known = Given(some.x, task=np.ones(5, np.int32))
  without = {name: memory[name] for name in memory if name != 'means'}
  equal(method.predict(params, memory, where, known), plain.predict(params, without, where, known))


def test_noise_is_for_training_alone(some):
  method, params, memory, where = made()
  loss = jax.jit(method.loss)
  quiet, noisy, again = (loss(params, memory, where, some, key)[0] for key in (None, KEY, KEY))
  assert quiet != noisy and noisy == again


def test_replayed_examples_go_through_the_router_of_their_task(some):
  method, params, memory, where = made()
  old = some._replace(y=np.zeros(5, np.int32))
  _, out = method.loss(params, memory, where, old, None)
  first = Given(some.x, task=np.zeros(5, np.int32))
  np.testing.assert_allclose(
    out.features, method.forward(params, memory, where, first, None).features, atol=1e-6
  )


def test_features_loss_and_gradients_are_those_of_the_equations():
  torch = pytest.importorskip('torch')
  from ..prompts.reference import SMALL, grads, masked_loss, trained, weights
  from ..prompts.reference import some as some_of
  from .reference import features

  method = moe_adapters(SMALL, CAPACITY, **SIZES)
  params, memory = method.init(jax.random.key(0), weights())
  params = shaken(params, 6)
  memory['still']['block_1/mlp'] = jnp.array([False, True, False, True])
  where, some = env(weights(), 0), some_of(0, 3)
  loss = lambda p: method.loss(p, memory, where, some, KEY)
  (value, out), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  mine = trained(params)

  def mixed(path, x):
    k_noise, _ = jax.random.split(site_key(KEY, path))
    noise = torch.tensor(np.asarray(jax.random.normal(k_noise, (5, 4)), np.float64))
    router = mine['router'][path]
    deviation = torch.nn.functional.softplus(x[:, 0] @ router.spread) + 0.01
    scores = x[:, 0] @ router.weight + noise * deviation
    best, chosen = scores.topk(2, 1)
    gate = torch.zeros_like(scores).scatter(1, chosen, torch.softmax(best, 1))
    still, total = np.asarray(memory['still'][path]), 0.0
    for e in range(4):
      one = [leaf[e].detach() if still[e] else leaf[e] for leaf in mine['experts'][path]]
      down, down_bias, up, up_bias = one
      added = torch.relu(x @ down + down_bias) @ up + up_bias
      total = total + 0.1 * gate[:, e, None, None] * added
    return total

  adapters = {p: functools.partial(mixed, p) for p in mine['router']}
  h = features(some.x, adapters)
  want = masked_loss(h @ mine['head'].kernel + mine['head'].bias, some, CLASSES[0])
  want.backward()
  np.testing.assert_allclose(out.features, h.detach().numpy(), atol=2e-5)
  np.testing.assert_allclose(value, want.item(), rtol=1e-5)
  names = ('experts', 'router', 'head')
  ours, theirs = ({name: tree[name] for name in names} for tree in (found, grads(mine)))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_cannot_be_routed_is_refused_at_construction():
  with pytest.raises(ValueError, match=r"bottleneck adapter at every site.*'LoraDelta'"):
    moe_adapters(MODEL, CAPACITY, peft=lora(rank=2))
  with pytest.raises(ValueError, match=r'expected 2 <= top_k <= experts .* got top_k=1, freeze=2'):
    moe_adapters(MODEL, CAPACITY, experts=4, top_k=1)
  with pytest.raises(ValueError, match='freeze=5, experts=4'):
    moe_adapters(MODEL, CAPACITY, experts=4, freeze=5)
  with pytest.raises(ValueError, match='hidden must be at least 1, got 0'):
    moe_adapters(MODEL, CAPACITY, hidden=0)
  with pytest.raises(ValueError, match="no 'sublayer' site matches"):
    moe_adapters(TOY, CAPACITY)
