"""The task of each example, for methods with parameters of each task.

In training it is the current task, or, of a replayed example whose label is at hand, the first task
of its class. At test the method chooses, unless the scenario gives the task.
"""

import jax.numpy as jnp

from pecft_jax.continual.core import query_of, raw, task_of
from pecft_jax.typing import Array, Batch, Env, Given, Inputs


def task_or(x: Inputs, env: Env, otherwise: Array) -> Array:
  """The task of each example [B] where it is given and was seen, else another one.

  Args:
    x: inputs.
    env: with the current task.
    otherwise: [B] or [] int32
  """
  given = task_of(x)
  return jnp.where((given >= 0) & (given <= env.task.index), given, otherwise)


def with_tasks_of_labels(batch: Batch, env: Env) -> Batch:
  """A batch of classification whose examples have the tasks of their classes.

  A class of the current task is of the current task, whatever other tasks it came with.
  """
  home = jnp.asarray(env.task.home)[batch.y]
  mine = jnp.asarray(env.task.classes)[batch.y] | (home < 0)  # Labels of padding may be any.
  found = task_or(batch.x, env, jnp.where(mine, env.task.index, home))
  return batch._replace(x=Given(raw(batch.x), query_of(batch.x), found))
