"""Prefix tuning by a network, beside prefixes of the keys and values that it makes."""

import jax
import numpy as np
import pytest
from layers import wide
from tiny_vit import shaken

from pecft_jax.peft import prefix, prefix_mlp
from pecft_jax.peft.tokens.prefix_mlp import flat


def moved(tiny):
  delta = prefix_mlp(length=3, hidden=5).init(jax.random.key(0), tiny.model.sites, tiny.params)
  return shaken(delta, 1)


def test_the_network_has_two_layers_of_which_sites_share_the_first(tiny):
  delta = moved(tiny)
  shared, head = delta['prefix'], delta['block_1/attn']
  hidden = np.tanh(wide(shared.embeddings) @ wide(shared.kernel) + wide(shared.bias))
  for part in ('k', 'v'):
    kernel, bias = wide(getattr(head, part)), wide(getattr(head, f'{part}_bias'))
    want = (hidden @ kernel.reshape(5, 24)).reshape(3, 2, 12) + bias
    np.testing.assert_allclose(getattr(flat(delta)['block_1/attn'], part), want, atol=1e-5)


def test_equals_prefix_tuning_with_the_flat_prefix(tiny):
  delta = moved(tiny)
  apply = lambda peft, delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  own = apply(prefix_mlp(length=3, hidden=5), delta)
  np.testing.assert_allclose(own, apply(prefix(length=3), flat(delta)), atol=1e-6)


def test_the_count_is_the_documented_one(tiny):
  size = sum(leaf.size for leaf in jax.tree.leaves(moved(tiny)))
  assert size == 3 * 24 + (24 + 1) * 5 + 3 * 2 * (5 + 1) * 24


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    prefix_mlp(length=0)
  with pytest.raises(ValueError, match='hidden must be at least 1, got 0'):
    prefix_mlp(hidden=0)
