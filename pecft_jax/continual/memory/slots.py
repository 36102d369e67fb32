"""Room for a number of items."""

from typing import Any

import jax
import jax.numpy as jnp


def empty_slots(size: int, item: Any, what: str) -> Any:
  """Zeros for N items like one.

  Args:
    size: N, at least 1.
    item: a pytree of `jax.ShapeDtypeStruct`, or of arrays, of one item.
    what: the room is part of, for the message.

  Returns:
    A pytree with leading axis N.

  Raises:
    ValueError: for a size below 1.
  """
  if size < 1:
    raise ValueError(f'a {what} needs a size of at least 1, got {size}')
  return jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), item)
