"""Dropout of transforms: in training alone, unbiased, and the same wherever it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import (
  adaptformer,
  at_layers,
  bank,
  chain,
  compacter,
  compacter_pp,
  delora,
  hira,
  houlsby,
  linear_probe,
  lora,
  lora_fa,
  lora_xs,
  milora,
  miss,
  orthonormal_lora,
  parallel_adapter,
  pfeiffer,
  randlora,
  rslora,
  take,
  weight_sites,
)
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.noise import Noisy, dropper
from pecft_jax.typing import Site

RATE = 0.3
KEY = jax.random.key(3)
NOISY = {
  'lora': lora('attn|mlp', 3, dropout=RATE),
  'houlsby': houlsby(5, dropout=RATE),
  'adaptformer': adaptformer(5, 1.0, dropout=RATE),
  'compacter': compacter(6, 2, dropout=RATE),
  'miss': miss('attn|mlp', 5, dropout=RATE),
  'chain': chain(a=lora('attn', 2, dropout=RATE), b=adaptformer(5, 1.0), c=linear_probe()),
  'layers': at_layers(lora('attn', 2, dropout=RATE), [1]),
  'bank': bank(lora('attn/q$', 2, dropout=RATE), 2),
}


def shaken(tree, key):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(key, len(leaves))
  new = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(structure, new)


@pytest.fixture(scope='module', params=NOISY)
def pooled(request, tiny):
  """`(key, kind of model) -> [7, D]`, and the delta."""
  peft = NOISY[request.param]
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), jax.random.key(1))

  def compiled(backbone, params):
    call = lambda delta, key: backbone.apply(params, tiny.images, delta, peft=peft, key=key).pooled
    return jax.jit(call)

  calls = {
    'loop': compiled(tiny.model, tiny.params),
    'scan': compiled(tiny.stacked, tiny.stacked_params),
  }
  return lambda key=None, delta=delta, way='loop': calls[way](delta, key), delta


def test_a_key_makes_the_difference(pooled):
  run, _ = pooled
  np.testing.assert_array_equal(run(), run())
  np.testing.assert_array_equal(run(KEY), run(KEY))
  assert np.abs(run() - run(KEY)).max() > 1e-3
  assert np.abs(run(jax.random.key(4)) - run(KEY)).max() > 1e-3


def test_loop_and_scan_drop_the_same(pooled):
  run, _ = pooled
  np.testing.assert_allclose(run(KEY, way='scan'), run(KEY), atol=1e-5)


def test_gradients_are_those_of_what_was_kept(pooled):
  """Along the gradient, against differences of the loss with the same key."""
  run, delta = pooled
  weights = jax.random.normal(jax.random.key(6), run().shape)
  loss = lambda delta: (weights * run(KEY, delta)).sum()
  grads = jax.grad(loss)(delta)
  norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
  move = lambda t: jax.tree.map(lambda a, g: a + t * g / norm, delta, grads)
  # Float32 tells differences of the loss to about a thousandth of norm x step.
  step = 2e-3
  np.testing.assert_allclose((loss(move(step)) - loss(move(-step))) / (2 * step), norm, rtol=0.02)


def test_a_share_of_entries_is_dropped_and_the_mean_is_kept():
  x = jnp.ones((400, 500))
  found = np.asarray(dropper(KEY, RATE)(x))
  assert set(np.unique(found)) == {np.float32(0), np.float32(1 / (1 - RATE))}
  # Three standard deviations of a mean of 200,000.
  assert abs((found == 0).mean() - RATE) < 3 * np.sqrt(RATE * (1 - RATE) / x.size)


def test_lora_drops_inputs_of_its_own_product_alone():
  """With A and B the identity, the update is the input as it was dropped."""
  params = {'fc': {'kernel': jnp.ones((6, 6)), 'bias': jnp.ones(6)}}
  peft = lora('fc', 6, alpha=6, dropout=RATE)
  assert set(peft.init(KEY, weight_sites(params), params)) == {'fc'}
  noisy = peft.with_dropout({'fc': LoraDelta(jnp.eye(6), jnp.eye(6))}, KEY)
  x = jax.random.normal(jax.random.key(1), (50, 4, 6))
  weights = params['fc'].values()
  y = peft.intercept(noisy, Site('linear', 'fc'), linear, x, *weights)
  update = np.asarray(y - linear(x, *weights))
  kept = np.abs(update) > 1e-4
  np.testing.assert_allclose(update[kept], np.asarray(x / (1 - RATE))[kept], atol=1e-4)
  assert abs((~kept).mean() - RATE) < 0.05


def test_sites_and_slots_are_dropped_apart(tiny):
  peft = bank(lora('attn/(q|v)$', 2, dropout=RATE), 2)
  delta = peft.with_dropout(peft.init(KEY, tiny.model.sites, tiny.params), KEY)
  keys = {tuple(jax.random.key_data(take(delta, s)[p].key).tolist()) for s in (0, 1) for p in delta}
  assert len(keys) == 2 * len(delta) > 4


FACTORIES = [
  lora, rslora, lora_fa, lora_xs, delora, milora, orthonormal_lora,
  *(functools.partial(factory, rank=2) for factory in (hira, miss, randlora)),
  houlsby, pfeiffer, parallel_adapter, adaptformer, compacter, compacter_pp,
]  # fmt: skip


@pytest.mark.parametrize('factory', FACTORIES)
def test_every_factory_hands_its_dropout_on(factory, tiny):
  init = lambda key: factory().init(key, tiny.model.sites, tiny.params)
  delta = jax.eval_shape(init, KEY)
  noisy = jax.eval_shape(factory(dropout=RATE).with_dropout, delta, KEY)
  assert noisy.keys() == delta.keys()
  # What sites share, as the matrices of Compacter, has no noise of its own.
  assert all(isinstance(leaf, Noisy) for path, leaf in noisy.items() if 'block_' in path)


def test_without_dropout_there_is_no_noise(tiny):
  del tiny
  assert lora('attn').with_dropout is None


@pytest.mark.parametrize('rate', [-0.1, 1.0, 1.5])
@pytest.mark.parametrize('factory', [lora, adaptformer])
def test_shares_that_cannot_be_dropped_are_refused(factory, rate):
  with pytest.raises(ValueError, match=r'expected a dropout in \[0, 1\)'):
    factory(dropout=rate)
