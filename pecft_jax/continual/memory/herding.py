"""Exemplars of classes: chosen by herding, stored in blocks of one buffer.

Herding in the form of iCaRL (Rebuffi et al., 2017, arXiv:1611.07725, Algorithm 4): one
example after another, such that the mean of those chosen stays nearest to the class mean.

A buffer of K slots is split evenly among the classes that have exemplars: block r, of K // classes
slots, belongs to the r-th of them in class order, best exemplar first. When classes come, blocks
get shorter, and each keeps its best.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.sample import Sample
from pecft_jax.continual.memory.slots import check_rows, empty_slots
from pecft_jax.typing import Array


class Exemplars(NamedTuple):
  """K slots."""

  AXES = {'items': ('slot', ...), 'label': ('slot',)}

  items: Any  # A pytree with leading axis K.
  label: Array  # [K] int32, the class of the example; -1 where there is none.


class Blocks(NamedTuple):
  """The slots of each class."""

  owner: Array  # [K] int32, the class that a slot belongs to; -1 where none is left.
  place: Array  # [K] int32, of a slot in the block of its class.
  start: Array  # [C] int32, the first slot of each class's block.
  length: Array  # [] int32, slots of a block.


def no_exemplars(size: int, item: Any) -> Exemplars:
  """Empty slots for items like one.

  Raises:
    ValueError: for a size below 1.
  """
  return Exemplars(empty_slots(size, item, 'buffer'), jnp.full(size, -1, jnp.int32))


def blocks(size: int, classes: Array) -> Blocks:
  """The blocks of a buffer of K slots.

  Args:
    size: K.
    classes: [C] bool, those that have a block.

  >>> import jax.numpy as jnp
  >>> [int(c) for c in blocks(5, jnp.array([True, False, True])).owner]
  [0, 0, 2, 2, -1]
  """
  many = classes.sum(dtype=jnp.int32)
  length = jnp.where(many > 0, size // jnp.maximum(many, 1), 0)
  slot = jnp.arange(size, dtype=jnp.int32)
  rank = slot // jnp.maximum(length, 1)
  ordered = jnp.argsort(~classes, stable=True).astype(jnp.int32)  # Classes with a block first.
  owner = jnp.where(rank < many, ordered[jnp.minimum(rank, classes.shape[0] - 1)], -1)
  start = (jnp.cumsum(classes, dtype=jnp.int32) - 1) * length
  return Blocks(owner, slot % jnp.maximum(length, 1), start, length)


def moved(exemplars: Exemplars, old: Blocks, new: Blocks, kept: Array) -> Exemplars:
  """Exemplars in the slots of other blocks; those of classes that are not kept are left out.

  Args:
    exemplars: in the blocks `old`.
    old: with a block for every class that is kept.
    new: with blocks that are no longer than the old ones.
    kept: [C] bool
  """
  owner = jnp.maximum(new.owner, 0)
  source = jnp.clip(old.start[owner] + new.place, 0, exemplars.label.shape[0] - 1)
  stays = (new.owner >= 0) & kept[owner]
  label = jnp.where(stays, exemplars.label[source], -1)
  return Exemplars(jax.tree.map(lambda a: a[source], exemplars.items), label)


def herded(candidates: Sample, means: Array, own: Blocks, wanted: Array) -> Array:
  """The candidates that are chosen for each slot.

  Args:
    candidates: of items (features [N, D], labels [N] int32, ...).
    means: [C, D], of all examples of each class.
    own: the blocks that are to be filled.
    wanted: [C] bool, the classes that exemplars are chosen for.

  Returns:
    [K] int32, a number in 0..N - 1; -1 for slots of other classes, and where a class has
    fewer candidates than slots.

  Raises:
    AssertionError: for other shapes.
  """
  features, labels = candidates.items[:2]
  rows, classes = candidates.rank.shape[0], own.start.shape[0]
  chex.assert_shape([labels, wanted], [(rows,), (classes,)])
  chex.assert_shape([features, means], [(rows, means.shape[-1]), (classes, None)])

  def pick(carry, slot):
    total, free = carry
    owner, place = slot
    total = jnp.where(place == 0, 0, total)
    there = free & (labels == owner)
    running = (total + features) / (place + 1)
    away = jnp.where(there, jnp.square(means[owner] - running).sum(-1), jnp.inf)
    best = away.argmin()
    found = there[best]
    chosen = jnp.where(found, best, -1).astype(jnp.int32)
    return (total + found * features[best], free.at[best].set(free[best] & ~found)), chosen

  def step(carry, slot):
    skip = lambda carry, slot: (carry, jnp.full((), -1, jnp.int32))
    asked = (slot[0] >= 0) & wanted[jnp.maximum(slot[0], 0)]
    return jax.lax.cond(asked, pick, skip, carry, slot)

  start = jnp.zeros(features.shape[1]), candidates.filled
  return jax.lax.scan(step, start, (own.owner, own.place))[1]


def fetched(
  exemplars: Exemplars, rows: Array, items: Any, labels: Array, index: Array
) -> Exemplars:
  """Writes the examples of a batch into the slots that they were chosen for.

  Args:
    exemplars: of K slots.
    rows: [K] int32, the row of the data that each slot waits for; -1 where for none.
    items: a pytree with leading axis B.
    labels: [B] int32
    index: [B] int32, row of each in the data; -1 for rows that are not valid.

  Raises:
    AssertionError: for other shapes.
  """
  check_rows(exemplars.items, items, labels, index)
  chex.assert_equal_shape([rows, exemplars.label])
  match = (rows[:, None] == index[None, :]) & (rows[:, None] >= 0)  # [K, B]
  size = rows.shape[0]
  slot = jnp.where(match.any(0), match.argmax(0), size)  # Writes to slot K are dropped.
  put = lambda store, new: store.at[slot].set(new, mode='drop')
  stored = jax.tree.map(put, exemplars.items, items)
  return Exemplars(stored, put(exemplars.label, labels.astype(jnp.int32)))
