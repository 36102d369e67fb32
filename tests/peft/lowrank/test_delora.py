"""DeLoRA, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import delora


def changed(leaf):
  """dW by the paper's formula, component by component."""
  out = np.zeros((D_IN, D_OUT))
  for a, b in zip(wide(leaf.a).T, wide(leaf.b), strict=True):
    out += np.outer(a, b) / max(np.linalg.norm(a), 1e-4) / max(np.linalg.norm(b), 1e-4)
  gain = wide(leaf.strength)[0] / leaf.b.shape[0]
  return gain * wide(leaf.norms.value)[:, None] * out


def test_components_are_normalised():
  peft = delora('fc', rank=2, strength=3.0)
  leaf = started(peft)._replace(b=noise(2, D_OUT), strength=jnp.array([-1.5]))
  np.testing.assert_allclose(leaf.norms.value, np.linalg.norm(W, axis=1), rtol=1e-6)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ (W + changed(leaf)) + BIAS, atol=1e-5)
  np.testing.assert_allclose(peft.update({'fc': leaf}, 'fc', W), changed(leaf), atol=1e-5)


def test_the_strength_bounds_the_update_relative_to_the_rows():
  peft = delora('fc', rank=2, strength=3.0)
  for size in (0.1, 100.0):
    leaf = started(peft)._replace(a=size * noise(D_IN, 2), b=size * noise(2, D_OUT, seed=2))
    relative = wide(peft.update({'fc': leaf}, 'fc', W)) / np.linalg.norm(W, axis=1)[:, None]
    assert 0.5 < np.linalg.norm(relative) <= 3.0 + 1e-5


def test_gradients_at_the_start_are_finite_and_reach_b():
  peft = delora('fc', rank=2)
  loss = lambda leaf: jnp.square(peft.update({'fc': leaf}, 'fc', W) - 1).sum()
  grads = jax.grad(loss)(started(peft))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert np.abs(grads.b).max() > 0


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    delora(rank=0)
  with pytest.raises(ValueError, match='strength must be positive, got 0'):
    delora(strength=0.0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(delora('fc', rank=7))
