"""Invertible adapters, against numpy in float64 and torch."""

import jax
import numpy as np
import pytest
from layers import noise, wide
from tiny_vit import shaken

from pecft_jax.peft import invertible
from pecft_jax.peft.adapters.invertible import back_again, there
from pecft_jax.typing import Site, SiteSpec


def moved(tiny):
  return shaken(invertible().init(jax.random.key(0), tiny.model.sites, tiny.params), 1, 0.5)


def through(net, x):
  hidden = np.maximum(x @ wide(net.down) + wide(net.down_bias), 0)
  return hidden @ wide(net.up) + wide(net.up_bias)


def test_each_half_is_shifted_by_the_other(tiny):
  leaf, x = moved(tiny)['encoder'], noise(2, 5, 24)
  first = wide(x)[..., :12] + through(leaf.first, wide(x)[..., 12:])
  second = wide(x)[..., 12:] + through(leaf.second, first)
  np.testing.assert_allclose(there(leaf, x), np.concatenate([first, second], -1), atol=1e-5)


def test_the_inverse_undoes_it(tiny):
  leaf, x = moved(tiny)['encoder'], noise(2, 5, 24)
  np.testing.assert_allclose(back_again(leaf, there(leaf, x)), x, atol=1e-5)


@pytest.mark.parametrize('back', [True, False])
def test_it_stands_around_the_encoder(tiny, back):
  leaf, x, site = moved(tiny)['encoder'], noise(2, 5, 24), Site('tokens', 'encoder', lead=1)
  found = invertible(back=back).intercept({'encoder': leaf}, site, lambda x, mask: 2 * x, x, None)
  want = 2 * there(leaf, x)
  np.testing.assert_allclose(found, back_again(leaf, want) if back else want, atol=1e-5)


def test_widths_may_be_odd():
  tokens = jax.ShapeDtypeStruct((1, 3, 7), 'float32')
  spec = SiteSpec(Site('tokens', 'encoder'), (tokens, None), tokens)
  leaf = shaken(invertible(3).init(jax.random.key(0), [spec], {}), 1)['encoder']
  assert leaf.first.down.shape == (4, 1) and leaf.second.up.shape == (1, 4)
  x = noise(2, 3, 7)
  np.testing.assert_allclose(back_again(leaf, there(leaf, x)), x, atol=1e-5)
  with pytest.raises(ValueError, match=r'encoder: expected a reduction of at most 3, .* got 4'):
    invertible(4).init(jax.random.key(0), [spec], {})


def test_bad_reductions_are_refused():
  with pytest.raises(ValueError, match='reduction must be at least 1, got 0'):
    invertible(0)
