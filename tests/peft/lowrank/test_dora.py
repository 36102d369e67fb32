"""DoRA by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tiny_vit import shaken

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import dora, weight_sites
from pecft_jax.typing import Site

PARAMS = {'fc': {'kernel': jax.random.normal(jax.random.key(0), (5, 7)), 'bias': jnp.ones(7)}}
X = jax.random.normal(jax.random.key(1), (3, 5))
PEFT = dora('fc', rank=2, alpha=4)
START = PEFT.init(jax.random.key(2), weight_sites(PARAMS), PARAMS)


def through(delta, w=PARAMS['fc']['kernel'], b=PARAMS['fc']['bias']):
  return PEFT.intercept(delta, Site('linear', 'fc'), linear, X, w, b)


def test_the_magnitude_starts_as_the_norms_of_the_columns():
  norms = np.sqrt((np.asarray(PARAMS['fc']['kernel']) ** 2).sum(0))
  np.testing.assert_allclose(START['fc'].magnitude, norms, rtol=1e-6)


def test_is_the_definition():
  a, b, magnitude = delta = shaken(START, 3)['fc']
  moved = PARAMS['fc']['kernel'] + 2.0 * a @ b
  expected = X @ (magnitude * moved / jnp.linalg.norm(moved, axis=0)) + PARAMS['fc']['bias']
  np.testing.assert_allclose(through({'fc': delta}), expected, atol=1e-5)


def test_the_norm_takes_no_part_in_the_gradient():
  delta = shaken(START, 3)
  norms = jnp.linalg.norm(PARAMS['fc']['kernel'] + 2.0 * delta['fc'].a @ delta['fc'].b, axis=0)

  def fixed_norm(delta):
    moved = PARAMS['fc']['kernel'] + 2.0 * delta['fc'].a @ delta['fc'].b
    return (X @ (delta['fc'].magnitude * moved / norms) + PARAMS['fc']['bias']) ** 2

  got = jax.grad(lambda d: (through(d) ** 2).sum())(delta)
  expected = jax.grad(lambda d: fixed_norm(d).sum())(delta)
  chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_column_of_zeros_stays_finite():
  params = {'fc': {'kernel': PARAMS['fc']['kernel'].at[:, 2].set(0), 'bias': jnp.ones(7)}}
  delta = PEFT.init(jax.random.key(2), weight_sites(params), params)
  y = through(delta, *params['fc'].values())
  np.testing.assert_allclose(y, linear(X, *params['fc'].values()), atol=1e-6)


def test_works_without_a_bias():
  delta = shaken(START, 3)
  with_bias = through(delta)
  np.testing.assert_allclose(through(delta, b=None), with_bias - 1, atol=1e-5)
