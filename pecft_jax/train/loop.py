"""The loop over a sequence of tasks; it may be left and entered at any batch."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.plan import Calibrating, Step, has_phase, plan_of
from pecft_jax.data import Split, eval_batches, fold_seed, steps_for, task_masks, train_batches
from pecft_jax.devices.sharding import place
from pecft_jax.paths import shortened
from pecft_jax.problems import Judged
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.phases import not_numbers
from pecft_jax.train.schedule import (
  boundary_of,
  fit_steps,
  progress_of,
  stored_examples,
  task_arrays,
  training_split,
  training_steps,
)
from pecft_jax.train.step import Steps
from pecft_jax.typing import Batch, ContinualMethod, Fit, Gather, Given, Params, TrainState
from pecft_jax.workdir.position import Findings, Position
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


class TestSet(NamedTuple):
  """What an evaluation goes through."""

  split: Split
  classes: np.ndarray  # [C] bool, those of its task.
  task: int  # -1 for a set that is no task's.


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
  phases: dict[str, Phase] = {'start': _start}
  for step in plan:
    name = step if isinstance(step, str) else step.name
    phases[name] = functools.partial(_skipping, step, _PHASES.get(step, _own))
  phases['evaluate'] = _evaluate
  while position.task < len(loop.experiment.scenario.tasks):
    started = time.perf_counter()
    spent = position.seconds[position.task] if position.task < len(position.seconds) else 0.0
    for after in phases[position.phase](loop, state, position):
      state = after
      # Seconds are kept current, so that they add up over interruptions.
      position.seconds[position.task :] = [spent + time.perf_counter() - started]
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
  """The batches of a phase; none where the task at hand has no such phase."""
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
  split = training_split(loop.experiment, loop.method, position.task)
  for batch in _in_order(loop, split, position.batch):
    state = run(state, loop.frozen, batch)
    position.batch += 1
    loop.tell(position, None)
    yield state
  name = step if isinstance(step, str) else step.name
  if bad := [leaf for leaf, found in jax.device_get(_not_numbers(state)).items() if found]:
    raise NonFiniteLoss(
      f'{shortened(bad, 4)} hold NaN after the pass {name!r} over the data of task {position.task}'
    )


_not_numbers = jax.jit(not_numbers)


def _in_order(loop: Loop, split: Split, start: int = 0) -> Iterator[Batch]:
  """Batches of a split as they are, on their devices; all seeds share them."""
  size = loop.experiment.training.eval_batch_size
  index, count = loop.part
  batches = eval_batches(
    split, batch_size=size, start=start, process_index=index, process_count=count
  )
  for batch in batches:
    yield on_devices(batch, loop.steps.batch_sharding, loop.part)


def _train(loop: Loop, state: TrainState, position: Position, _: Step) -> Iterator[TrainState]:
  experiment, t = loop.experiment, position.task
  training = experiment.training
  total = training_steps(experiment, loop.method, t)
  split = training_split(experiment, loop.method, t)
  stored = stored_examples(experiment, loop.method, t)
  if position.inside is not None:
    yield from _evaluate_inside(loop, state, position)
  if position.batch == total:
    return
  started, spent = time.perf_counter(), position.training_seconds
  for batch in _training_batches(loop, position, split, training.epochs, stored):
    state, log = loop.steps.train(state, loop.frozen, batch)
    # Losses wait on their device, so that no step waits for the host.
    position.logs.append(log)
    position.batch += 1
    position.images += training.batch_size * len(loop.seeds)
    position.training_seconds = spent + time.perf_counter() - started
    if position.batch % training.log_every == 0 or position.batch == total:
      _fetch(position)
      _write_training_rows(loop, position, len(split.rows) + stored)
    if training.evaluate_every is not None and position.batch % training.evaluate_every == 0:
      position.inside = 0
      yield state
      yield from _evaluate_inside(loop, state, position)
    else:
      yield state


def _training_batches(
  loop: Loop, position: Position, split: Split, epochs: int, stored: int = 0
) -> Iterator[Batch]:
  """Shuffled batches from the position on, on their devices; keeps the state of their stream."""
  streams = _streams(loop, split, position.task, epochs, stored)
  if position.data is not None:
    for stream in streams:
      stream.set_state(position.data)
  for batches in zip(*streams, strict=True):
    position.data = streams[0].get_state()
    yield _stacked(loop, batches)


def _fit(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  """The updates of a phase of the method's own."""
  total = fit_steps(loop.experiment, loop.method, step, position.task)
  run, one = loop.steps.own[step.name], loop.steps.counts_sharding
  if step.steps is None:
    split = training_split(loop.experiment, loop.method, position.task)
    batches: Any = ((batch,) for batch in _training_batches(loop, position, split, step.epochs))
  else:
    batches = itertools.repeat(())
  for number, given in zip(range(position.batch, total), batches, strict=False):
    at, of = place((np.int32(number), np.int32(total)), (one, one))
    state, log = run(state, loop.frozen, *given, at, of)
    position.logs.append(log)
    position.batch += 1
    if position.batch % loop.experiment.training.log_every == 0 or position.batch == total:
      _fetch(position)
      _write_fit_rows(loop, position, step, total)
    yield state


def _own(loop: Loop, state: TrainState, position: Position, step: Any) -> Iterator[TrainState]:
  """A phase of the method's own."""
  match step:
    case Fit():
      return _fit(loop, state, position, step)
    case Gather() | Calibrating():
      return _gather(loop, state, position, step)
  return _once(loop, state, position, step)


_PHASES: Mapping[Any, Any] = {
  'begin': _begin,
  'prepare': _gather,
  'train': _train,
  'consolidate': _gather,
  'end': _once,
}


def _streams(loop: Loop, split: Split, t: int, epochs: int, stored: int) -> list[Any]:
  """Training batches of a task, an iterator for each seed."""
  training = loop.experiment.training
  cached = training.cache_queries and loop.steps.query is not None
  query = _queries(loop, split) if cached else None
  index, count = loop.part
  return [
    train_batches(
      split,
      batch_size=training.batch_size,
      epochs=epochs,
      seed=fold_seed(seed, t),
      augment=training.augment,
      query=query,
      stored=stored if loop.method.joined is not None else None,
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
    if any(row[2] < 0 for row in rows):
      raise NonFiniteLoss(f'an answer to test set {j} is not a number, after task {position.task}')
    for found, row in zip(position.seeds, rows, strict=True):
      found.counts[j:] = [row]
  position.sums = {}


def _fetch(position: Position) -> None:
  done = position.batch - len(position.logs)
  for step, log in enumerate(jax.device_get(position.logs), done + 1):
    columns = zip(*(np.ravel(values) for values in log), strict=True)
    for i, (found, (loss, score, total, finite)) in enumerate(
      zip(position.seeds, columns, strict=True)
    ):
      what = 'the task' if position.phase == 'train' else position.phase
      where = f'task {position.task}, step {step} of {what}'
      if len(position.seeds) > 1:
        where += f', of seed number {i}'
      if not math.isfinite(loss):
        raise NonFiniteLoss(f'the loss is {float(loss)} at {where}')
      if not finite:
        raise NonFiniteLoss(f'the parameters are not finite after {where}')
      found.losses.append([float(loss), score.item(), int(total)])
  position.logs = []


def _write_training_rows(loop: Loop, position: Position, examples: int) -> None:
  training, t = loop.experiment.training, position.task
  progress = progress_of(loop.experiment, loop.method, t, position.batch - 1)
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
      'learning_rate': float(training.recipe.rate(jnp.float32(progress))),
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


def _write_fit_rows(loop: Loop, position: Position, step: Any, total: int) -> None:
  means = []
  for found, record in zip(position.seeds, loop.records, strict=True):
    means.append(sum(row[0] for row in found.losses) / len(found.losses))
    row = {
      'kind': step.name,
      'task': position.task,
      'step': position.batch,
      'loss': means[-1],
      'learning_rate': float(step.recipe.rate(jnp.float32((position.batch - 1) / total))),
      'seconds': round(sum(position.seconds), 3),
    }
    found.losses = []
    record.write(row)
    found.rows = record.rows
  loop.tell(position, sum(means) / len(means))


def test_sets(experiment: Experiment, t: int) -> list[TestSet]:
  """What is evaluated after task `t`, or before the first one (-1): tasks, then probes."""
  scenario = experiment.scenario
  last = len(scenario.tasks) if experiment.training.evaluate == 'all' else t + 1
  sets = [TestSet(scenario.tasks[j].test, task_masks(scenario, j)[0], j) for j in range(last)]
  every = np.ones(len(scenario.class_order), bool)
  return [*sets, *(TestSet(probe.split, every, -1) for probe in scenario.probes)]


def _start(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """What the model knows before it has learnt anything."""
  done = position.task or position.seeds[0].start
  if done or loop.experiment.training.evaluate != 'all':
    return
  yield from _measured(loop, state, position, test_sets(loop.experiment, -1))
  settle(position)
  for found in position.seeds:
    shares = _shares(found)
    found.start = shares[0][: len(loop.experiment.scenario.tasks)]
    found.counts = []
  yield state


def _evaluate(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """Test sets batch by batch; partial sums are in the position."""
  yield from _measured(loop, state, position, test_sets(loop.experiment, position.task))
  if position.evaluated() == position.task:
    _write_accuracies(loop, position)
    yield state


def _evaluate_inside(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """The evaluation after some updates of a task."""
  yield from _measured(
    loop, state, position, test_sets(loop.experiment, position.task), inside=True
  )
  settle(position)
  for found, record in zip(position.seeds, loop.records, strict=True):
    shares, awares = _shares(found)
    row = {
      'kind': 'anytime',
      'task': position.task,
      'step': position.batch,
      'evaluated': shares,
      'aware': awares,
    }
    found.anytime.append({key: value for key, value in row.items() if key != 'kind'})
    found.counts = []
    record.write(row)
    found.rows = record.rows
  position.inside = None
  yield state


def _measured(
  loop: Loop, state: TrainState, position: Position, sets: list[TestSet], *, inside: bool = False
) -> Iterator[TrainState]:
  """Adds up what the problem judges over test sets."""
  size = loop.experiment.training.eval_batch_size
  done = position.inside if inside else position.batch
  assert done is not None
  for j, test in enumerate(sets):
    count = steps_for(len(test.split.rows), size, 1)
    if done >= count:
      done -= count
      continue
    sums = _sums_so_far(loop, position, j)
    ahead = test.task > (position.task if position.phase != 'start' else -1)
    asked = _open_to(loop, state, position, test) if ahead else state
    for batch in _in_order(loop, test.split, done):
      sums = loop.steps.predict(asked, loop.frozen, _given(loop, batch, test), test.classes, sums)
      if inside:
        assert position.inside is not None
        position.inside += 1
      else:
        position.batch += 1
      position.sums[j] = sums
      loop.tell(position, None)
      yield state
    done = 0


def _open_to(loop: Loop, state: TrainState, position: Position, test: TestSet) -> TrainState:
  """The state in which the classes of a task to come are possible answers, too."""
  scenario, seen = loop.experiment.scenario, test.classes
  if position.phase != 'start':
    seen = seen | task_masks(scenario, position.task)[1]
  shape, sharding = state.task.seen.shape, loop.steps.state_shardings.task.seen
  opened = place(np.broadcast_to(seen, shape).copy(), sharding)
  return state._replace(task=state.task._replace(seen=opened))


def _given(loop: Loop, batch: Batch, test: TestSet) -> Batch:
  """Tells the task of each example where the scenario does."""
  if loop.experiment.scenario.kind != 'task':
    return batch
  size = loop.experiment.training.eval_batch_size
  rows: Any = np.full(size // loop.part[1], test.task, np.int32)
  task: Any = on_devices(rows, loop.steps.batch_sharding, loop.part)
  return batch._replace(x=Given(batch.x, task=task))


def _sums_so_far(loop: Loop, position: Position, j: int) -> Judged:
  """Sums over the examples of a test set that were evaluated, on their devices."""
  rows = [found.counts[j] if len(found.counts) > j else [0, 0, 0] for found in position.seeds]
  score = loop.steps.score_dtype
  columns = [
    np.array(each, dtype)
    for each, dtype in zip(zip(*rows, strict=True), (score, score, np.int32), strict=True)
  ]
  if not loop.steps.seed_axes:
    columns = [each[0] for each in columns]
  return place(Judged(*columns), Judged(*[loop.steps.counts_sharding] * 3))


def _shares(found: Findings) -> tuple[list[float], list[float]]:
  """The measure on each test set, and with the task known."""
  score, aware, total = zip(*found.counts, strict=True)
  share = lambda right: [r / n for r, n in zip(right, total, strict=True)]
  return share(score), share(aware)


def _write_accuracies(loop: Loop, position: Position) -> None:
  tasks, probes = len(loop.experiment.scenario.tasks), len(loop.experiment.scenario.probes)
  settle(position)
  for found, record in zip(position.seeds, loop.records, strict=True):
    counts = found.counts[: len(found.counts) - probes]
    seen = counts[: position.task + 1]
    scores, awares = _shares(found)
    own = len(counts)
    blank: list[float | None] = [None] * (tasks - own)
    row = {
      'kind': 'eval',
      'task': position.task,
      'accuracy': sum(each[0] for each in seen) / sum(each[2] for each in seen),
      'evaluated': scores[:own],
      'aware': awares[:own],
      'seconds': round(sum(position.seconds), 3),
    }
    found.accuracy.append([*scores[:own], *blank])
    found.aware.append([*awares[:own], *blank])
    if probes:
      found.probes.append(scores[own:])
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
