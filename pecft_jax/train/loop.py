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
from pecft_jax.devices.sharding import place
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.schedule import task_arrays, training_split, training_steps
from pecft_jax.train.step import Counts, Steps
from pecft_jax.typing import Batch, ContinualMethod, Params, TrainState
from pecft_jax.workdir.position import PHASES, Position
from pecft_jax.workdir.record import Record, Unwritten


class NonFiniteLoss(ArithmeticError):
  """Training diverged: the loss, or a parameter, is no number; the last good checkpoint stays."""


@dataclasses.dataclass(frozen=True)
class Loop:
  """What a run needs at hand; the state and the position are passed along.

  Attributes:
    experiment: data and training settings.
    method: that is run.
    seeds: learnt side by side; the experiment's own counts for nothing.
    steps: its compiled functions.
    frozen: the backbone's weights, on their devices.
    part: index and count of the parts of a batch, of which this process has one.
    records: take rows, one for each seed.
    after_batch: called with state and position when both are consistent: the
      place for checkpoints and stops.
    tell: called with the position and the latest loss, for progress bars.
  """

  experiment: Experiment
  method: ContinualMethod
  seeds: tuple[int, ...]
  steps: Steps
  frozen: Params
  part: tuple[int, int]
  records: tuple[Record | Unwritten, ...]
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
  for batch in _in_order(loop, split, position.batch):
    state = step(state, loop.frozen, batch)
    position.batch += 1
    loop.tell(position, None)
    yield state


def _in_order(loop: Loop, split: Split, start: int = 0) -> Iterator[Batch]:
  """Batches of a split as they are, on their devices; all seeds share them."""
  size = loop.experiment.training.eval_batch_size
  index, count = loop.part
  batches = eval_batches(
    split, batch_size=size, start=start, process_index=index, process_count=count
  )
  for batch in batches:
    yield on_devices(batch, loop.steps.batch_sharding, loop.part)


def _train(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  experiment, t = loop.experiment, position.task
  training = experiment.training
  total = training_steps(experiment, loop.method, t)
  if position.batch == total:
    return
  split = training_split(experiment, loop.method, t)
  streams = _streams(loop, split, t)
  if position.data is not None:
    for stream in streams:
      stream.set_state(position.data)
  started, spent = time.perf_counter(), position.training_seconds
  for batches in zip(*streams, strict=True):
    batch = _stacked(loop, batches)
    state, log = loop.steps.train(state, loop.frozen, batch)
    # Losses wait on their device, so that no step waits for the host.
    position.logs.append(log)
    position.batch += 1
    position.data = streams[0].get_state()
    position.images += training.batch_size * len(loop.seeds)
    position.training_seconds = spent + time.perf_counter() - started
    if position.batch % training.log_every == 0 or position.batch == total:
      _fetch(position)
      _write_training_rows(loop, position, len(split.rows), total)
    yield state


def _streams(loop: Loop, split: Split, t: int) -> list[Any]:
  """Training batches of a task, an iterator for each seed."""
  training = loop.experiment.training
  cached = training.cache_queries and loop.steps.query is not None
  query = _queries(loop, split) if cached else None
  index, count = loop.part
  return [
    train_batches(
      split,
      batch_size=training.batch_size,
      epochs=training.epochs,
      seed=fold_seed(seed, t),
      augment=training.augment,
      query=query,
      process_index=index,
      process_count=count,
    )
    for seed in loop.seeds
  ]


def _stacked(loop: Loop, batches: tuple[Batch, ...]) -> Batch:
  """The batches of all seeds on their devices, stacked where the state is."""
  sharding, axis = loop.steps.train_batch_sharding, loop.steps.seed_axes
  if not axis:
    return on_devices(batches[0], sharding, loop.part)
  return on_devices(jax.tree.map(lambda *rows: np.stack(rows), *batches), sharding, loop.part, axis)


def settle(position: Position) -> None:
  """Fetches all that waits on the devices, and checks it; before every save.

  Raises:
    NonFiniteLoss: if the loss of a step, or a parameter after it, was not finite.
  """
  _fetch(position)
  for j, sums in position.sums.items():
    # [3] or [3, S] to a row for each seed.
    rows = np.stack(jax.device_get(sums)).reshape(len(sums), -1).T.tolist()
    for found, row in zip(position.seeds, rows, strict=True):
      found.counts[j:] = [row]
  position.sums = {}


def _fetch(position: Position) -> None:
  done = position.batch - len(position.logs)
  for step, log in enumerate(jax.device_get(position.logs), done + 1):
    columns = zip(*(np.ravel(values) for values in log), strict=True)
    for i, (found, (loss, correct, total, finite)) in enumerate(
      zip(position.seeds, columns, strict=True)
    ):
      where = f'task {position.task}, step {step} of the task'
      if len(position.seeds) > 1:
        where += f', of seed number {i}'
      if not math.isfinite(loss):
        raise NonFiniteLoss(f'the loss is {float(loss)} at {where}')
      if not finite:
        raise NonFiniteLoss(f'the parameters are not finite after {where}')
      found.losses.append([float(loss), int(correct), int(total)])
  position.logs = []


def _write_training_rows(loop: Loop, position: Position, examples: int, total: int) -> None:
  training = loop.experiment.training
  means = []
  for found, record in zip(position.seeds, loop.records, strict=True):
    loss, correct, count = np.sum(found.losses, axis=0)
    means.append(float(loss) / len(found.losses))
    row = {
      'kind': 'train',
      'task': position.task,
      'epoch': min(training.epochs, steps_for(position.batch * training.batch_size, examples, 1)),
      'step': position.batch,
      'loss': means[-1],
      'accuracy': float(correct / count),
      'learning_rate': float(training.recipe.rate(jnp.float32((position.batch - 1) / total))),
      'seconds': round(sum(position.seconds), 3),
    }
    found.losses = []
    record.write(row)
    found.rows = record.rows
  loop.tell(position, sum(means) / len(means))


def _queries(loop: Loop, split: Split) -> np.ndarray:
  """Frozen queries [n, D] of a split, computed once per example."""
  assert loop.steps.query is not None
  queries = [np.asarray(loop.steps.query(loop.frozen, b.x)) for b in _in_order(loop, split)]
  return np.concatenate(queries)[: len(split.rows)]


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
    sums = _counts_so_far(loop, position, j)
    for batch in _in_order(loop, test, done):
      sums = loop.steps.predict(state, loop.frozen, batch, classes, sums)
      position.batch += 1
      position.sums[j] = sums
      loop.tell(position, None)
      yield state
    done = 0
  if position.evaluated() == t:
    _write_accuracies(loop, position)
    yield state


def _counts_so_far(loop: Loop, position: Position, j: int) -> Counts:
  """Sums over the examples of task j that were evaluated, on their devices."""
  rows = [found.counts[j] if len(found.counts) > j else [0, 0, 0] for found in position.seeds]
  columns = np.array(rows, np.int32).T
  if not loop.steps.seed_axes:
    columns = columns[:, 0]
  return place(Counts(*columns), Counts(*[loop.steps.counts_sharding] * 3))


def _write_accuracies(loop: Loop, position: Position) -> None:
  tasks = len(loop.experiment.scenario.tasks)
  blank: list[float | None] = [None] * (tasks - position.task - 1)
  settle(position)
  for found, record in zip(position.seeds, loop.records, strict=True):
    correct, aware, total = zip(*found.counts, strict=True)
    share = lambda right, total=total: [r / n for r, n in zip(right, total, strict=True)]
    row = {
      'kind': 'eval',
      'task': position.task,
      'accuracy': sum(correct) / sum(total),
      'evaluated': share(correct),
      'aware': share(aware),
      'seconds': round(sum(position.seconds), 3),
    }
    found.accuracy.append([*share(correct), *blank])
    found.aware.append([*share(aware), *blank])
    found.counts = []
    record.write(row)
    found.rows = record.rows


def on_devices(batch: Batch, sharding: Any, part: tuple[int, int] = (0, 1), axis: int = 0) -> Batch:
  """A batch of this process's rows, as one global batch over all devices.

  Args:
    batch: numpy arrays with B / count rows each.
    sharding: of the global arrays.
    part: index of this process's contiguous part of the rows, and their count.
    axis: of the rows.
  """
  index, count = part

  def put(array: Any) -> jax.Array:
    array = np.asarray(array)
    shape = list(array.shape)
    first = index * shape[axis]
    shape[axis] *= count

    def shard(where: Any) -> np.ndarray:
      low, high, _ = where[axis].indices(shape[axis])
      return array[(*where[:axis], slice(low - first, high - first), *where[axis + 1 :])]

    return jax.make_array_from_callback(tuple(shape), sharding, shard)

  return jax.tree.map(put, batch)
