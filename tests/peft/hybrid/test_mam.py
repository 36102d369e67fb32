"""Mix-and-match adapters are a prefix and a parallel adapter."""

import jax
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import chain, mam, parallel_adapter, prefix


def test_it_is_the_chain_of_both(tiny):
  peft = mam(length=2, width=3, scale=2.0)
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)
  apply = lambda peft, delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  parts = {'adapters': parallel_adapter(3, 2.0), 'prefix': prefix(length=2)}
  for order in (['prefix', 'adapters'], ['adapters', 'prefix']):  # At different sites.
    other = chain(**{name: parts[name] for name in order})
    np.testing.assert_allclose(apply(peft, delta), apply(other, delta), atol=1e-6)


def test_adapters_start_as_the_identity(tiny):
  delta = mam(length=2, width=3).init(jax.random.key(0), tiny.model.sites, tiny.params)
  alone = prefix(length=2)
  apply = lambda peft, delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  start = apply(mam(length=2, width=3), delta)
  np.testing.assert_allclose(start, apply(alone, delta['prefix']), atol=1e-6)


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='length of at least 1, got 0'):
    mam(length=0)
  with pytest.raises(ValueError, match='width of at least 1, got 0'):
    mam(width=0)
