"""Dropout within a transform (Srivastava et al., 2014), in training alone.

For one forward pass, a delta carries a key at each of its sites, since sites
themselves are given none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Key


class Noisy(NamedTuple):
  """A site's part of a delta, with the key of its noise in one forward pass."""

  leaf: Any
  key: Key


Drop = Callable[[Array], Array]


def no_drop(x: Array) -> Array:
  """The identity, in place of dropout outside of training."""
  return x


def dropper(key: Key, rate: float) -> Drop:
  """`(x) -> x` with a share of entries zero, the others divided by the share that is left."""

  def drop(x: Array) -> Array:
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))

  return drop


def check_rate(rate: float) -> float:
  """Raises ValueError for a rate outside [0, 1)."""
  if not 0 <= rate < 1:
    raise ValueError(f'expected a dropout in [0, 1), got {rate}')
  return rate
