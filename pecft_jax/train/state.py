"""The state of a run at its start, and the keys of its events."""

import jax
import jax.numpy as jnp

from pecft_jax.train.optimizer import Recipe
from pecft_jax.typing import Array, Capacity, ContinualMethod, Key, Params, Task, TrainState


def no_task(capacity: Capacity) -> Task:
  """The task before the first: nothing seen."""
  none = lambda: jnp.zeros(capacity.classes, bool)
  index = jnp.asarray(-1, jnp.int32)
  return Task(index, none(), none(), none(), jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))


def init_state(method: ContinualMethod, recipe: Recipe, key: Key, frozen: Params) -> TrainState:
  """The state before the first task. Consumes the key."""
  k_init, k_run = jax.random.split(key)
  params, memory = method.init(k_init, frozen)
  task = no_task(method.capacity)
  step = jnp.zeros((), jnp.int32)
  # As plain numbers: jit sees the shardings of typed keys change where nothing does.
  data = jax.random.key_data(k_run)
  return TrainState(params, memory, recipe.tx.init(params), task, step, data)


def key_for(state: TrainState, task: Task, number: Array | int) -> Key:
  """The key of one numbered event of a task, a function of nothing else."""
  key = jax.random.wrap_key_data(state.key)
  return jax.random.fold_in(jax.random.fold_in(key, task.index), number)
