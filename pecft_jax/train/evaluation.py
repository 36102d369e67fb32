"""Test sets, batch by batch: before the first task, after each one, and within one.

Axis letters: B batch, C classes, J test sets of all tasks and probes.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pecft_jax.continual.core import with_given
from pecft_jax.data import Scenario, Split, steps_for, task_masks
from pecft_jax.data.scenario import one_after_another
from pecft_jax.devices.sharding import place
from pecft_jax.problems import Judged, host_scores
from pecft_jax.train.asking import part_reader
from pecft_jax.train.batches import below_tests, in_order
from pecft_jax.train.context import Loop
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.logs import no_number, settle
from pecft_jax.typing import Batch, TrainState
from pecft_jax.workdir.position import Findings, Position


class TestSet(NamedTuple):
  """One test set of an evaluation."""

  place: int  # Among those of all tasks and all probes.
  split: Split
  classes: np.ndarray  # [C] bool, those of its task.
  task: int  # -1 for a probe.


class Round(NamedTuple):
  """Test sets that are asked in one state, as one stream of examples."""

  sets: tuple[TestSet, ...]
  split: Split  # The examples of one set after the other, n in all.
  place: np.ndarray  # np.int32 [n], of the test set of each example.
  row: np.ndarray  # np.int32 [n], of each example among those of its test set.


def test_sets(experiment: Experiment, t: int) -> list[TestSet]:
  """Test sets evaluated after task `t`, or before the first one (-1): tasks, then probes."""
  scenario = experiment.scenario
  count = len(scenario.tasks)
  last = count if experiment.training.evaluate == 'all' else t + 1
  sets = [TestSet(j, scenario.tasks[j].test, task_masks(scenario, j)[0], j) for j in range(last)]
  every = np.ones(len(scenario.class_order), bool)
  probes = enumerate(scenario.probes, count)
  return [*sets, *(TestSet(place, probe.split, every, -1) for place, probe in probes)]


def rounds(sets: Sequence[TestSet], t: int) -> list[Round]:
  """The test sets in rounds: all that need no other classes than were seen, and each of the others.

  So batches are filled up once in a round, not once for each test set. Probes come first: the
  batches of a later evaluation then begin with those of an earlier one.

  Args:
    sets: of an evaluation.
    t: the task that was learned last; -1 before the first.
  """
  seen = sorted((test for test in sets if test.task <= t), key=lambda test: test.task >= 0)
  ahead = [[test] for test in sets if test.task > t]
  return [_round(each) for each in ([seen, *ahead] if seen else ahead)]


def _round(sets: Sequence[TestSet]) -> Round:
  sizes = [len(test.split.rows) for test in sets]
  places = np.repeat([test.place for test in sets], sizes).astype(np.int32)
  rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
  return Round(tuple(sets), one_after_another([test.split for test in sets]), places, rows)


def examples(each: Round, rows: np.ndarray) -> bytes:
  """What says which examples the rows of a batch are: equal for equal ones in another round."""
  rows = _filled(each, rows)
  return each.place[rows].tobytes() + each.row[rows].tobytes()


def _filled(each: Round, rows: np.ndarray) -> np.ndarray:
  """Rows beyond the examples of a round repeat the first one, and are not valid."""
  return np.where(rows < len(each.place), rows, 0)


def round_batches(experiment: Experiment, t: int) -> int:
  """The number of batches of the evaluation after task `t`, or before the first one (-1)."""
  size = experiment.training.eval_batch_size
  found = rounds(test_sets(experiment, t), t)
  return sum(steps_for(len(each.place), size, 1) for each in found)


def new_batches(experiment: Experiment, t: int) -> int:
  """The number of those batches that the evaluation after the task before `t` did not have."""
  size = experiment.training.eval_batch_size

  def asked(t: int) -> set[bytes]:
    """The batches of an evaluation, by their examples."""
    return {
      examples(each, np.arange(start, start + size))
      for each in rounds(test_sets(experiment, t), t)
      for start in range(0, len(each.place), size)
    }

  return len(asked(t) - asked(t - 1)) if t else round_batches(experiment, t)


def start(loop: Loop, state: TrainState, position: Position) -> Iterator[TrainState]:
  """The evaluation before the first task."""
  done = position.task or position.seeds[0].start
  if done or loop.experiment.training.evaluate != 'all':
    return
  sets = test_sets(loop.experiment, -1)
  yield from _measured(loop, state, position, sets)
  _settle(loop, position)
  for found in position.seeds:
    shares = _shares(found, sets)
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
  sets = test_sets(loop.experiment, position.task)
  yield from _measured(loop, state, position, sets, inside=True)
  _settle(loop, position)
  for found, record in zip(position.seeds, loop.records, strict=True):
    shares, awares = _shares(found, sets)
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
  t = -1 if position.phase == 'start' else position.task
  tables = _tables(loop, sets, t)
  # Made for the first batch: an evaluation that was resumed after its last one asks nothing.
  parts_of = functools.cache(lambda: part_reader(loop, state, inside=inside))
  lanes = [rounds(test_sets(other, t), t) for other in loop.data[1:]]
  for each, *others in zip(rounds(sets, t), *lanes, strict=True):
    splits = [round.split for round in (each, *others)]
    count = steps_for(len(each.place), size, 1)
    if done >= count:
      done -= count
      continue
    ahead = each.sets[0].task > t
    asked = _open_to(loop, state, position, each.sets[0]) if ahead else state
    judge = _on_devices if loop.steps.answer is None else _on_host
    below = below_tests(loop, {test.place: test.split for test in each.sets})
    for number, batch in enumerate(in_order(loop, splits, done, below=below), done):
      rows = _filled(each, np.arange(number * size, (number + 1) * size))
      places = each.place[rows]
      given = _given(loop, batch, places)
      parts = parts_of()(given, examples(each, rows))
      judge(loop, asked, position, Asked(given, places, parts), tables)
      if loop.kept is not None:
        loop.kept.settle()
      if inside:
        assert position.inside is not None
        position.inside += 1
      else:
        position.batch += 1
      loop.tell(position, None, False)
      yield state
    done = 0
  if loop.kept is not None:
    loop.kept.settle(every=True)


class Asked(NamedTuple):
  """One batch of an evaluation."""

  batch: Batch
  places: np.ndarray  # np.int32 [B], of the test set of each example.
  parts: tuple[Any, ...] | None  # Of all slots, where the method's answers have parts.


class Tables(NamedTuple):
  """Facts about the J test sets of all tasks and probes, on the devices."""

  classes: Any  # [J, C] bool, those of each task.
  counted: Any  # [J] bool, whether right answers are counted by class.


def _tables(loop: Loop, sets: Sequence[TestSet], t: int) -> Tables:
  scenario = loop.experiment.scenario
  classes = np.zeros((places_of(scenario), len(scenario.class_order)), bool)
  counted = np.zeros(len(classes), bool)
  for test in sets:
    classes[test.place] = test.classes
    # Classes are counted on the tasks seen; probes have the same classes, and other examples.
    counted[test.place] = 0 <= test.task <= t
  return place(Tables(classes, counted), Tables(*[loop.steps.counts_sharding] * 2))


def places_of(scenario: Scenario) -> int:
  """J, the number of test sets of all tasks and probes."""
  return len(scenario.tasks) + len(scenario.probes)


def _open_to(loop: Loop, state: TrainState, position: Position, test: TestSet) -> TrainState:
  """The state with the classes of a future task among the possible answers."""
  scenario, seen = loop.experiment.scenario, test.classes
  if position.phase != 'start':
    seen = seen | task_masks(scenario, position.task)[1]
  shape, sharding = state.task.seen.shape, loop.steps.state_shardings.task.seen
  opened = place(np.broadcast_to(seen, shape).copy(), sharding)
  return state._replace(task=state.task._replace(seen=opened))


def _given(loop: Loop, batch: Batch, places: np.ndarray) -> Batch:
  """Adds the task of each example where the scenario gives it at test time."""
  scenario = loop.experiment.scenario
  if scenario.kind != 'task':
    return batch
  tasks, sharding = np.where(places < len(scenario.tasks), places, -1), loop.steps.batch_sharding
  if len(loop.data) > 1:
    tasks, sharding = np.stack([tasks] * len(loop.data)), loop.steps.train_batch_sharding
  return batch._replace(x=with_given(batch.x, task=place(tasks.astype(np.int32), sharding)))


def _on_devices(
  loop: Loop,
  state: TrainState,
  position: Position,
  asked: Asked,
  tables: Tables,
) -> None:
  """Adds up what the problem judges of a batch; the sums stay on their devices."""
  sums = _sums_so_far(loop, position) if position.sums is None else position.sums
  given = state, loop.frozen, asked.batch, place(asked.places, loop.steps.batch_sharding), *tables
  if loop.steps.parts is None:
    position.sums = loop.steps.predict(*given, sums)
  else:
    position.sums = loop.steps.parts.combine(*given, sums, asked.parts)


def _on_host(
  loop: Loop,
  state: TrainState,
  position: Position,
  asked: Asked,
  tables: Tables,
) -> None:
  """The same where the problem is judged on the host; every process adds up the same.

  Raises:
    NonFiniteLoss: where an answer is NaN.
    ValueError: for invalid scores.
  """
  del tables  # Answers are no classes.
  asking = state, loop.frozen, asked.batch
  if loop.steps.parts is None:
    assert loop.steps.answer is not None
    given = jax.device_get(loop.steps.answer(*asking))
  else:
    assert loop.steps.parts.answer is not None
    given = jax.device_get(loop.steps.parts.answer(*asking, asked.parts))
  places = asked.places
  if not loop.steps.seed_axes:
    given = jax.tree.map(lambda leaf: np.asarray(leaf)[None], given)
  problem = loop.method.capacity.problem
  for i, found in enumerate(position.seeds):
    rows = jax.tree.map(lambda leaf, i=i: leaf[i], given)
    found.counts = found.counts or [
      [0.0, 0.0, 0] for _ in range(places_of(loop.experiment.scenario))
    ]
    for j in np.unique(places[rows.valid]).tolist():
      if rows.no_number:
        raise no_number(position, j)
      own = rows.valid & (places == j)
      scores = host_scores(problem, rows.answers[own], rows.targets[own])
      score, _, total = found.counts[j]
      score += float(scores.sum())
      found.counts[j] = [score, score, total + len(scores)]


def _sums_so_far(loop: Loop, position: Position) -> Judged:
  """Sums over the examples that were evaluated, by test set, on their devices."""
  none = [[0, 0, 0] for _ in range(places_of(loop.experiment.scenario))]
  rows = [found.counts or none for found in position.seeds]
  score = loop.steps.score_dtype
  columns = [
    np.array([[row[k] for row in each] for each in rows], dtype)
    for k, dtype in enumerate((score, score, np.int32))
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


def _shares(found: Findings, sets: Sequence[TestSet]) -> tuple[list[float], list[float]]:
  """The measure on each test set, and with the task known."""
  score, aware, total = zip(*(found.counts[test.place] for test in sets), strict=True)
  share = lambda right: [r / n for r, n in zip(right, total, strict=True)]
  return share(score), share(aware)


def _write_accuracies(loop: Loop, position: Position) -> None:
  tasks, probes = len(loop.experiment.scenario.tasks), len(loop.experiment.scenario.probes)
  sets = test_sets(loop.experiment, position.task)
  _settle(loop, position)
  for found, record in zip(position.seeds, loop.records, strict=True):
    counts = [found.counts[test.place] for test in sets if test.task >= 0]
    seen = counts[: position.task + 1]
    scores, awares = _shares(found, sets)
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
