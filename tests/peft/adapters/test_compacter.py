"""Compacter, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import noise, wide
from tiny_vit import shaken

from pecft_jax.peft import CompacterDelta, bottleneck, compacter, compacter_pp
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.peft.adapters.compacter import kronecker_sum
from pecft_jax.typing import Site


def test_a_weight_is_a_sum_of_kronecker_products():
  rule, left, right = noise(3, 3, 3), noise(3, 4, seed=2), noise(3, 2, seed=3)
  want = sum(np.kron(wide(a), np.outer(wide(s), wide(t)))
             for a, s, t in zip(rule, left, right, strict=True))  # fmt: skip
  np.testing.assert_allclose(kronecker_sum(rule, left, right), want, atol=1e-5)


def test_equals_an_adapter_with_these_weights():
  site, x, rule = Site('sublayer', 'block_0/mlp'), noise(2, 3, 8), noise(2, 2, 2)
  leaf = CompacterDelta(
    noise(2, 4), noise(2, 3), noise(6), noise(2, 3, seed=2), noise(2, 4, seed=3), noise(8)
  )
  plain = BottleneckDelta(
    kronecker_sum(rule, leaf.down_left, leaf.down_right), leaf.down_bias,
    kronecker_sum(rule, leaf.up_left, leaf.up_right), leaf.up_bias,
  )  # fmt: skip
  branch = lambda x, stream: 2 * x
  own = compacter(width=6, factors=2).intercept({'rule': rule, site.path: leaf}, site, branch, x, x)
  want = bottleneck('mlp', width=6).intercept({site.path: plain}, site, branch, x, x)
  np.testing.assert_allclose(own, want, atol=1e-6)


def test_layers_share_the_matrices(tiny):
  delta = compacter(width=4).init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert len(delta) == 1 + 2 * 3
  size = sum(leaf.size for leaf in jax.tree.leaves(delta))
  assert size == 4**3 + 6 * (2 * (24 + 4) + 4 + 24)
  assert len(compacter_pp(width=4).init(jax.random.key(0), tiny.model.sites, tiny.params)) == 1 + 3


def test_dropout_is_of_the_hidden_units(tiny):
  peft = compacter_pp(width=4, dropout=0.5)
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)
  apply = lambda delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  first, again, other = (apply(peft.with_dropout(delta, jax.random.key(k))) for k in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert jnp.abs(first - other).max() > 1e-3
  assert compacter(width=4).with_dropout is None


def test_bad_sizes_are_refused(tiny):
  with pytest.raises(ValueError, match='width must be at least 1, got 0'):
    compacter(width=0)
  with pytest.raises(ValueError, match='spread must be positive, got 0'):
    compacter(spread=0.0)
  for width, factors in ((6, 4), (5, 5)):  # The bottleneck's, and that of tokens.
    with pytest.raises(ValueError, match=rf'bottleneck, {width}, .* 24, got {factors}'):
      compacter(width, factors).init(jax.random.key(0), tiny.model.sites, tiny.params)
