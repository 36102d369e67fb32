"""Any-time metrics, for runs that also evaluate within tasks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pecft_jax.metrics.matrix import mean
from pecft_jax.metrics.record import Metric


class Evaluation(NamedTuple):
  """One evaluation of a run.

  Attributes:
    task: index of the current task, from 0.
    values: of the tasks seen so far, the current one included, by index [task + 1];
      further entries, of tasks not seen, are ignored.
  """

  task: int
  values: Sequence[float | None]


def anytime_accuracy(evaluations: Sequence[Evaluation]) -> float:
  """A_AUC = mean over all evaluations of the average accuracy over the tasks seen by then.

  The area under the curve of accuracy over the samples seen (CLIB, Koh et al., 2022,
  arXiv:2110.10031) where evaluations are equally far apart; evaluated at task ends
  alone it is the average incremental accuracy.

  Args:
    evaluations: of a run, in order.

  Raises:
    ValueError: without any evaluation, or where a task that was seen has no value.

  >>> anytime_accuracy([Evaluation(0, [0.5]), Evaluation(0, [1.0]), Evaluation(1, [0.9, 0.6])])
  0.75
  """
  return mean([float(row.mean()) for row in _rows(evaluations)])


def min_accuracy(evaluations: Sequence[Evaluation]) -> float:
  """min-ACC = (1/(T-1)) sum_{j<T} min_n a[n, j] over the evaluations n after task j ended.

  De Lange et al. (2023, arXiv:2205.13452): shows the stability gap, the dip at the
  beginning of a new task. `pecft_jax.metrics.min_acc` is the same of task ends alone.

  Args:
    evaluations: of a run, in order.

  Raises:
    ValueError: for a single task.

  >>> first, dip, end = [0.9], [0.2, 0.5], [0.7, 0.8]
  >>> min_accuracy([Evaluation(0, first), Evaluation(1, dip), Evaluation(1, end)])
  0.2
  """
  rows = _rows(evaluations)
  tasks = [each.task for each in evaluations]
  if max(tasks) < 1:
    raise ValueError('expected evaluations of at least two tasks, got one')
  after = lambda j: [row[j] for t, row in zip(tasks, rows, strict=True) if t > j]
  return mean([float(min(after(j))) for j in range(max(tasks))])


def _rows(evaluations: Sequence[Evaluation]) -> list[np.ndarray]:
  if not evaluations:
    raise ValueError('expected at least one evaluation, got none')
  rows = []
  for n, (task, values) in enumerate(evaluations):
    row = np.asarray(values, np.float64)[: task + 1]
    if len(row) != task + 1 or not np.isfinite(row).all():
      raise ValueError(
        f'evaluation {n} within task {task + 1}: expected values of {task + 1} tasks, got {values}'
      )
    rows.append(row)
  return rows


METRICS = (
  Metric(
    name='anytime_{measure}',
    function=anytime_accuracy,
    needs=('evaluations',),
    title='Any-time {measure}',
    definition='Mean over all evaluations, within tasks too, of the average {measure} by then.',
    main=True,
    paper='arXiv:2110.10031',
  ),
  Metric(
    name='min_{measure}',
    function=min_accuracy,
    needs=('evaluations',),
    tasks=2,
    title='Minimum {measure}',
    definition='The worst of each earlier task since it was learned, dips within tasks included.',
    paper='arXiv:2205.13452',
  ),
)
