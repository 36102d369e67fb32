"""Selective methods: which weights they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft import at_layers, bitfit, full, linear_probe, ln_tuning, partial, select_weights
from pecft_jax.peft.leaves import read_leaves


def names(tiny, peft):
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  stored_otherwise = peft.init(jax.random.key(0), tiny.stacked.sites, tiny.stacked_params)
  assert set(delta) == set(stored_otherwise)
  return set(delta)


def test_full_is_every_leaf(tiny):
  assert names(tiny, full()) == set(read_leaves(tiny.params, tiny.model.sites))


def test_bitfit_is_every_bias(tiny):
  every = set(read_leaves(tiny.params, tiny.model.sites))
  assert names(tiny, bitfit()) == {name for name in every if name.endswith('/bias')}
  assert 'block_0/ln1/bias' in names(tiny, bitfit())


def test_ln_tuning_is_every_norm(tiny):
  norms = [f'block_{i}/ln{j}' for i in range(3) for j in (1, 2)] + ['norm']
  assert names(tiny, ln_tuning()) == {
    f'{norm}/{leaf}' for norm in norms for leaf in ('scale', 'bias')
  }


def test_partial_is_the_last_blocks(tiny):
  chosen = names(tiny, partial(2))
  assert {name.split('/')[0] for name in chosen} == {'block_1', 'block_2'}
  assert chosen == names(tiny, select_weights('^block_[12]/'))


def test_linear_probe_is_nothing(tiny):
  assert names(tiny, linear_probe()) == set()


def test_layers_restrict_weights_too(tiny):
  assert names(tiny, at_layers(full(), [1])) == names(tiny, select_weights('^block_1/'))


def test_one_projection_of_a_fused_weight_can_be_trained_alone(tiny):
  peft = select_weights('block_1/attn/q/bias')
  delta = peft.init(jax.random.key(0), tiny.stacked.sites, tiny.stacked_params)
  after = peft.replace(jax.tree.map(lambda leaf: leaf + 1, delta), tiny.stacked_params)
  change = (
    after['blocks']['attn']['qkv']['bias'] - tiny.stacked_params['blocks']['attn']['qkv']['bias']
  )
  expected = np.zeros((3, 3, 24))
  expected[1, 0] = 1
  np.testing.assert_allclose(change, expected, atol=1e-6)


def test_half_precision_weights_are_trained_in_float32(tiny):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
  delta = bitfit().init(jax.random.key(0), tiny.model.sites, half)
  assert {leaf.dtype for leaf in delta.values()} == {jnp.dtype('float32')}
  assert bitfit().replace(delta, half)['norm']['bias'].dtype == jnp.float32


def test_an_unmatched_pattern_lists_the_leaves(tiny):
  with pytest.raises(ValueError, match=r"no leaf matches 'query'; leaves: \['block_0/attn/"):
    select_weights('query').init(jax.random.key(0), tiny.model.sites, tiny.params)


def test_more_blocks_than_there_are_is_refused(tiny):
  with pytest.raises(ValueError, match=r'last 4 blocks: the model has blocks \[0, 1, 2\]'):
    partial(4).init(jax.random.key(0), tiny.model.sites, tiny.params)
  with pytest.raises(ValueError, match='k must be at least 1, got 0'):
    partial(0)
