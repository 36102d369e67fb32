"""The slots of a head's state: one per class."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def with_slots(state: Any, other: Any, classes: Array) -> Any:
  """A state with the slots of some classes taken from another one.

  Args:
    state: of any head, of a type whose `AXES` name the axis `class`.
    other: a state of the same head.
    classes: [C] bool, whose slots are those of `other`; what classes share is that of `state`.

  Raises:
    TypeError: for a state of a type without such axes.

  >>> from pecft_jax.heads import linear
  >>> old = linear().init(jax.random.key(0), 2, 3)
  >>> new = jax.tree.map(lambda leaf: leaf + 1, old)
  >>> with_slots(old, new, jnp.array([False, True, True])).bias.tolist()
  [0.0, 1.0, 1.0]
  """
  axes = getattr(type(state), 'AXES', {})
  if not any('class' in names for names in axes.values()):
    raise TypeError(
      f'expected a state whose type names the axis `class` in its AXES, got {type(state).__name__}'
    )

  def chosen(name: str, old: Array, new: Array) -> Array:
    if 'class' not in axes.get(name, ()):
      return old
    behind = len(axes[name]) - 1 - axes[name].index('class')
    return jnp.where(classes.reshape(-1, *[1] * behind), new, old)

  fields = {
    name: jax.tree.map(lambda a, b, name=name: chosen(name, a, b), old, getattr(other, name))
    for name, old in state._asdict().items()
  }
  return type(state)(**fields)
