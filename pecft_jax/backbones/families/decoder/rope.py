"""Rotary positions (Su et al., 2021, arXiv:2104.09864)."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.typing import Array


class Rope(NamedTuple):
  """Rotary positions, and how they are stretched for long contexts.

  Frequencies with fewer than `low` turns in `original` tokens are divided by
  `factor`, those with more than `high` stay, and between it changes linearly,
  as from Llama 3.1 on. A factor of 1 changes nothing.
  """

  theta: float
  factor: float
  low: float
  high: float
  original: int

  def frequencies(self, size: int) -> np.ndarray:
    """Radians per token of a head of `size` K: float32 [K / 2]."""
    plain = self.theta ** -(np.arange(0, size, 2) / size)
    turns = self.original * plain / (2 * math.pi)
    kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return (plain * (kept + (1 - kept) / self.factor)).astype(np.float32)


def rotated(x: Array, positions: Array, frequencies: np.ndarray) -> Array:
  """Turns each pair of components by position x frequency, in float32.

  Args:
    x: [B, T, H, K]; component i is paired with i + K / 2.
    positions: [B, T]
    frequencies: [K / 2]
  """
  angles = positions[..., None, None] * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, -1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return turned.astype(x.dtype)
