"""A layer alone, in float64 where the test computes in it."""

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import weight_sites
from pecft_jax.typing import Site

RNG = np.random.default_rng(0)
D_IN, D_OUT = 10, 6
W = RNG.normal(size=(D_IN, D_OUT)).astype(np.float32)
X = RNG.normal(size=(2, 3, D_IN)).astype(np.float32)
BIAS = RNG.normal(size=D_OUT).astype(np.float32)
PARAMS = {'fc': {'w': jnp.asarray(W), 'b': jnp.asarray(BIAS)}}


def started(peft, params=PARAMS):
  """The delta of the layer at init."""
  return peft.init(jax.random.key(0), weight_sites(params), params)['fc']


def run(peft, leaf, x=X, w=W, bias=BIAS):
  """y of the adapted layer, in float64."""
  out = peft.intercept({'fc': leaf}, Site('linear', 'fc'), linear, x, w, bias)
  return np.asarray(out, np.float64)


def wide(array):
  return np.asarray(array, np.float64)


def noise(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
