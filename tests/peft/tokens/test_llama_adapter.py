"""Gated attention to learned keys and values, against numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from layers import noise, wide

from pecft_jax.backbones.core.attention import attend
from pecft_jax.masks import Mask
from pecft_jax.peft import LlamaAdapterDelta, llama_adapter
from pecft_jax.typing import Site

SITE = Site('attend', 'block_0/attn')
Q, K, V = noise(2, 5, 6, 4), noise(2, 5, 2, 4, seed=2), noise(2, 5, 2, 4, seed=3)
LEAF = LlamaAdapterDelta(noise(7, 2, 4, seed=4), noise(7, 2, 4, seed=5), jnp.array([0.3]))


def through(leaf, mask=None):
  return wide(llama_adapter().intercept({SITE.path: leaf}, SITE, attend, Q, K, V, mask))


def test_the_learned_part_has_a_softmax_of_its_own():
  got = through(LEAF) - wide(attend(Q, K, V, None))
  for head in range(6):
    scores = wide(Q)[:, :, head] @ wide(LEAF.k)[:, head // 3].T / 2
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    want = 0.3 * shares @ wide(LEAF.v)[:, head // 3]
    np.testing.assert_allclose(got[:, :, head], want, atol=1e-5)


def test_no_mask_hides_it():
  causal = Mask(causal=True)
  added = through(LEAF, causal) - wide(attend(Q, K, V, causal))
  np.testing.assert_allclose(added, through(LEAF) - wide(attend(Q, K, V, None)), atol=1e-5)


def test_a_closed_gate_changes_nothing():
  closed = LEAF._replace(gate=jnp.zeros(1))
  np.testing.assert_array_equal(through(closed), wide(attend(Q, K, V, None)))


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    llama_adapter(length=0)
  with pytest.raises(ValueError, match='spread must be positive, got 0'):
    llama_adapter(spread=0.0)
