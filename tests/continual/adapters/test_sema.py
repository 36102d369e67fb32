import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import sema
from pecft_jax.continual.core import normalised
from pecft_jax.peft import adaptformer, at_layers, lora

from ..tiny import CAPACITY, CLASSES, MODEL, batch, env, equal, frozen_of, shaken

KEY = jax.random.key(0)
PATH = 'block_0/mlp'
# Blocks grow by what their data say: 1e9 and 0 are never and always.
NEVER, ALWAYS = 1e9, 0.0


def made(threshold=2.0, experts=3):
  return sema(
    MODEL, CAPACITY, peft=adaptformer(width=3), experts=experts, growing=1, threshold=threshold,
    hidden=5,
  )  # fmt: skip


def through(method, tasks=2):
  """Memory after each task, with untrained but shaken experts."""
  frozen = frozen_of(MODEL)
  params, memory = method.init(KEY, frozen)
  found = [(params, memory)]
  for t in range(tasks):
    where, some = env(frozen, t), batch(MODEL.inputs.shape, CLASSES[t], t, rows=9)
    params, memory = method.begin_task(params, memory, where, KEY)
    memory = method.prepare(params, memory, where, some)
    params, memory = method.phases[0].hook(params, memory, where, KEY)
    params = shaken(params, 10 + t)
    memory = method.consolidate(params, memory, where, some)
    params, memory = method.end_task(params, memory, where)
    found.append((params, memory))
  return frozen, found


def test_the_first_task_adds_an_expert_and_data_decide_about_more():
  for threshold, used in ((NEVER, [0, 1, 1, 1]), (ALWAYS, [0, 1, 2, 3])):
    _, found = through(made(threshold), 3)
    assert [int(memory['used'][PATH]) for _, memory in found] == used


def test_a_full_block_grows_no_more_and_old_experts_never_change():
  _, found = through(made(ALWAYS, experts=2), 3)
  assert int(found[3][1]['used'][PATH]) == 2
  for kind in ('experts', 'coders', 'errors'):
    equal(found[3][1][kind], found[2][1][kind])
    first = lambda tree: jax.tree.map(lambda a: a[0], tree)
    equal(first(found[2][1][kind]), first(found[1][1][kind]))


def test_the_model_is_the_sum_of_gated_adapters_beside_the_branch():
  method = made(ALWAYS)
  frozen, found = through(method, 2)
  params, memory = found[2]
  some = batch(MODEL.inputs.shape, CLASSES[1], 5)
  out = method.forward(params, memory, env(frozen, 1), some.x, None)
  experts, peft = memory['experts'][PATH], adaptformer(width=3)
  taken: dict = {}

  def by_hand(delta, site, next_fn, *args):
    if site.kind != 'sublayer' or site.path != PATH:
      return next_fn(*args)
    y = next_fn(*args)
    mean = np.asarray(args[0]).mean(1)
    scores = np.exp(mean @ np.asarray(experts.column[:2]).T + np.asarray(experts.bias[:2]))
    gate = scores / scores.sum(1, keepdims=True)
    taken['gate'] = gate
    total = y
    for e in range(2):
      a = jax.tree.map(lambda leaf, e=e: leaf[e], experts.adapter)
      hidden = jax.nn.relu(args[0] @ a.down + a.down_bias)
      total = total + gate[:, e, None, None] * 0.1 * (hidden @ a.up + a.up_bias)
    return total

  x = normalised(MODEL.inputs, jnp.asarray(some.x))
  plain = peft._replace(intercept=by_hand, with_dropout=None)
  pooled = MODEL.apply(frozen, x, {}, peft=plain).pooled
  np.testing.assert_allclose(out.features, pooled, atol=1e-4)
  assert (taken['gate'] > 0).all()


@pytest.mark.parametrize(('threshold', 'trained'), [(NEVER, False), (ALWAYS, True)])
def test_only_the_new_expert_its_column_and_the_head_are_trained(threshold, trained):
  method = made(threshold)
  frozen, found = through(method, 1)
  params, memory = found[1]
  where, some = env(frozen, 1), batch(MODEL.inputs.shape, CLASSES[1], 5)
  params, memory = method.begin_task(params, memory, where, KEY)
  memory = method.prepare(params, memory, where, some)
  params, memory = method.phases[0].hook(params, memory, where, KEY)
  grads = jax.grad(lambda p: method.loss(p, memory, where, some, None)[0])(shaken(params, 3))
  assert np.asarray(grads['head'].kernel).any()
  assert bool(np.asarray(grads['new'][PATH].column).any()) == trained
  assert bool(np.asarray(grads['new'][PATH].adapter.up).any()) == trained
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads['coder']))


@pytest.mark.parametrize('grows', [False, True])
def test_descriptors_of_blocks_that_do_not_grow_are_not_fitted(grows):
  method = made()
  frozen, found = through(method, 1)
  params, memory = found[1]
  memory = {**memory, 'grows': {PATH: jnp.asarray(grows)}}
  some, fit = batch(MODEL.inputs.shape, CLASSES[1], 5), method.phases[1]
  assert fit.trains == ('coder',) and fit.after == 'train'
  loss = lambda p: fit.loss(p, memory, env(frozen, 1), some, KEY)
  value, grads = jax.value_and_grad(loss)(params)
  assert bool(value > 0) == grows
  assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads['coder'])) == grows


def test_what_cannot_be_an_expert_is_refused_at_construction():
  with pytest.raises(ValueError, match=r"bottleneck adapter at every site.*'LoraDelta'"):
    sema(MODEL, CAPACITY, peft=lora(rank=2))
  with pytest.raises(ValueError, match='without dropout'):
    sema(MODEL, CAPACITY, peft=adaptformer(width=3, dropout=0.1))
  with pytest.raises(ValueError, match='experts must be at least 1, got 0'):
    sema(MODEL, CAPACITY, experts=0)
  with pytest.raises(ValueError, match='hidden must be at least 1, got 0'):
    sema(MODEL, CAPACITY, hidden=0)
  deep = MODEL._replace(depth=2)
  with pytest.raises(ValueError, match='adapters in the last 1 of 2 blocks'):
    sema(deep, CAPACITY, peft=at_layers(adaptformer(width=3), [0]), growing=1)
