"""Test sets, batch by batch: before the first task, after each one, and within one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from pecft_jax.data import Split, steps_for, task_masks
from pecft_jax.devices.sharding import place
from pecft_jax.problems import Judged, host_scores
from pecft_jax.train.batches import in_order, on_devices
from pecft_jax.train.context import Loop
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.logs import no_number, settle
from pecft_jax.typing import Batch, Given, TrainState
from pecft_jax.workdir.position import Findings, Position


class TestSet(NamedTuple):
  """One test set of an evaluation."""

  split: Split
  classes: np.ndarray  # [C] bool, those of its task.
  task: int  # -1 for a probe.


def test_sets(experiment: Experiment, t: int) -> list[TestSet]:
  """Test sets evaluated after task `t`, or before the first one (-1): tasks, then probes."""
  scenario = experiment.scenario
  last = len(scenario.tasks) if experiment.training.evaluate == 'all' else t + 1
  sets = [TestSet(scenario.tasks[j].test, task_masks(scenario, j)[0], j) for j in range(last)]
  every = np.ones(len(scenario.class_order), bool)
  return [*sets, *(TestSet(probe.split, every, -1) for probe in scenario.probes)]


def start(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """The evaluation before the first task."""
  done = position.task or position.seeds[0].start
  if done or loop.experiment.training.evaluate != 'all':
    return
  yield from _measured(loop, state, position, test_sets(loop.experiment, -1))
  _settle(loop, position)
  for found in position.seeds:
    shares = _shares(found)
    found.start = shares[0][: len(loop.experiment.scenario.tasks)]
    found.counts, found.hits = [], []
  yield state


def evaluate(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """Test sets batch by batch; partial sums are in the position."""
  yield from _measured(loop, state, position, test_sets(loop.experiment, position.task))
  if position.evaluated() == position.task:
    _write_accuracies(loop, position)
    yield state


def evaluate_inside(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """The evaluation after some updates of a task."""
  yield from _measured(
    loop, state, position, test_sets(loop.experiment, position.task), inside=True
  )
  _settle(loop, position)
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
    found.counts, found.hits = [], []
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
    ahead = test.task > (position.task if position.phase != 'start' else -1)
    asked = _open_to(loop, state, position, test) if ahead else state
    judge = _on_devices if loop.steps.answer is None else _on_host
    for batch in in_order(loop, test.split, done):
      judge(loop, asked, position, _given(loop, batch, test), test, j)
      if inside:
        assert position.inside is not None
        position.inside += 1
      else:
        position.batch += 1
      loop.tell(position, None, False)
      yield state
    done = 0


def _open_to(loop: Loop, state: TrainState, position: Position, test: TestSet) -> TrainState:
  """The state with the classes of a future task among the possible answers."""
  scenario, seen = loop.experiment.scenario, test.classes
  if position.phase != 'start':
    seen = seen | task_masks(scenario, position.task)[1]
  shape, sharding = state.task.seen.shape, loop.steps.state_shardings.task.seen
  opened = place(np.broadcast_to(seen, shape).copy(), sharding)
  return state._replace(task=state.task._replace(seen=opened))


def _given(loop: Loop, batch: Batch, test: TestSet) -> Batch:
  """Adds the task of each example where the scenario gives it at test time."""
  if loop.experiment.scenario.kind != 'task':
    return batch
  size = loop.experiment.training.eval_batch_size
  rows: Any = np.full(size // loop.part[1], test.task, np.int32)
  task: Any = on_devices(rows, loop.steps.batch_sharding, loop.part)
  return batch._replace(x=Given(batch.x, task=task))


def _on_devices(
  loop: Loop, state: TrainState, position: Position, batch: Batch, test: TestSet, j: int
) -> None:
  """Adds up what the problem judges of a batch of test set `j`; the sums stay on their devices."""
  sums = position.sums[j] if j in position.sums else _sums_so_far(loop, position, j)
  found = loop.steps.predict(state, loop.frozen, batch, test.classes, sums)
  # Classes are counted on the tasks seen; probes have the same classes, and other examples.
  own = 0 <= test.task <= position.task
  position.sums[j] = found if own else found._replace(hits=sums.hits)


def _on_host(
  loop: Loop, state: TrainState, position: Position, batch: Batch, test: TestSet, j: int
) -> None:
  """The same where the problem is judged on the host; every process adds up the same.

  Raises:
    NonFiniteLoss: where an answer is NaN.
    ValueError: for invalid scores.
  """
  del test  # Answers are no classes.
  assert loop.steps.answer is not None
  given = jax.device_get(loop.steps.answer(state, loop.frozen, batch))
  if not loop.steps.seed_axes:
    given = jax.tree.map(lambda leaf: np.asarray(leaf)[None], given)
  for i, found in enumerate(position.seeds):
    rows = jax.tree.map(lambda leaf, i=i: leaf[i], given)
    if rows.no_number:
      raise no_number(position, j)
    problem = loop.method.capacity.problem
    scores = host_scores(problem, rows.answers[rows.valid], rows.targets[rows.valid])
    score, _, total = found.counts[j] if len(found.counts) > j else (0.0, 0.0, 0)
    score += float(scores.sum())
    found.counts[j:] = [[score, score, total + len(scores)]]


def _sums_so_far(loop: Loop, position: Position, j: int) -> Judged:
  """Sums over the examples of a test set that were evaluated, on their devices."""
  rows = [found.counts[j] if len(found.counts) > j else [0, 0, 0] for found in position.seeds]
  score = loop.steps.score_dtype
  columns = [
    np.array(each, dtype)
    for each, dtype in zip(zip(*rows, strict=True), (score, score, np.int32), strict=True)
  ]
  if loop.steps.hits_shape is not None:
    # Those so far are in the position, and are added to.
    columns.append(np.zeros((len(rows), *loop.steps.hits_shape), np.int32))
  if not loop.steps.seed_axes:
    columns = [each[0] for each in columns]
  return place(Judged(*columns), Judged(*[loop.steps.counts_sharding] * len(columns)))


def _settle(loop: Loop, position: Position) -> None:
  """Fetches all sums, and tells that they are there."""
  settle(position)
  loop.tell(position, None, True)


def _shares(found: Findings) -> tuple[list[float], list[float]]:
  """The measure on each test set, and with the task known."""
  score, aware, total = zip(*found.counts, strict=True)
  share = lambda right: [r / n for r, n in zip(right, total, strict=True)]
  return share(score), share(aware)


def _write_accuracies(loop: Loop, position: Position) -> None:
  tasks, probes = len(loop.experiment.scenario.tasks), len(loop.experiment.scenario.probes)
  _settle(loop, position)
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
    found.by_class, found.counts, found.hits = found.hits, [], []
    record.write(row)
    found.rows = record.rows
