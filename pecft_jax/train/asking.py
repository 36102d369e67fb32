"""Answers of methods with parts: an evaluation computes those parts that are not kept."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pecft_jax.devices.sharding import place
from pecft_jax.train.context import Loop
from pecft_jax.typing import Batch, TrainState

# (batch, digest of its examples) -> the parts of all slots; None for methods without parts.
Reader = Callable[[Batch, bytes], tuple[Any, ...] | None]


def part_reader(loop: Loop, state: TrainState, *, inside: bool) -> Reader:
  """How an evaluation of a state gets the parts of each batch.

  Args:
    loop: the run.
    state: that is asked.
    inside: whether the task is still being trained: parts of weights that were never met before
      are not kept, as they will change.
  """
  steps, kept = loop.steps.parts, loop.kept
  if steps is None:
    return lambda batch, rows: None
  prints, counts = jax.device_get(steps.look(state, loop.frozen))
  used = int(np.max(counts))
  own = [prints[..., slot, :] for slot in range(used)]
  keeps = [False] * used
  if kept is not None:
    kept.turn()
    known = [kept.is_known(weights) for weights in own]
    keeps = [each or not inside for each in known]
  slots = [place(np.int32(slot), loop.steps.counts_sharding) for slot in range(max(1, used))]
  like: Any = None
  none: Any = None

  def part(batch: Batch, rows: bytes, slot: int) -> Any:
    name = None if kept is None else kept.name(own[slot], rows)
    found = None if kept is None or name is None else kept.get(name, like)
    if found is not None:
      return found
    found = steps.part(state, loop.frozen, batch, slots[slot])
    if kept is not None and name is not None and keeps[slot]:
      kept.put(name, found)
    return found

  def read(batch: Batch, rows: bytes) -> tuple[Any, ...]:
    nonlocal like, none
    if like is None:
      like = _shapes(
        jax.eval_shape(steps.part, state, loop.frozen, batch, slots[0]), steps.sharding
      )
      if used < steps.slots:
        none = _zeros(like)
    return (*(part(batch, rows, slot) for slot in range(used)), *[none] * (steps.slots - used))

  return read


def _shapes(tree: Any, sharding: Any) -> Any:
  one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return jax.tree.map(one, tree)


def _zeros(like: Any) -> Any:
  """The part of a slot that is not used."""
  return jax.tree.map(lambda leaf: place(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), like)
