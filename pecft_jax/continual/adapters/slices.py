"""Bottleneck adapters of several tasks, side by side: one adapter with a wider bottleneck."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import abstract_delta
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta
from pecft_jax.typing import Array, Backbone, PeftTransform


def is_adapter(node: Any) -> bool:
  """Whether a node of a delta is the adapter of one site: for `jax.tree.map(is_leaf=)`."""
  return isinstance(node, BottleneckDelta)


def need_adapters(name: str, backbone: Backbone, peft: PeftTransform) -> dict[str, Any]:
  """The shapes of a transform's delta, if it has a bottleneck adapter at every site.

  Args:
    name: of the method, for the message.
    backbone: that the transform is put on.
    peft: identified by the types of its delta.

  Returns:
    `{site path: BottleneckDelta of jax.ShapeDtypeStruct}`

  Raises:
    ValueError: if it has anything else.
  """
  delta = abstract_delta(backbone, peft)
  leaves = list(delta.values()) if isinstance(delta, dict) else [delta]
  if not leaves or not all(map(is_adapter, leaves)):
    kinds = sorted({type(leaf).__name__ for leaf in leaves})
    raise ValueError(
      f'{name} needs a transform whose delta is a bottleneck adapter at every site, such as '
      f'adaptformer(...); got a delta of {kinds or "nothing"}'
    )
  return delta


def with_slot(bank: Any, delta: Any, index: Array) -> Any:
  """A bank [T, ...] with a delta in one slot."""
  return jax.tree.map(lambda slots, new: slots.at[index].set(new), bank, delta)


def slot_of(bank: Any, now: Any, i: Array, index: Array) -> Any:
  """Slot i of a bank [T, ...]; that of the current task, of number `index`, is still trained."""
  return jax.tree.map(lambda slots, new: jnp.where(i == index, new, slots[i]), bank, now)


def side_by_side(bank: Any) -> Any:
  """All slots of a bank as one adapter per site, which adds the sum of what they add.

  Slots of zeros add nothing.

  Args:
    bank: `{site path: BottleneckDelta}`, down [T, D, r], up [T, r, D].

  Returns:
    The same with down [D, T r], up [T r, D].
  """

  def one(slots: BottleneckDelta) -> BottleneckDelta:
    down = slots.down.swapaxes(0, 1)  # [D, T, r]
    return BottleneckDelta(
      down.reshape(down.shape[0], -1),
      slots.down_bias.reshape(-1),
      slots.up.reshape(-1, slots.up.shape[-1]),
      slots.up_bias.sum(0),
    )

  return jax.tree.map(one, bank, is_leaf=is_adapter)
