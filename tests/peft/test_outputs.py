"""The result of a site with a transform and without."""

import jax.numpy as jnp
import pytest

from pecft_jax.peft import lora, prefix
from pecft_jax.peft.outputs import beside_the_plain
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.typing import Site


def test_both_come_from_one_call():
  calls = []

  def next_fn(x):
    calls.append(x)
    return 3 * x

  added = lambda delta, site, next_fn, x: next_fn(x) + delta
  site = Site('norm', 'norm')
  assert beside_the_plain('x', added, 5, site, next_fn, 2) == (11, 6)
  assert calls == [2]


def test_a_transform_that_acts_elsewhere_gives_the_same_twice():
  site = Site('linear', 'block_0/fc')
  run = lora('fc').intercept
  out, plain = beside_the_plain('x', run, {}, site, lambda x, w, b: x + w, 1.0, 2.0, None)
  assert out is plain


def test_what_is_read_must_stay():
  leaf = PrefixDelta(jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2)))
  site, x = Site('attend', 'block_0/attn'), jnp.ones((1, 3, 1, 2))
  run = prefix(length=1).intercept
  message = "mine: .* at 'attend' site 'block_0/attn' this one changes what the site reads"
  with pytest.raises(ValueError, match=message):
    beside_the_plain('mine', run, {site.path: leaf}, site, lambda q, *_: q, x, x, x, None)
