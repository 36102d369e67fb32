"""Prefix tuning by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.backbones.core.attention import attend
from pecft_jax.peft import at_layers, prefix
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.typing import Site

SITE = Site('attend', 'block_0/attn')
Q, K, V = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))  # B=2, T=5, H=3, K=4
LEAF = PrefixDelta(*jax.random.normal(jax.random.key(1), (2, 6, 3, 4)))  # P=6


def through(leaf, mask=None):
  return prefix().intercept({SITE.path: leaf}, SITE, attend, Q, K, V, mask)


def test_attends_to_the_prefix_and_the_tokens():
  scores = jnp.einsum('bqhk,bthk->bhqt', Q, K) / 2
  learned = jnp.einsum('bqhk,phk->bhqp', Q, LEAF.k) / 2
  weights = jax.nn.softmax(jnp.concatenate([learned, scores], -1), -1)
  expected = jnp.einsum('bhqp,phk->bqhk', weights[..., :6], LEAF.v)
  expected += jnp.einsum('bhqt,bthk->bqhk', weights[..., 6:], V)
  np.testing.assert_allclose(through(LEAF), expected, atol=1e-5)


def test_the_mask_hides_tokens_but_never_the_prefix():
  causal = jnp.tril(jnp.ones((5, 5), bool))
  masked, plain = through(LEAF, causal), through(LEAF)
  np.testing.assert_allclose(masked[:, -1], plain[:, -1], atol=1e-5)  # The last token sees all.
  first = attend(
    Q[:, :1],
    jnp.concatenate([jnp.broadcast_to(LEAF.k, (2, 6, 3, 4)), K[:, :1]], 1),
    jnp.concatenate([jnp.broadcast_to(LEAF.v, (2, 6, 3, 4)), V[:, :1]], 1),
    None,
  )
  np.testing.assert_allclose(masked[:, :1], first, atol=1e-5)


def test_a_prefix_for_each_example_equals_vmap(tiny):
  peft = at_layers(prefix(length=4), [0, 1])
  one = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  each = shaken(jax.tree.map(lambda leaf: jnp.stack([leaf] * 7), one), 1, 0.5)

  def apply(delta, images):
    return tiny.model.apply(tiny.params, images, delta, peft=peft).pooled

  one_by_one = jax.jit(jax.vmap(apply))(each, tiny.images[:, None])[:, 0]
  np.testing.assert_allclose(jax.jit(apply)(each, tiny.images), one_by_one, atol=2e-5)


def test_the_length_is_that_of_keys_and_of_values(tiny):
  delta = prefix(length=4).init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert delta['block_2/attn'].k.shape == delta['block_2/attn'].v.shape == (4, 2, 12)
  assert (delta['block_2/attn'].k != delta['block_2/attn'].v).all()


def test_a_length_below_one_is_refused():
  with pytest.raises(ValueError, match='length of at least 1, got 0'):
    prefix(length=0)
