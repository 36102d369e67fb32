"""What methods with a head for each task share: all heads at once, and answers of a task's own."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Head

# Below all logits, and small enough for float32 to keep the order of what it is taken from.
_ASIDE = 1e4


def logits_of_tasks(head: Head, heads: Any, features: Array) -> Array:
  """[T, ...] states of a head, [B, D] -> [T, B, C]"""
  return jax.vmap(head.logits, (0, None))(heads, features)


def of_chosen(each: Array, chosen: Array) -> Array:
  """[T, B, C], the task of each example [B] -> [B, C]"""
  return jnp.take_along_axis(each, chosen[None, :, None], 0)[0]


def own_first(each: Array, chosen: Array, own: Array, home: Array) -> Array:
  """Logits that put the classes of the chosen task before all others.

  The others, which never win, have the logits of the head of their first task: they decide where
  answers are judged among the classes of another task.

  Args:
    each: [T, B, C], of the heads of all tasks.
    chosen: [B] int32, the task of each example.
    own: [T, C] bool, the classes of each task.
    home: [C] int32, the first task of each class.
  """
  others = jnp.take_along_axis(each, jnp.maximum(home, 0)[None, None], 0)[0]
  return jnp.where(own[chosen], of_chosen(each, chosen), others - _ASIDE)
