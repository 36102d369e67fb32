"""Adapters that are left out of the lowest blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import (
  adapter_drop,
  bitfit,
  chain,
  houlsby,
  lora,
  pfeiffer,
  prefix,
  without_lowest,
)


def started(tiny, peft):
  return shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)


def pooled(tiny, peft, delta, key=None):
  return tiny.model.apply(tiny.params, tiny.images, delta, peft=peft, key=key).pooled


def test_each_pass_of_training_leaves_out_some_of_the_lowest(tiny):
  peft = adapter_drop(chain(a=houlsby(3), b=lora(rank=2)), most=2)
  delta = started(tiny, peft)
  wanted = [pooled(tiny, peft, without_lowest(delta, n)) for n in range(3)]
  run = jax.jit(lambda key: pooled(tiny, peft, delta, key))
  scanned = jax.jit(
    lambda key: (
      tiny.stacked.apply(tiny.stacked_params, tiny.images, delta, peft=peft, key=key).pooled
    )
  )
  seen = set()
  for seed in range(12):
    got = run(jax.random.key(seed))
    gaps = [np.abs(got - want).max() for want in wanted]
    assert sorted(gaps)[0] < 1e-5 and sorted(gaps)[1] > 1e-3
    seen.add(int(np.argmin(gaps)))
    if seed < 2:
      np.testing.assert_allclose(scanned(jax.random.key(seed)), got, atol=2e-5)
  assert seen == {0, 1, 2}


def test_without_a_key_nothing_is_left_out(tiny):
  peft, plain = adapter_drop(pfeiffer(3), most=2), pfeiffer(3)
  delta = started(tiny, peft)
  want = pooled(tiny, plain, delta['adapters'])
  np.testing.assert_array_equal(pooled(tiny, peft, delta), want)


def test_what_is_left_out_has_no_gradient(tiny):
  peft = adapter_drop(pfeiffer(3), most=1)
  delta = started(tiny, peft)

  def gradient(key):
    grads = jax.grad(lambda delta: jnp.square(pooled(tiny, peft, delta, key) - 1).mean())(delta)
    return {path: np.abs(leaf.up).max() for path, leaf in grads['adapters'].items()}

  found = [gradient(jax.random.key(seed)) for seed in range(6)]
  assert {each['block_0/mlp'] > 0 for each in found} == {True, False}
  assert all(each['block_2/mlp'] > 0 for each in found)


def test_the_dropout_of_the_transform_stays(tiny):
  peft = adapter_drop(pfeiffer(3, dropout=0.5), most=1)
  delta = started(tiny, peft)
  outs = [pooled(tiny, peft, delta, jax.random.key(seed)) for seed in range(4)]
  for i, one in enumerate(outs):
    assert all(np.abs(one - other).max() > 1e-5 for other in outs[:i])


def test_blocks_are_those_of_a_stack():
  delta = {'text/block_0/mlp': 1, 'image/block_0/mlp': 2, 'norm': 3}
  assert without_lowest(delta, 1, stack='text') == {'image/block_0/mlp': 2, 'norm': 3}
  with pytest.raises(ValueError, match='no site of the delta is above its lowest 1 blocks'):
    without_lowest({'block_0/mlp': 1}, 1)


def test_transforms_that_cannot_be_left_out_are_refused(tiny):
  with pytest.raises(ValueError, match='most must be at least 1, got 0'):
    adapter_drop(pfeiffer(), most=0)
  with pytest.raises(ValueError, match='a transform that replaces no weights'):
    adapter_drop(bitfit(), most=1)
  peft = adapter_drop(prefix(length=2), most=1)
  with pytest.raises(ValueError, match=r'adapter_drop: .* changes what the site reads'):
    pooled(tiny, peft, started(tiny, peft), jax.random.key(0))
