"""AdapterFusion, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import noise, wide
from tiny_vit import shaken

from pecft_jax.peft import adapter_fusion, combine, parallel_adapter, pfeiffer, split_kept
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.typing import Site, SiteSpec

SITE = Site('sublayer', 'block_0/mlp')
X, STREAM, Y = (noise(2, 5, 6, seed=seed) for seed in range(3))


def adapter(seed):
  shapes = (6, 3), (3,), (3, 6), (6,)
  return BottleneckDelta(*(noise(*shape, seed=10 * seed + i) for i, shape in enumerate(shapes)))


def added(leaf, x):
  hidden = np.maximum(wide(x) @ wide(leaf.down) + wide(leaf.down_bias), 0)
  return hidden @ wide(leaf.up) + wide(leaf.up_bias)


@pytest.mark.parametrize(('make', 'read', 'scale'), [(pfeiffer, Y, 1), (parallel_adapter, X, 4)])
def test_each_token_takes_from_all_adapters(make, read, scale):
  deltas = [{SITE.path: adapter(seed)} for seed in (1, 2, 3)]
  peft = adapter_fusion(make(3), deltas)
  tokens = jax.ShapeDtypeStruct((1, 5, 6), 'float32')
  spec = SiteSpec(SITE, (tokens, tokens), tokens)
  leaf = peft.init(jax.random.key(0), [spec], {})[SITE.path]
  active, kept = split_kept(leaf)
  leaf = combine(shaken(active, 1, 0.3), kept)
  found = peft.intercept({SITE.path: leaf}, SITE, lambda x, stream: Y, X, STREAM)
  outs = np.stack([scale * added(delta[SITE.path], read) for delta in deltas], 2)
  query = wide(Y) @ wide(leaf.query) + wide(leaf.query_bias)
  keys = outs @ wide(leaf.key) + wide(leaf.key_bias)
  weights = np.exp(np.einsum('btd,btnd->btn', query, keys))
  weights /= weights.sum(-1, keepdims=True)
  want = wide(Y) + np.einsum('btn,btnd->btd', weights, outs) @ wide(leaf.value)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-3)
  apart = 0.01 * np.square(wide(leaf.value) - np.eye(6)).sum()
  np.testing.assert_allclose(peft.penalty({SITE.path: leaf}), apart, rtol=1e-5)


def several(tiny, count=2):
  plain = pfeiffer(3)
  fresh = lambda seed: plain.init(jax.random.key(seed), tiny.model.sites, tiny.params)
  return plain, [shaken(fresh(seed), seed, 0.5) for seed in range(count)]


def test_adapters_are_kept_and_all_else_is_trained(tiny):
  plain, deltas = several(tiny)
  peft = adapter_fusion(plain, deltas)
  start = peft.init(jax.random.key(5), tiny.model.sites, tiny.params)
  np.testing.assert_array_equal(
    start['block_1/mlp'].adapters.value.up[1], deltas[1]['block_1/mlp'].up
  )
  active, kept = split_kept(start)
  apply = lambda active: (
    tiny.model.apply(tiny.params, tiny.images, combine(active, kept), peft=peft).pooled
  )
  grads = jax.grad(lambda active: jnp.square(apply(active) - 1).mean())(shaken(active, 1, 0.1))
  of_key = lambda path: 'key_bias' in str(path[-1])  # Softmax does not see it.
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert (np.abs(grad).max() > 1e-7) != of_key(path), path


def test_equal_adapters_are_that_adapter_at_the_start(tiny):
  plain, (delta, _) = several(tiny)
  peft = adapter_fusion(plain, [delta, delta, delta])
  start = peft.init(jax.random.key(5), tiny.model.sites, tiny.params)
  apply = lambda model, params, delta, peft: (
    model.apply(params, tiny.images, delta, peft=peft).pooled
  )
  want = apply(tiny.model, tiny.params, delta, plain)
  got = apply(tiny.model, tiny.params, start, peft)
  np.testing.assert_allclose(got, want, atol=1e-4)
  got = jax.jit(lambda start: apply(tiny.stacked, tiny.stacked_params, start, peft))(start)
  np.testing.assert_allclose(got, want, atol=1e-4)
  half = tiny.half.apply(tiny.params, tiny.images, start, peft=peft).pooled
  np.testing.assert_allclose(half, want, atol=0.1)


def test_deltas_that_do_not_fit_are_refused(tiny):
  plain, (one, two) = several(tiny)
  with pytest.raises(ValueError, match='at least two deltas, got 1'):
    adapter_fusion(plain, [one])
  with pytest.raises(ValueError, match=r'others at .*block_2/mlp/down.* of deltas 0 and 1'):
    adapter_fusion(plain, [one, {name: two[name] for name in two if 'block_2' not in name}])
  with pytest.raises(ValueError, match=r"no 'sublayer' sites \['block_1/mlp', 'block_2/mlp'\]"):
    params = {name: tiny.params[name] for name in tiny.params if name not in ('block_1', 'block_2')}
    adapter_fusion(plain, [one, two]).init(jax.random.key(0), tiny.shallow.sites, params)
