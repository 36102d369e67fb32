"""The matrix that every metric reads: `a[time, task]`, what was measured on each task.

`a[k, j]` is the value on task j's test set after training on tasks 1..k. Entries above
the diagonal (zero-shot) are NaN or None where they were not evaluated. Formulas count
tasks from 1. A partly finished run is a matrix with k < T rows, or with trailing rows
that are all NaN; every metric then reads its formula with T = k.
"""

from collections.abc import Sequence

import numpy as np

from pecft_jax.measures import ACCURACY, Measure

Matrix = np.ndarray | Sequence[Sequence[float | None]]  # [k, T], rows are times.
PerTask = np.ndarray | Sequence[float]  # [T]


def validate(matrix: Matrix, measure: Measure = ACCURACY) -> np.ndarray:
  """Checks a matrix and returns its finished rows as float64 [k, T].

  A transposed matrix fails here if an entry above its diagonal is missing, or if the
  run is partly finished.

  Args:
    matrix: [k, T], rows are times, k <= T.
    measure: gives the range of values.

  Raises:
    ValueError: unless it is `[time, task]` with at most as many times as tasks, values
      in the measure's range, at least one finished row, and none missing on or below
      the diagonal of finished rows.

  >>> validate([[0.9, None], [0.8, 0.7], [None, None]][:2]).shape
  (2, 2)
  """
  a = finished(matrix)
  low, high = measure.low, measure.high
  outside = ~np.isnan(a) & ~((a >= low) & (a <= high))
  if outside.any():
    k, j = np.argwhere(outside)[0]
    raise ValueError(
      f'expected {measure.name} in [{low:g}, {high:g}], got {a[k, j]} at time {k + 1}, task {j + 1}'
    )
  return a


def finished(matrix: Matrix) -> np.ndarray:
  """`validate` without the range: the finished rows as float64 [k, T]."""
  try:
    a = np.asarray(matrix, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f'expected a rectangular [time, task] matrix of numbers: {error}') from None
  if a.ndim != 2 or a.shape[0] > a.shape[1]:
    raise ValueError(
      f'expected a matrix [time, task] with at most T times for T tasks, got shape {a.shape}'
    )
  there = ~np.isnan(a).all(axis=1)
  a = a[: np.flatnonzero(there)[-1] + 1 if there.any() else 0]
  if not len(a):
    raise ValueError('expected at least one finished task, got a matrix without any value')
  if np.isinf(a).any():
    k, j = np.argwhere(np.isinf(a))[0]
    raise ValueError(f'expected finite values, got {a[k, j]} at time {k + 1}, task {j + 1}')
  missing = np.isnan(a) & np.tri(*a.shape, dtype=bool)
  if missing.any():
    k, j = np.argwhere(missing)[0]
    raise ValueError(
      f'expected every task up to the present to be evaluated, got nothing at time {k + 1}, task '
      f'{j + 1}; is the matrix [task, time] rather than [time, task]?'
    )
  return a


def square(matrix: Matrix) -> np.ndarray:
  """The finished tasks at the finished times, [k, k]."""
  a = finished(matrix)
  return a[:, : len(a)]


def several(matrix: Matrix) -> np.ndarray:
  """`square`, for metrics between tasks. Raises ValueError for a single task."""
  a = square(matrix)
  if len(a) < 2:
    raise ValueError('expected at least two finished tasks, got one')
  return a


def per_task(values: PerTask, name: str, width: int, count: int) -> np.ndarray:
  """Checks values of T tasks, and returns those of the first `count` as float64 [count].

  Raises:
    ValueError: for another shape than [width], or a missing value among the first.
  """
  v = np.asarray(values, np.float64)
  if v.shape != (width,):
    raise ValueError(f'expected {name} of shape {(width,)}, one per task, got {v.shape}')
  v = v[:count]
  if np.isnan(v).any():
    raise ValueError(f'expected {name} for each of the {count} finished tasks, got {v.tolist()}')
  return v


def of_matrix(values: PerTask, name: str, matrix: Matrix) -> np.ndarray:
  """`per_task` of the finished tasks of a matrix."""
  a = finished(matrix)
  return per_task(values, name, a.shape[1], len(a))


def mean(values: Sequence[float] | np.ndarray) -> float:
  """The mean as a float; 0 for no values."""
  return float(np.mean(values)) if len(values) else 0.0
