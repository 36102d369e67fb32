import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import merged
from pecft_jax.continual.core import model
from pecft_jax.continual.merging.products import factors, products
from pecft_jax.continual.merging.rules import dare, ties
from pecft_jax.peft import linear_probe, lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of, shaken

FC = lora('fc$', rank=2, alpha=3.0)
FULL_RANK = lora('fc$', rank=6, alpha=9.0)


def learnt(method, tasks=3):
  """The state after tasks whose training is noise of a seed of their own, and the deltas."""
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = {**params, 'head': shaken(params['head'], 99)}
  deltas = [params['delta']]
  for t in range(tasks):
    params, memory = begun(method, params, memory, env(frozen, t))
    params = {**params, 'delta': shaken(params['delta'], t)}
    deltas.append(params['delta'])
    some = batch(TOY.inputs.shape, CLASSES[t], t)
    params, memory = ended(method, params, memory, env(frozen, t), some)
  return frozen, params, memory, deltas


def begun(method, params, memory, env):
  if method.begin_task is None:
    return params, memory
  return method.begin_task(params, memory, env, jax.random.key(0))


def ended(method, params, memory, env, some):
  *passes, merge = method.phases
  for each in passes:
    memory = each.hook(params, memory, env, some)
  return merge.hook(params, memory, env, jax.random.key(0))


def mean_of(trees):
  return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_each_task_starts_where_it_says():
  starts = {}
  for start in ('pretrained', 'last', 'merged'):
    method = merged(TOY, CAPACITY, peft=FC, start=start)
    frozen, params, memory, deltas = learnt(method, 2)
    last, _ = begun(method, params, memory, env(frozen, 2))
    starts[start] = last['delta'], params['delta'], deltas
  close(starts['pretrained'][0], starts['pretrained'][2][0], 0)
  close(starts['last'][0], starts['last'][2][-1], 0)
  close(starts['merged'][0], starts['merged'][1], 0)


def test_predicts_with_the_scaled_merge_of_task_vectors():
  method = merged(TOY, CAPACITY, peft=FC, rule='average', scale=0.5)
  frozen, params, memory, deltas = learnt(method)
  want = jax.tree.map(
    lambda base, *rest: base + 0.5 * (sum(rest) / 3 - base), deltas[0], *deltas[1:]
  )
  close(params['delta'], want)
  x = batch(TOY.inputs.shape, range(7), 77).x
  features = model(TOY, FC).features(frozen, want, x)
  logits = method.head.logits(params['head'], features)
  np.testing.assert_allclose(method.predict(params, memory, env(frozen, 2), x), logits, atol=1e-5)


def test_a_mean_of_products_is_the_mean_of_changed_weights():
  """For dense merges, and for factors of full rank."""
  x = batch(TOY.inputs.shape, range(7), 77).x
  found = {}
  for of in ('products', 'dense', 'leaves'):
    method = merged(TOY, CAPACITY, peft=FULL_RANK, of=of)
    frozen, params, memory, deltas = learnt(method)
    found[of] = method.predict(params, memory, env(frozen, 2), x)
  mean = sum(d['block_0/fc'].a @ d['block_0/fc'].b for d in deltas[1:]) / 3
  kernel = frozen['block_0']['fc']['kernel'] + 9 / 6 * mean
  changed = {'block_0': {'fc': {**frozen['block_0']['fc'], 'kernel': kernel}}}
  net = model(TOY, linear_probe())
  want = method.head.logits(params['head'], net.features(changed, {}, x))
  np.testing.assert_allclose(found['dense'], want, atol=1e-5)
  np.testing.assert_allclose(found['products'], want, atol=1e-4)
  assert np.abs(found['leaves'] - want).max() > 1e-3


def test_factors_are_the_best_of_their_rank():
  rng = np.random.default_rng(0)
  whole = rng.normal(size=(5, 4))
  like = {'fc': lora_delta(rng, 2)}
  found = products(factors({'fc': jnp.float32(whole)}, like))['fc']
  u, s, v = np.linalg.svd(whole)
  np.testing.assert_allclose(found, u[:, :2] * s[:2] @ v[:2], atol=1e-5)


def lora_delta(rng, rank):
  from pecft_jax.peft.lowrank.lora import LoraDelta

  return LoraDelta(jnp.float32(rng.normal(size=(5, rank))), jnp.float32(rng.normal(size=(rank, 4))))


def test_cofima_weights_by_the_fisher_information_of_each_task():
  method = merged(TOY, CAPACITY, peft=FC, rule='fisher', start='merged')
  frozen, params, memory, _ = learnt(method, 1)
  last = params['delta']
  params = {**params, 'delta': shaken(params['delta'], 5)}
  some = batch(TOY.inputs.shape, CLASSES[1], 3)
  before = memory
  gather, merge = method.phases
  memory = gather.hook(params, memory, env(frozen, 1), some)

  def likelihood(delta, x, y):
    out = method.forward({**params, 'delta': delta}, memory, env(frozen, 1), x[None], None)
    logits = jnp.where(env(frozen, 1).task.seen, out.logits[0], -jnp.inf)
    return jax.nn.log_softmax(logits)[y]

  grads = [jax.grad(likelihood)(params['delta'], x, y)
           for x, y, valid in zip(some.x, some.y, some.valid, strict=True) if valid]  # fmt: skip
  fisher = mean_of([jax.tree.map(jnp.square, g) for g in grads])
  close(jax.tree.map(lambda s: s / some.valid.sum(), memory['squares']), fisher, 1e-6)
  after, _ = merge.hook(params, memory, env(frozen, 1), jax.random.key(0))
  old, new = before['state']['fisher'], jax.tree.map(lambda f: jnp.minimum(f, 1e-4), fisher)
  want = jax.tree.map(
    lambda m, now, f0, f1: np.where(
      f0 + f1 > 0, (0.6 * f0 * m + 0.4 * f1 * now) / np.maximum(0.6 * f0 + 0.4 * f1, 1e-30),
      0.6 * m + 0.4 * now
    ),
    last, params['delta'], old, new,
  )  # fmt: skip
  close(after['delta'], want, 1e-4)


def test_a_rule_may_be_made_by_hand():
  method = merged(TOY, CAPACITY, peft=FC, rule=dare(0.5, ties(0.4)))
  assert method.settings['rule']['rule']['density'] == 0.4
  assert np.isfinite(jax.tree.leaves(learnt(method)[1]['delta'])[0]).all()


@pytest.mark.parametrize('options, message', [
  ({'of': 'products', 'rule': 'fisher'}, 'Fisher information'),
  ({'of': 'dense', 'start': 'merged'}, 'no start of training'),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    merged(TOY, CAPACITY, peft=FC, **options)
