"""MIGU's masks of gradients, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import migu, weight_sites
from pecft_jax.peft.selective.migu import MiguDelta, large_outputs
from pecft_jax.typing import Site

RNG = np.random.default_rng(0)
X, G = RNG.normal(size=(3, 4, 6)), RNG.normal(size=(3, 4, 10))
W, C, B = RNG.normal(size=(6, 10)), RNG.normal(size=(6, 10)), RNG.normal(size=10)


def run(x, change, share=0.3):
  delta = {'fc': MiguDelta(change)}
  return migu('fc', share).intercept(
    delta, Site('linear', 'fc'), linear, x, jnp.float32(W), jnp.float32(B)
  )


def test_outputs_are_those_of_the_changed_weights():
  want = X @ (W + C) + B
  np.testing.assert_allclose(run(jnp.float32(X), jnp.float32(C)), want, atol=1e-5)


def test_gradients_are_those_of_the_largest_outputs_alone():
  loss = lambda x, change: (run(x, change) * G).sum()
  to_x, to_change = jax.grad(loss, (0, 1))(jnp.float32(X), jnp.float32(C))
  magnitudes = np.abs(X @ (W + C) + B).sum((0, 1))
  mask = magnitudes >= np.quantile(magnitudes, 0.7)
  assert mask.sum() == 3
  want = np.einsum('bti,bto->io', X, G) * mask
  np.testing.assert_allclose(to_change, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(to_x, G @ (W + C).T, rtol=1e-4, atol=1e-5)


def test_a_norm_of_the_magnitudes_changes_no_mask():
  y = jnp.float32(X @ W)
  scaled = y / jnp.abs(y).sum()
  for share in (0.1, 0.5, 1.0):
    np.testing.assert_array_equal(large_outputs(y, share), large_outputs(scaled, share))
  assert large_outputs(y, 1.0).all()


def test_one_product_is_computed_for_both_gradients():
  x, change = jnp.float32(X), jnp.float32(C)
  flops = jax.jit(run).lower(x, change).compile().cost_analysis()['flops']
  assert flops < 2.7 * (2 * 12 * 6 * 10)  # That with W, and that with C.


def test_a_change_is_made_at_each_site():
  params = {name: {'w': jnp.ones((6, 10)), 'b': jnp.ones(10)} for name in ('fc1', 'fc2')}
  delta = migu().init(jax.random.key(0), weight_sites(params), params)
  assert {path: leaf.change.shape for path, leaf in delta.items()} == {
    'fc1': (6, 10), 'fc2': (6, 10)
  }  # fmt: skip
  new = migu().merge({'fc1': MiguDelta(jnp.float32(C))}, params)
  np.testing.assert_allclose(new['fc1']['w'], 1 + C, atol=1e-6)


def test_what_chooses_nothing_is_refused():
  with pytest.raises(ValueError, match=r'a share in \(0, 1\]'):
    migu(share=0.0)
