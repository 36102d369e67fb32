"""Bottleneck adapters: where they read and what they add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import adaptformer, bottleneck, houlsby, parallel_adapter, pfeiffer
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.typing import Site

SITE = Site('sublayer', 'block_0/mlp')
X = jax.random.normal(jax.random.key(0), (2, 5, 6))
LEAF = shaken(
  BottleneckDelta(jnp.zeros((6, 3)), jnp.zeros(3), jnp.zeros((3, 6)), jnp.zeros(6)), 1, 1.0
)


STREAM = 3.0 + X * X


def branch(x, stream=None):
  return jnp.sin(3 * x)[:, :4]  # Gives back fewer rows than it reads.


@pytest.mark.parametrize(
  ('peft', 'parallel', 'scale', 'activation'),
  [
    (bottleneck('mlp', 3), False, 1, jax.nn.gelu),
    (houlsby(3), False, 1, jax.nn.gelu),
    (pfeiffer(3), False, 1, jax.nn.relu),
    (parallel_adapter(3), True, 4, jax.nn.relu),
    (adaptformer(3), True, 0.1, jax.nn.relu),
    (bottleneck('mlp', 3, parallel=True, scale=2, activation=jnp.tanh), True, 2, jnp.tanh),
  ],
)
def test_adds_a_small_mlp(peft, parallel, scale, activation):
  y = branch(X)
  read = X[:, :4] if parallel else y
  expected = y + scale * (activation(read @ LEAF.down + LEAF.down_bias) @ LEAF.up + LEAF.up_bias)
  got = peft.intercept({SITE.path: LEAF}, SITE, branch, X, STREAM)
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('peft', 'ends'),
  [
    (houlsby(3), ['attn', 'mlp']),
    (pfeiffer(3), ['mlp']),
    (parallel_adapter(3), ['mlp']),
    (adaptformer(3), ['mlp']),
  ],
)
def test_places(tiny, peft, ends):
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert sorted(delta) == sorted(f'block_{i}/{end}' for i in range(3) for end in ends)


def test_only_the_down_projection_starts_away_from_zero(tiny):
  delta = adaptformer(5).init(jax.random.key(0), tiny.model.sites, tiny.params)['block_1/mlp']
  bound = np.sqrt(1 / 24)
  assert delta.down.shape == (24, 5) and bound / 2 < np.abs(delta.down).max() <= bound
  assert not any(leaf.any() for leaf in (delta.down_bias, delta.up, delta.up_bias))


def test_a_parallel_adapter_may_read_what_comes_before_the_norm():
  peft = adaptformer(3, read='residual')
  added = jax.nn.relu(STREAM[:, :4] @ LEAF.down + LEAF.down_bias) @ LEAF.up + LEAF.up_bias
  got = peft.intercept({SITE.path: LEAF}, SITE, branch, X, STREAM)
  np.testing.assert_allclose(got, branch(X) + 0.1 * added, atol=1e-5)
  with pytest.raises(ValueError, match='is of parallel adapters'):
    bottleneck('mlp', 3, read='residual')


def test_a_width_below_one_is_refused():
  with pytest.raises(ValueError, match='width of at least 1, got 0'):
    bottleneck('mlp', 0)
