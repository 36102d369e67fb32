"""The phases of a task besides training, as pure functions of the train state."""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.continual.core import model
from pecft_jax.continual.plan import Calibrated, Calibrating
from pecft_jax.paths import named_leaves
from pecft_jax.peft.halves import split_kept
from pecft_jax.problems import Judged
from pecft_jax.recipes import Recipe
from pecft_jax.train.guard import calling, carried, pair
from pecft_jax.train.state import fresh_extra, key_for, own_key
from pecft_jax.train.update import env_of
from pecft_jax.typing import (
  Array,
  Batch,
  ContinualMethod,
  Env,
  GatherHook,
  Once,
  Params,
  Task,
  TrainState,
)


class Answers(NamedTuple):
  """A batch as a judge on the host needs it, whole on every device."""

  answers: Array  # [B, ...], as `HostJudge.answers` gives them.
  targets: Array  # [B, ...]
  valid: Array  # [B] bool
  no_number: Array  # [] bool, whether an answer to a valid example is NaN.


# The total of a test set for which an answer is no number.
NO_NUMBER = -1


class Run(NamedTuple):
  """What the phases of a method share: `restart` is whether each task has a fresh optimizer."""

  method: ContinualMethod
  recipe: Recipe
  restart: bool = True


def begin(run: Run, state: TrainState, frozen: Params, task: Task) -> TrainState:
  """The next task, with everything that starts afresh."""
  method, task = run.method, task._replace(start=state.step)
  params, memory = state.params, state.memory
  if method.begin_task is not None:
    key = key_for(state, task, 2**32 - 1)  # A number that no training step has.
    env = Env(frozen, task, state.step - task.start)
    with calling(method, 'begin_task'):
      params, memory = pair(method, 'begin_task', method.begin_task(params, memory, env, key))
  after = state._replace(params=params, memory=memory, task=task)
  return _renewed(run, carried(method, 'begin_task', state, after))


def enter(state: TrainState, task: Task) -> TrainState:
  """The next part of a stream without boundaries: no hook is called, nothing starts afresh."""
  return state._replace(task=task._replace(start=state.task.start))


def gather(
  method: ContinualMethod,
  hook: GatherHook,
  name: str,
  state: TrainState,
  frozen: Params,
  batch: Batch,
) -> TrainState:
  """One batch of a pass over the task's data."""
  with calling(method, name):
    memory = hook(state.params, state.memory, env_of(state, frozen), batch)
  return carried(method, name, state, state._replace(memory=memory))


def once(run: Run, phase: Once, number: int, state: TrainState, frozen: Params) -> TrainState:
  """A phase of one call; `number` is its own among those of the method."""
  method, key = run.method, own_key(state, number)
  with calling(method, phase.name):
    found = phase.hook(state.params, state.memory, env_of(state, frozen), key)
  params, memory = pair(method, phase.name, found)
  after = carried(method, phase.name, state, state._replace(params=params, memory=memory))
  return _optimised(run, after)


def end(run: Run, state: TrainState, frozen: Params) -> TrainState:
  """The end of a task."""
  method, params, memory = run.method, state.params, state.memory
  if method.end_task is not None:
    with calling(method, 'end_task'):
      found = method.end_task(params, memory, env_of(state, frozen))
    params, memory = pair(method, 'end_task', found)
  after = carried(method, 'end_task', state, state._replace(params=params, memory=memory))
  # The next task starts with a fresh optimizer; zeros take no room in checkpoints that are kept.
  return _renewed(run, after)


def predict(
  method: ContinualMethod,
  state: TrainState,
  frozen: Params,
  batch: Batch,
  classes: Array,
  counts: Judged,
) -> Judged:
  """Adds up what the problem judges; `classes` [C] are those of the examples' own task.

  The total becomes `NO_NUMBER`, and stays so, where an answer to a valid example is NaN.
  """
  with calling(method, 'predict'):
    answers = method.predict(state.params, state.memory, env_of(state, frozen), batch.x)
  # What `predict` gives has -inf for classes not seen: all may be asked.
  every = jnp.ones_like(classes)
  new = method.capacity.problem.judge(answers, batch.y, batch.valid, every, classes)
  found = Judged(*map(jnp.add, counts, new))
  no_number = _no_number(answers, batch) | (counts.total < 0)
  return found._replace(total=jnp.where(no_number, NO_NUMBER, found.total))


def answer(method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch) -> Answers:
  """What is brought to the host where the problem is judged there."""
  with calling(method, 'predict'):
    answers = method.predict(state.params, state.memory, env_of(state, frozen), batch.x)
  host = method.capacity.problem.host
  assert host is not None
  return Answers(host.answers(answers), batch.y, batch.valid, _no_number(answers, batch))


def _no_number(answers: Array, batch: Batch) -> Array:
  # Comparisons with NaN are false, so that it would be counted as some class.
  return (jnp.isnan(answers).reshape(len(answers), -1).any(1) & batch.valid).any()


def not_numbers(state: TrainState) -> dict[str, Array]:
  """Whether each leaf of params and memory holds NaN, by name: [] bool each."""
  leaves = named_leaves({'params': state.params, 'memory': state.memory})
  return {
    name: jnp.isnan(leaf).any() for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)
  }


def calibrate(
  method: ContinualMethod, step: Calibrating, state: TrainState, frozen: Params, batch: Batch
) -> TrainState:
  """Statistics of one batch more for the calibration of a delta."""
  transform = method.transforms[step.entry]
  assert transform.calibrate is not None
  run = model(method.backbone, transform).run
  watch = transform.calibrate.watch
  taps = run(frozen, state.params[step.entry], batch.x, watch=watch, rows=None).taps
  statistics = transform.calibrate.add(state.extra[step.name], taps, batch.valid)
  return state._replace(extra={**state.extra, step.name: statistics})


def calibrated(run: Run, step: Calibrated, state: TrainState, frozen: Params) -> TrainState:
  """The delta that the statistics give, with an optimizer that starts from it."""
  del frozen
  calibration = run.method.transforms[step.entry].calibrate
  assert calibration is not None
  statistics = state.extra[f'calibrate {step.entry}']
  delta = calibration.finish(state.params[step.entry], statistics)
  after = state._replace(params={**state.params, step.entry: delta})
  return _optimised(run, carried(run.method, step.name, state, after))


def _renewed(run: Run, state: TrainState) -> TrainState:
  """With a fresh optimizer, and phases of the method's own at their start."""
  return _optimised(run, state._replace(extra=fresh_extra(run.method, state.params)))


def _optimised(run: Run, state: TrainState) -> TrainState:
  """With an optimizer that starts from the parameters as they are."""
  if not run.restart:
    return state
  return state._replace(opt_state=run.recipe.tx.init(split_kept(state.params)[0]))
