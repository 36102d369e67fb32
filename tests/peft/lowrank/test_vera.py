"""VeRA by itself."""

import jax
import numpy as np
import pytest

from pecft_jax.peft import vera
from pecft_jax.peft.lowrank.vera import shared_factors


def test_smaller_factors_are_parts_of_larger_ones():
  a, b = shared_factors(3, 4, 9, 7, fan_in=9)
  small_a, small_b = shared_factors(3, 4, 5, 2, fan_in=9)
  np.testing.assert_array_equal(small_a, a[:5])
  np.testing.assert_array_equal(small_b, b[:, :2])


def test_factors_have_the_variances_of_kaiming_init():
  a, b = shared_factors(0, 16, 400, 500, fan_in=400)
  assert np.var(a) == pytest.approx(2 / 400, rel=0.1)
  assert np.var(b) == pytest.approx(2 / 16, rel=0.1)


def test_the_seed_decides_the_factors():
  first, second = (shared_factors(seed, 4, 5, 7, fan_in=5)[0] for seed in (0, 1))
  assert (first != second).all()
  np.testing.assert_array_equal(first, shared_factors(0, 4, 5, 7, fan_in=5)[0])


def test_the_delta_holds_vectors_only(tiny):
  delta = vera(rank=4).init(jax.random.key(0), tiny.model.sites, tiny.params)
  leaf = delta['block_0/attn/q']
  np.testing.assert_array_equal(leaf.inner, np.full(4, 0.1, np.float32))
  np.testing.assert_array_equal(leaf.outer, np.zeros(24))


def test_sites_of_several_widths_need_the_largest(tiny):
  init = lambda peft: peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  with pytest.raises(ValueError, match=r'widths \[24, 36\]: vera\(\) needs fan_in=36, got None'):
    init(vera('mlp'))
  with pytest.raises(ValueError, match='needs fan_in=36, got 24'):
    init(vera('mlp', fan_in=24))
  assert len(init(vera('mlp', fan_in=36))) == 6


def test_a_rank_below_one_is_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    vera(rank=0)
