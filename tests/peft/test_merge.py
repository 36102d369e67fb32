"""Merging, and the weight-space form with models that know nothing of sites."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_vit import shaken

from pecft_jax.peft import (
  adaptformer,
  chain,
  dora,
  full,
  ia3,
  ln_tuning,
  lora,
  merge_error,
  merged,
  prefix,
  unmerge,
  vpt_deep,
  weight_sites,
)

X = jax.random.normal(jax.random.key(0), (4, 5))
PLAIN = {
  'fc1': {'w': jax.random.normal(jax.random.key(1), (5, 7)), 'b': jnp.ones(7)},
  'fc2': {'w': jax.random.normal(jax.random.key(2), (7, 3)), 'b': jnp.ones(3)},
}
TRANSFORMS = {
  'lora': lora('fc1|fc2', rank=2),
  'dora': dora('fc1', rank=2),
  'ia3': ia3('fc1', 'fc2'),
  'full': full(),
  'chain': chain(a=lora('fc2', rank=2), b=ia3('fc1', 'fc2')),
}


def plain(params, x):
  hidden = jnp.tanh(x @ params['fc1']['w'] + params['fc1']['b'])
  return hidden @ params['fc2']['w'] + params['fc2']['b']


class Model(nnx.Module):
  def __init__(self, rngs):
    self.blocks = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(5, rngs=rngs)
    self.fc1, self.fc2 = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = x + block(x)
    return self.fc2(jnp.tanh(self.fc1(self.norm(x))))


def assert_can_be_tuned(apply, params, peft):
  start = peft.init(jax.random.key(3), weight_sites(params), params)
  np.testing.assert_allclose(apply(peft.merge(start, params), X), apply(params, X), atol=1e-6)
  step = jax.jit(jax.value_and_grad(lambda d, p: (apply(peft.merge(d, p), X) ** 2).mean()))
  delta = shaken(start, 4)
  loss, grads = step(delta, params)
  better, _ = step(jax.tree.map(lambda d, g: d - 1e-3 * g, delta, grads), params)
  assert better < loss


@pytest.mark.parametrize('name', TRANSFORMS)
def test_any_function_of_a_tree_of_weights_can_be_tuned(name):
  assert_can_be_tuned(plain, PLAIN, TRANSFORMS[name])


@pytest.mark.parametrize('peft', [lora('blocks/1|fc1', rank=2), ln_tuning(), full()])
def test_an_nnx_model_can_be_tuned(peft):
  graph, state = nnx.split(Model(nnx.Rngs(0)))

  def apply(params, x):
    own = jax.tree.map(lambda leaf: leaf, state)  # What is put in stays in this copy.
    nnx.replace_by_pure_dict(own, params)
    return nnx.merge(graph, own)(x)

  assert_can_be_tuned(apply, nnx.to_pure_dict(state), peft)


@pytest.mark.parametrize('peft', [prefix(), vpt_deep(), adaptformer(), chain(a=lora(), b=prefix())])
def test_what_is_no_change_of_weights_cannot_be_merged(tiny, peft):
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  with pytest.raises(ValueError, match=r'cannot be merged.*apply it with peft= instead'):
    merged(peft, delta, tiny.params)


def test_only_the_replaced_leaves_are_kept(tiny):
  delta = shaken(lora('block_1/attn/q').init(jax.random.key(0), tiny.model.sites, tiny.params), 1)
  together = merged(lora(), delta, tiny.params)
  assert list(together.originals) == ['block_1/attn/qkv/kernel']
  assert together.params['block_0'] == tiny.params['block_0']


def test_merging_and_unmerging_work_under_jit(tiny):
  peft = lora()
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)

  @jax.jit
  def both(params):
    together = merged(peft, delta, params)
    return together.params, unmerge(together), jnp.asarray(len(together.originals))

  there, back, count = both(tiny.params)
  assert count == 3  # One fused kernel in each block.
  assert (
    there['block_0']['attn']['qkv']['kernel'] != tiny.params['block_0']['attn']['qkv']['kernel']
  ).any()
  chex.assert_trees_all_equal(back, tiny.params)


def test_the_error_of_merging_into_half_precision_is_reported(tiny):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
  delta = shaken(lora().init(jax.random.key(0), tiny.model.sites, half), 1, 0.1)
  coarse = merge_error(tiny.model.apply, lora(), delta, half, tiny.images)
  fine = merge_error(tiny.model.apply, lora(), delta, tiny.params, tiny.images)
  assert fine < 2e-5
  assert coarse > 1e-3
