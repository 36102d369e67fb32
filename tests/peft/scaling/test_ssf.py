"""SSF by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import layer_norm, linear
from pecft_jax.peft import merged, ssf
from pecft_jax.peft.scaling.ssf import SsfDelta
from pecft_jax.typing import Site

X, W, B = jnp.ones((2, 3)), jnp.arange(12.0).reshape(3, 4), jnp.arange(4.0)
LEAF = SsfDelta(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([5.0, 6.0, 7.0, 8.0]))


def test_scales_then_shifts_both_kinds_of_site():
  y = ssf().intercept({'linear': {'fc': LEAF}, 'norm': {}}, Site('linear', 'fc'), linear, X, W, B)
  np.testing.assert_allclose(y, (X @ W + B) * LEAF.scale + LEAF.shift)
  y = ssf().intercept(
    {'linear': {}, 'norm': {'ln': LEAF}}, Site('norm', 'ln'), layer_norm, X @ W, B, B
  )
  np.testing.assert_allclose(y, layer_norm(X @ W, B, B) * LEAF.scale + LEAF.shift)


def test_is_everywhere_by_default(tiny):
  delta = ssf().init(jax.random.key(0), tiny.model.sites, tiny.params)
  kinds = {kind: {s.site.path for s in tiny.model.sites if s.site.kind == kind} for kind in delta}
  assert {kind: set(delta[kind]) for kind in delta} == kinds


def test_starts_around_the_identity_and_with_no_spread_at_it(tiny):
  start = lambda **kw: ssf(**kw).init(jax.random.key(0), tiny.model.sites, tiny.params)
  scales = np.concatenate([leaf.scale for kind in start().values() for leaf in kind.values()])
  shifts = np.concatenate([leaf.shift for kind in start().values() for leaf in kind.values()])
  assert scales.mean() == pytest.approx(1, abs=0.005) and scales.std() == pytest.approx(
    0.02, rel=0.1
  )
  assert shifts.mean() == pytest.approx(0, abs=0.005) and shifts.std() == pytest.approx(
    0.02, rel=0.1
  )
  exact = tiny.model.apply(tiny.params, tiny.images, start(spread=0.0), peft=ssf())
  np.testing.assert_array_equal(exact.pooled, tiny.model.apply(tiny.params, tiny.images).pooled)


def test_merging_needs_a_bias():
  params = {'fc': {'kernel': W}}
  peft = ssf('fc')
  with pytest.raises(ValueError, match="'fc' has no bias to write to"):
    merged(peft, {'linear': {'fc': LEAF}, 'norm': {}}, params)
