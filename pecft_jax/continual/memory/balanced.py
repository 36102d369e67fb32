"""A buffer that keeps classes as even as a stream allows: the greedy sampler of GDumb.

Prabhu et al., 2020 (ECCV, "GDumb: a simple approach that questions our progress in continual
learning"), Algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.herding import Exemplars
from pecft_jax.continual.memory.slots import check_rows, written
from pecft_jax.typing import Array, Key


def offer(
  exemplars: Exemplars, items: Any, y: Array, valid: Array, key: Key, classes: int
) -> Exemplars:
  """Offers a batch, one example after another.

  An example is taken if its class has no slot yet, or fewer than K divided by the classes that
  have one. Where no slot is empty it takes that of a random example of the largest class, of
  several the first.

  Args:
    exemplars: K slots, at least as many as classes.
    items: a pytree with leading axis B.
    y: [B] int32, the class of each.
    valid: [B] bool; other rows are not offered.
    key: consumed.
    classes: C

  Raises:
    AssertionError: for other shapes.
  """
  check_rows(exemplars.items, items, y, valid)
  size = exemplars.label.shape[0]

  def one(label, row):
    cls, asked, key = row
    counts = (label[:, None] == jnp.arange(classes)).sum(0)
    share = size / jnp.maximum((counts > 0).sum(), 1)
    taken = asked & ((counts[cls] == 0) | (counts[cls] < share))
    empty = label < 0
    chance = jnp.where(label == counts.argmax(), jax.random.uniform(key, label.shape), -1)
    slot = jnp.where(empty.any(), empty.argmax(), chance.argmax())
    return jnp.where(taken, label.at[slot].set(cls), label), (slot.astype(jnp.int32), taken)

  rows = y, valid, jax.random.split(key, y.shape[0])
  label, (slot, taken) = jax.lax.scan(one, exemplars.label, rows)
  return Exemplars(written(exemplars.items, items, slot, taken), label)
