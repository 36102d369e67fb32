"""The loop over a sequence of tasks; it may be left and entered at any batch."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.data import Split, eval_batches, fold_seed, steps_for, task_masks, train_batches
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.position import PHASES, Position
from pecft_jax.train.record import Record
from pecft_jax.train.schedule import task_arrays, training_split, training_steps
from pecft_jax.train.step import Counts, Steps
from pecft_jax.typing import Batch, ContinualMethod, Params, TrainState


class NonFiniteLoss(ArithmeticError):
  """Training diverged: the loss, or a parameter, is no number; the last good checkpoint stays."""


@dataclasses.dataclass(frozen=True)
class Loop:
  """What a run needs at hand; the state and the position are passed along.

  Attributes:
    experiment: data and training settings.
    method: that is run.
    steps: its compiled functions.
    frozen: the backbone's weights, on their devices.
    record: takes rows.
    after_batch: called with state and position when both are consistent: the
      place for checkpoints and stops.
    tell: called with the position and the latest loss, for progress bars.
  """

  experiment: Experiment
  method: ContinualMethod
  steps: Steps
  frozen: Params
  record: Record
  after_batch: Callable[[TrainState, Position], None]
  tell: Callable[[Position, float | None], None]


def run_tasks(loop: Loop, state: TrainState, position: Position) -> TrainState:
  """Runs from a position to the end of the sequence.

  Args:
    loop: the run.
    state: at that position; consumed.
    position: changed in place.

  Raises:
    NonFiniteLoss: where a training loss is not finite.
  """
  phases = {
    'begin': _begin,
    'prepare': _prepare,
    'train': _train,
    'consolidate': _consolidate,
    'end': _end,
    'evaluate': _evaluate,
  }
  while position.task < len(loop.experiment.scenario.tasks):
    started = time.perf_counter()
    spent = position.seconds[position.task] if position.task < len(position.seconds) else 0.0
    for after in phases[position.phase](loop, state, position):
      state = after
      # Seconds are kept current, so that they add up over interruptions.
      position.seconds[position.task :] = [spent + time.perf_counter() - started]
      position.tick += 1
      loop.after_batch(state, position)
    _advance(position)
  return state


def _advance(position: Position) -> None:
  following = PHASES.index(position.phase) + 1
  position.batch = 0
  position.data = None
  if following == len(PHASES):
    position.task += 1
    following = 0
  position.phase = PHASES[following]


def _begin(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  if position.batch:
    return
  task = task_arrays(loop.experiment, loop.method, position.task)
  state = loop.steps.begin(state, loop.frozen, task)
  position.batch = 1
  yield state


def _end(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  if position.batch:
    return
  state = loop.steps.end(state, loop.frozen)
  position.batch = 1
  yield state


def _prepare(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  yield from _gather(loop, loop.steps.prepare, state, position)


def _consolidate(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  yield from _gather(loop, loop.steps.consolidate, state, position)


def _gather(loop: Loop, step: Any, state: TrainState, position: Position) -> Iterator[TrainState]:
  """One pass over the task's training data, as they are and in order."""
  if step is None:
    return
  split = training_split(loop.experiment, loop.method, position.task)
  size = loop.experiment.training.eval_batch_size
  for batch in eval_batches(split, batch_size=size, start=position.batch, **_part()):
    state = step(state, loop.frozen, on_devices(batch, loop.steps.batch_sharding))
    position.batch += 1
    loop.tell(position, None)
    yield state


def _train(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  experiment, t = loop.experiment, position.task
  training = experiment.training
  total = training_steps(experiment, loop.method, t)
  if position.batch == total:
    return
  split = training_split(experiment, loop.method, t)
  batches = train_batches(
    split,
    batch_size=training.batch_size,
    epochs=training.epochs,
    seed=fold_seed(experiment.seed, t),
    augment=training.augment,
    query=_queries(loop, split) if training.cache_queries and loop.steps.query else None,
    **_part(),
  )
  if position.data is not None:
    batches.set_state(position.data)
  started, spent = time.perf_counter(), position.training_seconds
  for batch in batches:
    state, log = loop.steps.train(state, loop.frozen, on_devices(batch, loop.steps.batch_sharding))
    # Losses wait on their device, so that no step waits for the host.
    position.unfetched.append(log)
    position.batch += 1
    position.data = batches.get_state()
    position.images += training.batch_size
    position.training_seconds = spent + time.perf_counter() - started
    if position.batch % training.log_every == 0 or position.batch == total:
      _fetch(position)
      _write_training_row(loop, position, len(split.rows), total)
    yield state


def settle(position: Position) -> None:
  """Fetches all that waits on the devices, and checks it; before every save.

  Raises:
    NonFiniteLoss: if the loss of a step, or a parameter after it, was not finite.
  """
  _fetch(position)
  position.counts = [[int(n) for n in jax.device_get(sums)] for sums in position.counts]


def _fetch(position: Position) -> None:
  done = position.batch - len(position.unfetched)
  for step, log in enumerate(jax.device_get(position.unfetched), done + 1):
    where = f'task {position.task}, step {step} of the task'
    if not math.isfinite(log.loss):
      raise NonFiniteLoss(f'the loss is {float(log.loss)} at {where}')
    if not log.finite:
      raise NonFiniteLoss(f'the parameters are not finite after {where}')
    position.losses.append([float(log.loss), int(log.correct), int(log.total)])
  position.unfetched = []


def _write_training_row(loop: Loop, position: Position, examples: int, total: int) -> None:
  training = loop.experiment.training
  loss, correct, count = np.sum(position.losses, axis=0)
  row = {
    'kind': 'train',
    'task': position.task,
    'epoch': min(training.epochs, steps_for(position.batch * training.batch_size, examples, 1)),
    'step': position.batch,
    'loss': float(loss) / len(position.losses),
    'accuracy': float(correct / count),
    'learning_rate': float(training.recipe.rate(jnp.float32((position.batch - 1) / total))),
    'seconds': round(sum(position.seconds), 3),
  }
  position.losses = []
  loop.record.write(row)
  position.rows = loop.record.rows
  loop.tell(position, row['loss'])


def _queries(loop: Loop, split: Split) -> np.ndarray:
  """Frozen queries [n, D] of a split, computed once per example."""
  assert loop.steps.query is not None
  size = loop.experiment.training.eval_batch_size
  out = []
  for batch in eval_batches(split, batch_size=size, **_part()):
    on = on_devices(batch, loop.steps.batch_sharding)
    query = loop.steps.query(loop.frozen, on.x)
    out.append(np.asarray(query)[batch.valid])
  return np.concatenate(out)


def _evaluate(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """Every task so far, batch by batch; partial sums are in the position."""
  scenario, t = loop.experiment.scenario, position.task
  size = loop.experiment.training.eval_batch_size
  done = position.batch
  for j in range(t + 1):
    test = scenario.tasks[j].test
    count = steps_for(len(test.rows), size, 1)
    if done >= count:
      done -= count
      continue
    classes, _ = task_masks(scenario, j)
    if len(position.counts) == j:
      position.counts.append([0, 0, 0])
    sums = [np.int32(n) for n in position.counts[j]]
    sums = Counts(*jax.device_put(sums, loop.steps.counts_sharding))  # As `predict` returns them.
    batches = eval_batches(test, batch_size=size, start=done, **_part())
    done = 0
    for batch in batches:
      on = on_devices(batch, loop.steps.batch_sharding)
      sums = loop.steps.predict(state, loop.frozen, on, classes, sums)
      position.batch += 1
      position.counts[j] = list(sums)
      loop.tell(position, None)
      yield state
  if position.counts:
    _write_accuracies(loop, position)
    yield state


def _write_accuracies(loop: Loop, position: Position) -> None:
  tasks = len(loop.experiment.scenario.tasks)
  blank: list[float | None] = [None] * (tasks - position.task - 1)
  settle(position)
  correct, aware, total = zip(*position.counts, strict=True)
  share = lambda right: [r / n for r, n in zip(right, total, strict=True)]
  row = {
    'kind': 'eval',
    'task': position.task,
    'accuracy': sum(correct) / sum(total),
    'evaluated': share(correct),
    'aware': share(aware),
    'seconds': round(sum(position.seconds), 3),
  }
  position.accuracy.append([*share(correct), *blank])
  position.aware.append([*share(aware), *blank])
  position.counts = []
  loop.record.write(row)
  position.rows = loop.record.rows


def on_devices(batch: Batch, sharding: Any) -> Batch:
  """A batch of this process's rows, as one global batch over all devices."""
  put = lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array))
  return jax.tree.map(put, batch)


def _part() -> dict[str, Any]:
  return {'process_index': jax.process_index(), 'process_count': jax.process_count()}
