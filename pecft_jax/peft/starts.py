"""Factors A and B of a low-rank update at init, with A B = 0."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Key

Start = Literal['uniform', 'gaussian', 'orthogonal', 'zero_a']
Pair = tuple[Array, Array]  # A [d_in, r] and B [r, d_out].


def uniform(key: Key, d_in: int, d_out: int, rank: int) -> Pair:
  """A uniform in +-sqrt(1 / d_in) (Kaiming, slope sqrt(5)), B zero. Consumes the key."""
  return _kaiming(key, d_in, rank), jnp.zeros((rank, d_out))


def gaussian(key: Key, d_in: int, d_out: int, rank: int) -> Pair:
  """A normal with deviation 1 / r, B zero. Consumes the key."""
  return jax.random.normal(key, (d_in, rank)) / rank, jnp.zeros((rank, d_out))


def orthogonal(key: Key, d_in: int, d_out: int, rank: int) -> Pair:
  """A and B normal, within orthogonal halves of the rank: neither is zero. Consumes the key.

  A = G Q_0 / 10 and B = Q_1^T H / 10, with the even and the odd rows of an orthogonal matrix as
  Q_0 and Q_1, and entries of G [d_in, r / 2] and H [r / 2, d_out] standard normal.
  """
  key_q, key_a, key_b = jax.random.split(key, 3)
  q, _ = jnp.linalg.qr(jax.random.normal(key_q, (rank, rank)))
  product = lambda a, b: jnp.matmul(a, b, precision='highest') / 10
  return (
    product(jax.random.normal(key_a, (d_in, rank // 2)), q[::2]),
    product(q[1::2].T, jax.random.normal(key_b, (rank // 2, d_out))),
  )


def zero_a(key: Key, d_in: int, d_out: int, rank: int) -> Pair:
  """A zero, B uniform in +-sqrt(1 / r) (Hayou et al., 2024, arXiv:2406.08447). Consumes the key."""
  return jnp.zeros((d_in, rank)), _kaiming(key, rank, d_out)


STARTS: Mapping[Start, Callable[[Key, int, int, int], Pair]] = {
  'uniform': uniform,
  'gaussian': gaussian,
  'orthogonal': orthogonal,
  'zero_a': zero_a,
}


def check_start(start: Start, rank: int) -> None:
  """Raises ValueError for a rank that a start cannot have."""
  if start == 'orthogonal' and rank % 2:
    raise ValueError(f"start='orthogonal' needs an even rank, got {rank}")


def _kaiming(key: Key, fan_in: int, fan_out: int) -> Array:
  bound = math.sqrt(1 / fan_in)
  return jax.random.uniform(key, (fan_in, fan_out), minval=-bound, maxval=bound)
