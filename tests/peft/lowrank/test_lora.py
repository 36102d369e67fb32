"""LoRA and rsLoRA by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import LoraDelta, lora, rslora, weight_sites
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


PATTERNS = {'ranks': {'block_1/attn/q': 3, 'fc1': 2}, 'alphas': {'block_2': 5.0, 'attn/q': 7.0}}


def test_ranks_and_alphas_are_those_of_the_first_pattern_that_matches(tiny):
  peft = lora('attn/q$|fc1', 4, 8.0, **PATTERNS)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  found = {path: (leaf.a.shape[1], float(leaf.scale.value)) for path, leaf in delta.items()}
  assert found['block_0/attn/q'] == pytest.approx((4, 7 / 4))
  assert found['block_1/attn/q'] == pytest.approx((3, 7 / 3))
  assert found['block_2/attn/q'] == pytest.approx((4, 5 / 4))
  assert found['block_0/mlp/fc1'] == pytest.approx((2, 8 / 2))


def test_layers_of_one_program_have_scales_of_their_own(tiny):
  peft = lora('attn/q$', 4, alphas={'block_1': 64.0})
  start = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  delta = {path: leaf._replace(b=jnp.full_like(leaf.b, 0.1)) for path, leaf in start.items()}
  by_hand = {path: leaf._replace(b=leaf.b * leaf.scale.value / 2) for path, leaf in delta.items()}
  by_hand = {path: LoraDelta(leaf.a, leaf.b) for path, leaf in by_hand.items()}
  want = tiny.model.apply(tiny.params, tiny.images, by_hand, peft=lora('attn/q$', 4)).pooled
  for model, params in ((tiny.model, tiny.params), (tiny.stacked, tiny.stacked_params)):
    got = model.apply(params, tiny.images, delta, peft=peft).pooled
    np.testing.assert_allclose(got, want, atol=1e-5)
  merged = peft.merge(delta, tiny.params)
  np.testing.assert_allclose(tiny.model.apply(merged, tiny.images).pooled, want, atol=1e-5)


def test_ranks_alone_leave_one_scale_for_all(tiny):
  peft = lora('attn/q$', 4, ranks={'block_1': 2})
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert {type(leaf) for leaf in delta.values()} == {LoraDelta}
  assert [leaf.a.shape[1] for leaf in delta.values()] == [4, 2, 4]


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'ranks': {'fc1': 2}}, r"ranks: no site matches 'fc1'; sites: \['block_0/attn/q'"),
    ({'alphas': {'block_9': 2.0}}, "alphas: no site matches 'block_9'"),
    ({'ranks': {'attn': 0}}, 'rank must be at least 1, got 0'),
    ({'alphas': {'attn': 0.0}}, 'alpha must be positive, got 0.0'),
    ({'ranks': {'attn': 3}, 'start': 'orthogonal'}, 'needs an even rank, got 3'),
  ],
)
def test_patterns_that_decide_nothing_or_wrongly_are_refused(tiny, options, words):
  with pytest.raises(ValueError, match=words):
    lora('attn/q$', 4, **options).init(jax.random.key(0), tiny.model.sites, tiny.params)
