"""The loop over a sequence of tasks; it may be left and entered at any batch."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.plan import Calibrating, Step, has_phase, plan_of
from pecft_jax.devices.sharding import place
from pecft_jax.paths import shortened
from pecft_jax.train.batches import below_training, in_order, training_batches
from pecft_jax.train.context import Loop, NonFiniteLoss
from pecft_jax.train.evaluation import evaluate, evaluate_inside, start
from pecft_jax.train.logs import fetch, write_fit_rows, write_training_rows
from pecft_jax.train.phases import not_finite
from pecft_jax.train.schedule import (
  boundary_of,
  fit_steps,
  gathered_split,
  stored_examples,
  task_arrays,
  training_split,
  training_steps,
)
from pecft_jax.typing import ContinualMethod, Fit, Gather, TrainState
from pecft_jax.workdir.position import Position


def run_tasks(loop: Loop, state: TrainState, position: Position) -> TrainState:
  """Runs from a position to the end of the sequence.

  Args:
    loop: the run.
    state: at that position; consumed.
    position: changed in place.

  Raises:
    NonFiniteLoss: where a training loss, an answer or what a pass gathered is not finite.
  """
  plan = plan_of(loop.method)
  phases: dict[str, Phase] = {'start': start}
  for step in plan:
    name = step if isinstance(step, str) else step.name
    phases[name] = functools.partial(_skipping, step, _PHASES.get(name, _own))
  phases['evaluate'] = evaluate
  while position.task < len(loop.experiment.scenario.tasks):
    started = loop.clock()
    spent = position.seconds[position.task] if position.task < len(position.seconds) else 0.0
    for after in phases[position.phase](loop, state, position):
      state = after
      # Seconds are kept current, so that they add up over interruptions.
      position.seconds[position.task :] = [spent + loop.clock() - started]
      position.tick += 1
      loop.after_batch(state, position)
    _advance(position, list(phases))
  return state


Phase = Callable[[Loop, TrainState, Position], Iterator[TrainState]]


def _advance(position: Position, order: list[str]) -> None:
  following = order.index(position.phase) + 1
  position.batch = 0
  position.data = None
  if following == len(order):
    position.task += 1
    following = 0
  position.phase = order[following]


def _skipping(
  step: Step, run: Any, loop: Loop, state: TrainState, position: Position
) -> Iterator[TrainState]:
  """The batches of a phase; none where the current task has no such phase."""
  scenario, t = loop.experiment.scenario, position.task
  at = t if scenario.boundaries else boundary_of(loop.method, step, t, len(scenario.tasks))
  if at is None:
    if step == 'begin':
      yield from _enter(loop, state, position)
  elif has_phase(loop.method, step, at):
    yield from run(loop, state, position, step)


def _begin(loop: Loop, state: TrainState, position: Position, _: Step) -> Iterator[TrainState]:
  if position.batch:
    return
  task = task_arrays(loop.experiment, loop.method, position.task)
  state = loop.steps.begin(state, loop.frozen, task)
  position.batch = 1
  yield state


def _enter(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """The next part of a stream whose boundaries the method is not told."""
  if position.batch:
    return
  state = loop.steps.enter(state, task_arrays(loop.experiment, loop.method, position.task))
  position.batch = 1
  yield state


def _once(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  if position.batch:
    return
  run = loop.steps.end if step == 'end' else loop.steps.own[step.name]
  state = run(state, loop.frozen)
  position.batch = 1
  yield state


def _gather(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  """One pass over the task's training data, as they are and in order."""
  run = getattr(loop.steps, step) if isinstance(step, str) else loop.steps.own[step.name]
  splits = [gathered_split(each, loop.method, step, position.task) for each in loop.data]
  below = None
  if loop.tokens is not None and loop.tokens.lower.gathered and not isinstance(step, Calibrating):
    below = below_training(loop, splits, position.task)
  for batch in in_order(loop, splits, position.batch, below=below):
    state = run(state, loop.frozen, batch)
    position.batch += 1
    loop.tell(position, None, False)
    yield state
  _check_finite(loop, state, step if isinstance(step, str) else step.name, position.task)
  loop.tell(position, None, True)
  if isinstance(step, Calibrating):
    _check_gradients(loop.method, state, step)


def _check_finite(loop: Loop, state: TrainState, name: str, task: int) -> None:
  """Raises NonFiniteLoss for NaN, and for infinities in what does not begin with any."""
  trees = {'params': state.params, 'memory': state.memory, 'extra': state.extra}
  found = jax.device_get(_not_finite(trees))
  bad = {leaf for leaf, (nan, _) in found.items() if nan}
  if infinite := {leaf for leaf, (_, inf) in found.items() if inf}:
    # Rare: only now is `init` called to see what may be infinite, such as a running minimum.
    at_start = jax.jit(
      lambda key, frozen: dict(
        zip(('params', 'memory'), loop.method.init(key, frozen), strict=True)
      )
    )
    may = jax.device_get(_not_finite(at_start(jax.random.key(0), loop.frozen)))
    bad |= {leaf for leaf in infinite if leaf not in may or not may[leaf][1]}
  if bad:
    raise NonFiniteLoss(
      f'{shortened(sorted(bad), 4)} hold NaN or infinities after the pass {name!r} over the data '
      f'of task {task}: expected finite numbers; look at the data, and at what the pass divides by'
    )


_not_finite = jax.jit(not_finite)
_any_numbers = jax.jit(lambda tree: jax.tree.map(jnp.any, tree))


def _check_gradients(method: ContinualMethod, state: TrainState, step: Calibrating) -> None:
  """Raises ValueError where all gradients were zero: a choice by them means nothing."""
  calibration = method.transforms[step.entry].calibrate
  if calibration is None or calibration.gradients is None:
    return
  if not any(map(np.any, jax.tree.leaves(jax.device_get(_any_numbers(state.extra[step.name]))))):
    raise ValueError(
      f'{step.name}: all gradients are zero, so nothing can be chosen by them; the output does not '
      'depend on the weights at these sites, as with a head of zeros that is not declared'
    )


def _train(loop: Loop, state: TrainState, position: Position, _: Step) -> Iterator[TrainState]:
  experiment, t = loop.experiment, position.task
  training = experiment.training
  total = training_steps(experiment, loop.method, t)
  splits = [training_split(each, loop.method, t) for each in loop.data]
  stored = stored_examples(experiment, loop.method, t)
  if position.inside is not None:
    yield from evaluate_inside(loop, state, position)
  if position.batch == total:
    return
  started, spent, began = loop.clock(), position.training_seconds, position.batch
  for batch in training_batches(loop, position, splits, training.epochs, stored):
    state, log = loop.steps.train(state, loop.frozen, batch)
    # Losses stay on their device, so that no step waits for the host.
    position.logs.append(log)
    position.batch += 1
    position.images += training.batch_size * len(loop.experiments)
    position.training_seconds = spent + loop.clock() - started
    if position.batch == began + 1:
      loop.tell(position, None, False)  # So that compilation counts as no step.
    if position.batch % training.log_every == 0 or position.batch == total:
      fetch(position)
      write_training_rows(loop, position, len(splits[0].rows) + stored)
    if training.evaluate_every is not None and position.batch % training.evaluate_every == 0:
      position.inside = 0
      yield state
      yield from evaluate_inside(loop, state, position)
    else:
      yield state


def _fit(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  """The updates of a phase of the method's own."""
  total = fit_steps(loop.experiment, loop.method, step, position.task)
  run, one, began = loop.steps.own[step.name], loop.steps.counts_sharding, position.batch
  if step.steps is None:
    splits = [training_split(each, loop.method, position.task) for each in loop.data]
    batches: Any = ((batch,) for batch in training_batches(loop, position, splits, step.epochs))
  else:
    batches = itertools.repeat(())
  for number, given in zip(range(position.batch, total), batches, strict=False):
    at, of = place((np.int32(number), np.int32(total)), (one, one))
    state, log = run(state, loop.frozen, *given, at, of)
    position.logs.append(log)
    position.batch += 1
    if position.batch == began + 1:
      loop.tell(position, None, False)
    if position.batch % loop.experiment.training.log_every == 0 or position.batch == total:
      fetch(position)
      write_fit_rows(loop, position, step, total)
    yield state


def _own(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  """A phase of the method's own."""
  match step:
    case Fit():
      return _fit(loop, state, position, step)
    case Gather() | Calibrating():
      return _gather(loop, state, position, step)
  return _once(loop, state, position, step)


_PHASES: Mapping[str, Any] = {
  'begin': _begin,
  'prepare': _gather,
  'train': _train,
  'consolidate': _gather,
  'end': _once,
}
