"""Accuracies of single classes and of tasks, each with the interval that its test set allows."""

from typing import NamedTuple

from pecft_jax.measures import ACCURACY
from pecft_jax.metrics import wilson_interval
from pecft_jax.report.read import Run
from pecft_jax.text import number

# More classes than this: the worst ten alone have a row.
_MOST, WORST = 20, 10


class ClassAccuracy(NamedTuple):
  """One class after the last finished task."""

  name: str
  accuracy: float
  examples: int  # In the test sets of the tasks seen.
  interval: tuple[float, float]  # At 95 %.


def by_class(run: Run) -> list[ClassAccuracy]:
  """The classes that have test examples, the worst first; none where they were not counted.

  Args:
    run: as `read_run` gives it.
  """
  shares, sizes = (run.results.get(key) for key in ('per_class_accuracy', 'class_test_sizes'))
  if not shares or not sizes or len(shares) != len(sizes):
    return []
  names = run.results.get('class_names') or ()
  if len(names) != len(shares):
    names = [f'class {c}' for c in range(len(shares))]
  found = [
    ClassAccuracy(str(name), share, size, wilson_interval(round(share * size), size))
    for name, share, size in zip(names, shares, sizes, strict=True)
    if share is not None and size
  ]
  return sorted(found, key=lambda each: each.accuracy)


def shown(classes: list[ClassAccuracy]) -> list[ClassAccuracy]:
  """The classes that have a row in a table: all of few, the worst of many."""
  return classes if len(classes) <= _MOST else classes[:WORST]


def task_intervals(run: Run, row: int = -1) -> list[tuple[float, float] | None]:
  """The 95 % interval of each accuracy in a row of the matrix, from the size of its test set.

  Args:
    run: as `read_run` gives it.
    row: of the matrix; the last by default.

  Returns:
    One for each task; None where it was not evaluated, or the measure is no accuracy of examples.
  """
  sizes = run.results.get('test_sizes') or ()
  known = run.finished and run.measure == ACCURACY and len(sizes) == run.total
  if not known:
    return [None] * run.total
  return [
    wilson_interval(min(size, round(value * size)), size) if 0 <= value <= 1 else None
    for value, size in zip(run.matrix[row].tolist(), sizes, strict=True)
  ]


def ends(interval: tuple[float, float]) -> str:
  """An interval in percent.

  >>> ends((0.8256, 0.9448))
  '82.6 to 94.5'
  """
  return ' to '.join(number(100 * end) for end in interval)
