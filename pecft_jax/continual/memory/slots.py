"""Preallocated slots for items."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def empty_slots(size: int, item: Any, what: str) -> Any:
  """Zeros for N items like one.

  Args:
    size: N, at least 1.
    item: a pytree of `jax.ShapeDtypeStruct`, or of arrays, of one item.
    what: the slots belong to, for the message.

  Returns:
    A pytree with leading axis N.

  Raises:
    ValueError: for a size below 1.
  """
  if size < 1:
    raise ValueError(f'a {what} needs a size of at least 1, got {size}')
  return jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), item)


def check_rows(store: Any, items: Any, *others: Array) -> None:
  """Checks a batch against the store that it is written into; a scatter would broadcast it.

  Args:
    store: a pytree with leading axis N.
    items: the same with leading axis B.
    *others: further arrays [B] of the batch.

  Raises:
    AssertionError: for another structure or other shapes.
  """
  chex.assert_trees_all_equal_structs(items, store)
  chex.assert_rank(others, 1)
  rows = others[0].shape[0]
  chex.assert_equal_shape(others)
  for room, new in zip(jax.tree.leaves(store), jax.tree.leaves(items), strict=True):
    chex.assert_shape(new, (rows, *room.shape[1:]))


def written(store: Any, items: Any, slot: Array, taken: Array) -> Any:
  """A store with rows of a batch written into slots; of two for one slot, the later is written.

  Args:
    store: a pytree with leading axis N.
    items: the same with leading axis B.
    slot: [B] int32, where each row goes.
    taken: [B] bool; other rows are not written.

  >>> import jax.numpy as jnp
  >>> new, slot = jnp.array([7, 8, 9]), jnp.array([1, 0, 1])
  >>> written(jnp.zeros(2, int), new, slot, jnp.array([True, False, True])).tolist()
  [0, 9]
  """
  size = jax.tree.leaves(store)[0].shape[0]
  # A scatter with repeated indices does not say which row wins. Index N is dropped.
  later = jnp.triu(slot[:, None] == slot[None, :], 1) & taken[None, :]
  slot = jnp.where(taken & ~later.any(1), slot, size)
  return jax.tree.map(lambda kept, new: kept.at[slot].set(new, mode='drop'), store, items)
