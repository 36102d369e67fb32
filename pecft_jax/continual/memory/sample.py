"""A uniform sample of a task that no order or batching of the data changes, as a pytree.

Each example has a rank, a fixed pseudo-random function of its row; the N lowest
are kept (bottom-k sampling; Cohen and Kaplan, 2007, doi:10.1145/1281100.1281133).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.memory.slots import check_rows, empty_slots
from pecft_jax.typing import Array

# The rank of an empty slot, and of one row in 2^32, which is never taken.
_NONE = np.uint32(2**32 - 1)


class Sample(NamedTuple):
  """N examples, the lowest rank first; slots that are not filled hold zeros."""

  rank: Array  # [N] uint32
  items: Any  # A pytree with leading axis N.

  @property
  def filled(self) -> Array:
    """[N] bool"""
    return self.rank != _NONE


def empty(size: int, item: Any) -> Sample:
  """A sample of items like one example.

  Args:
    size: N, at least 1.
    item: a pytree of `jax.ShapeDtypeStruct`, or of arrays, of one item.

  Raises:
    ValueError: for a size below 1.
  """
  return Sample(jnp.full(size, _NONE, jnp.uint32), empty_slots(size, item, 'sample'))


def offer(sample: Sample, items: Any, valid: Array, index: Array) -> Sample:
  """The sample of all that was offered so far.

  Args:
    sample: of N slots.
    items: a pytree with leading axis B.
    valid: [B] bool; other rows are not offered.
    index: [B] int32, the row of each item in its split; no row comes twice.

  Raises:
    AssertionError: for other shapes.
  """
  check_rows(sample.items, items, valid, index)
  rank = jnp.concatenate([sample.rank, jnp.where(valid, scattered(index), _NONE)])
  # Stable: empty slots come before rows that are not valid, so no such row is ever stored.
  best = jnp.argsort(rank, stable=True)[: sample.rank.shape[0]]
  put = lambda store, new: jnp.concatenate([store, new])[best]
  return Sample(rank[best], jax.tree.map(put, sample.items, items))


def scattered(index: Array) -> Array:
  """A permutation of all 32-bit numbers that leaves no pattern: the finaliser of MurmurHash3."""
  x = index.astype(jnp.uint32)
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
