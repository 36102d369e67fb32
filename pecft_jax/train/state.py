"""The state of a run at its start, and the keys of its events."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.plan import Calibrating, plan_of
from pecft_jax.peft.halves import split_kept
from pecft_jax.peft.leaves import weights_named
from pecft_jax.recipes import Recipe
from pecft_jax.train.guard import calling, check_start, pair
from pecft_jax.typing import (
  Array,
  Calibration,
  Capacity,
  ContinualMethod,
  Delta,
  Fit,
  Key,
  Params,
  Task,
  TrainState,
)


def no_task(capacity: Capacity) -> Task:
  """The task before the first: nothing seen."""
  none = lambda: jnp.zeros(capacity.classes, bool)
  index, home = jnp.asarray(-1, jnp.int32), jnp.full(capacity.classes, -1, jnp.int32)
  start, steps = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
  return Task(index, none(), none(), none(), home, start, steps)


def init_state(method: ContinualMethod, recipe: Recipe, key: Key, frozen: Params) -> TrainState:
  """The state before the first task. Consumes the key."""
  k_init, k_run = jax.random.split(key)
  with calling(method, 'init'):
    params, memory = pair(method, 'init', method.init(k_init, frozen))
  check_start(method, params, memory)
  task = no_task(method.capacity)
  step = jnp.zeros((), jnp.int32)
  # As plain numbers: for typed keys jit sees new shardings where nothing changed.
  data = jax.random.key_data(k_run)
  opt_state = recipe.tx.init(split_kept(params)[0])
  return TrainState(params, memory, opt_state, task, step, data, fresh_extra(method, params))


def fresh_extra(method: ContinualMethod, params: Params) -> dict[str, Any]:
  """The initial state of the method's own phases: optimizer states, statistics."""
  extra: dict[str, Any] = {}
  for step in plan_of(method):
    if isinstance(step, Fit):
      part = {name: params[name] for name in step.trains}
      extra[step.name] = step.recipe.tx.init(split_kept(part)[0])
    if isinstance(step, Calibrating):
      calibration = method.transforms[step.entry].calibrate
      assert calibration is not None
      extra[step.name] = no_statistics(method, calibration, params[step.entry])
  return extra


def no_statistics(method: ContinualMethod, calibration: Calibration, delta: Delta) -> Any:
  """The initial statistics of a calibration."""
  if calibration.gradients is None:
    return calibration.empty(delta, {})
  names, backbone = calibration.gradients(delta), method.backbone
  key = jax.eval_shape(lambda: jax.random.key(0))
  weights = jax.eval_shape(lambda k: weights_named(names, backbone.init(k), backbone.sites), key)
  return calibration.empty(delta, weights)


def key_for(state: TrainState, task: Task, number: Array | int) -> Key:
  """The key of one numbered event of a task, a function of these numbers alone."""
  key = jax.random.wrap_key_data(state.key)
  return jax.random.fold_in(jax.random.fold_in(key, task.index), number)


def own_key(state: TrainState, number: int) -> Key:
  """The key of a phase of the method's own, by its number among them."""
  # Numbers used by neither training steps nor the beginning of a task.
  return key_for(state, state.task, 2**32 - 2 - number)
