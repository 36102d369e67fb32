"""LoRA and rsLoRA by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import lora, rslora, weight_sites
from pecft_jax.typing import Site

PARAMS = {'fc': {'kernel': jax.random.normal(jax.random.key(0), (5, 7)), 'bias': jnp.ones(7)}}
X = jax.random.normal(jax.random.key(1), (2, 3, 5))


def through(peft, delta):
  return peft.intercept(delta, Site('linear', 'fc'), linear, X, *PARAMS['fc'].values())


@pytest.mark.parametrize(('factory', 'scale'), [(lora, 8 / 4), (rslora, 8 / 2)])
def test_adds_the_scaled_product(factory, scale):
  peft = factory('fc', rank=4, alpha=8)
  delta = peft.init(jax.random.key(2), weight_sites(PARAMS), PARAMS)
  leaf = delta['fc']._replace(b=jnp.ones((4, 7)))
  expected = linear(X, *PARAMS['fc'].values()) + scale * X @ leaf.a @ leaf.b
  np.testing.assert_allclose(through(peft, {'fc': leaf}), expected, atol=1e-5)


def test_alpha_is_twice_the_rank_by_default():
  delta = lora('fc', rank=3).init(jax.random.key(2), weight_sites(PARAMS), PARAMS)
  delta = {'fc': delta['fc']._replace(b=jnp.ones((3, 7)))}
  np.testing.assert_array_equal(
    through(lora('fc', rank=3), delta), through(lora('fc', rank=3, alpha=6), delta)
  )


def test_factors_joined_on_the_rank_axis_are_the_sum_of_their_parts():
  peft = lora('fc', rank=3)
  init = lambda i: peft.init(jax.random.key(i), weight_sites(PARAMS), PARAMS)['fc']
  one, two = (init(i)._replace(b=jnp.full((3, 7), 0.1 * i)) for i in (1, 2))
  both = type(one)(jnp.concatenate([one.a, two.a], 1), jnp.concatenate([one.b, two.b], 0))
  plain = linear(X, *PARAMS['fc'].values())
  total = through(peft, {'fc': one}) + through(peft, {'fc': two}) - plain
  np.testing.assert_allclose(through(peft, {'fc': both}), total, atol=1e-5)


def test_the_init_of_a_site_does_not_depend_on_what_else_matches(tiny):
  few, many = (
    lora(pattern).init(jax.random.key(0), tiny.model.sites, tiny.params)
    for pattern in ('block_1/attn/v', 'attn|mlp')
  )
  np.testing.assert_array_equal(few['block_1/attn/v'].a, many['block_1/attn/v'].a)
  assert (many['block_1/attn/q'].a != many['block_1/attn/v'].a).any()


def test_a_rank_below_one_is_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    lora(rank=0)
