"""A replay buffer filled by reservoir sampling (Vitter, 1985), as a pytree of constant shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.slots import check_rows, empty_slots, written
from pecft_jax.typing import Array, Key


class Buffer(NamedTuple):
  """N stored items; slots from `count` on are empty."""

  AXES = {'items': ('slot', ...)}

  items: Any  # A pytree with leading axis N.
  count: Array  # [] int32, items offered so far, which may be more than N.


def empty(size: int, item: Any) -> Buffer:
  """A buffer for items like one example.

  Args:
    size: N, at least 1.
    item: a pytree of `jax.ShapeDtypeStruct`, or of arrays, of one item.

  Raises:
    ValueError: for a size below 1.
  """
  return Buffer(empty_slots(size, item, 'buffer'), jnp.zeros((), jnp.int32))


def offer(buffer: Buffer, items: Any, valid: Array, key: Key) -> Buffer:
  """Offers a batch; after n offers every item so far is kept with probability N / n.

  Args:
    buffer: of N slots.
    items: a pytree with leading axis B.
    valid: [B] bool; other rows are not offered.
    key: consumed.

  Raises:
    AssertionError: for other shapes.
  """
  check_rows(buffer.items, items, valid)
  size = jax.tree.leaves(buffer.items)[0].shape[0]
  order = buffer.count + jnp.cumsum(valid) - 1  # [B], how many were offered before each.
  draw = jax.random.randint(key, order.shape, 0, jnp.maximum(order + 1, 1))
  slot = jnp.where(order < size, order, draw)
  stored = written(buffer.items, items, slot, valid & (slot < size))
  return Buffer(stored, buffer.count + valid.sum(dtype=jnp.int32))


def sample(buffer: Buffer, batch: int, key: Key, *, distinct: bool = False) -> tuple[Any, Array]:
  """Draws stored items uniformly, with replacement unless they shall be distinct.

  Args:
    buffer: to draw from.
    batch: B, how many.
    key: consumed.
    distinct: draw no item twice; of fewer items than B the rest is not valid.

  Returns:
    A pytree with leading axis B, and valid [B] bool: all False while the
    buffer is empty.
  """
  size = jax.tree.leaves(buffer.items)[0].shape[0]
  filled = jnp.minimum(buffer.count, size)
  if distinct:
    # The order of random numbers is a uniform permutation; empty slots come last.
    rank = jnp.where(jnp.arange(size) < filled, jax.random.uniform(key, (size,)), jnp.inf)
    order = jnp.argsort(rank)
    index = order[jnp.minimum(jnp.arange(batch), size - 1)]
    valid = jnp.arange(batch) < filled
    return jax.tree.map(lambda store: store[index], buffer.items), valid
  index = jax.random.randint(key, (batch,), 0, jnp.maximum(filled, 1))
  valid = jnp.broadcast_to(filled > 0, (batch,))
  return jax.tree.map(lambda store: store[index], buffer.items), valid
