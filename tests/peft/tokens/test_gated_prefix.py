"""Prefixes with gated scores, against numpy in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from layers import noise, wide

from pecft_jax.backbones.core.attention import attend
from pecft_jax.masks import Mask
from pecft_jax.peft import GatedPrefixDelta, gated_prefix, prefix
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.typing import Site

SITE = Site('attend', 'block_0/attn')
Q, K, V = noise(2, 5, 6, 4), noise(2, 5, 2, 4, seed=2), noise(2, 5, 2, 4, seed=3)
LEAF = GatedPrefixDelta(noise(7, 2, 4, seed=4), noise(7, 2, 4, seed=5), *jnp.array([1.7, -0.6]))
GATES = {
  'tanh': np.tanh,
  'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
  'gelu': lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}


def through(leaf, mask=None, gate='tanh'):
  peft = gated_prefix(gate=gate)
  return wide(peft.intercept({SITE.path: leaf}, SITE, attend, Q, K, V, mask))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('gate', GATES)
def test_scores_of_learned_keys_are_gated(gate, causal):
  q, k, v, leaf = wide(Q), wide(K), wide(V), [wide(part) for part in LEAF]
  found = through(LEAF, Mask(causal=True) if causal else None, gate)
  for head in range(6):
    scores = q[:, :, head] @ leaf[0][:, head // 3].T / 2
    scores = scores + leaf[3] * GATES[gate](leaf[2] * scores)
    own = np.einsum('bqk,btk->bqt', q[:, :, head], k[:, :, head // 3]) / 2
    if causal:
      own = np.where(np.tril(np.ones((5, 5), bool)), own, -np.inf)
    weights = np.exp(np.concatenate([scores, own], -1))
    weights /= weights.sum(-1, keepdims=True)
    want = weights[..., :7] @ leaf[1][:, head // 3]
    want += np.einsum('bqt,btk->bqk', weights[..., 7:], v[:, :, head // 3])
    np.testing.assert_allclose(found[:, :, head], want, atol=1e-5)


def test_without_alpha_it_is_a_prefix():
  plain = prefix().intercept({SITE.path: PrefixDelta(LEAF.k, LEAF.v)}, SITE, attend, Q, K, V, None)
  found = through(LEAF._replace(alpha=jnp.zeros(())))
  np.testing.assert_allclose(found, wide(plain), atol=1e-5)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    gated_prefix(length=0)
  with pytest.raises(ValueError, match=r"gate: expected one of \['tanh', 'sigmoid', 'gelu'\]"):
    gated_prefix(gate='relu')
