"""Metrics on tasks that are not learned yet.

All need the entries above the diagonal: a run with `Training(evaluate='all')`.
"""

import numpy as np

from pecft_jax.metrics.matrix import Matrix, PerTask, mean, of_matrix, several, square
from pecft_jax.metrics.record import Metric


def fwt_gem(matrix: Matrix, start: PerTask) -> float:
  """FWT = (1/(T-1)) sum_{j>=2} (a[j-1, j] - b_j) (GEM, arXiv:1706.08840).

  Zero-shot transfer. In class-incremental runs it says little: the head of a new
  class is not trained yet.

  Args:
    matrix: [k, T] with the entries one step ahead of the diagonal, k >= 2.
    start: [T], accuracy b_j before the first task.

  Raises:
    ValueError: for a single finished task, or where an entry is missing.

  >>> round(fwt_gem([[0.9, 0.3], [0.7, 0.8]], [0.1, 0.1]), 3)
  0.2
  """
  ahead = _evaluated(np.diag(several(matrix), 1), 'fwt_gem')
  return mean(ahead - of_matrix(start, 'start', matrix)[1:])


def mtil_last(matrix: Matrix) -> float:
  """Last = mean_j a[T, j] (ZSCL, Zheng et al., 2023, arXiv:2303.06628).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> mtil_last([[0.9, 0.3], [0.7, 0.8]])
  0.75
  """
  return mean(square(matrix)[-1])


def mtil_average(matrix: Matrix) -> float:
  """Avg = mean of a[k, j] over all k and j, zero-shot entries included (ZSCL).

  Args:
    matrix: [k, T], the measure at each time on each task, with zero-shot entries.

  Raises:
    ValueError: where an entry is missing.

  >>> round(mtil_average([[0.9, 0.3], [0.7, 0.8]]), 3)
  0.675
  """
  return float(_evaluated(square(matrix), 'mtil_average').mean())


def mtil_transfer(matrix: Matrix) -> float:
  """Transfer = mean over j >= 2 of (1/(j-1)) sum_{k<j} a[k, j] (ZSCL).

  Args:
    matrix: [k, T], the measure at each time on each task, with zero-shot entries.

  Raises:
    ValueError: for a single finished task, or where an entry is missing.

  >>> mtil_transfer([[0.9, 0.3], [0.7, 0.8]])
  0.3
  """
  a = _evaluated(several(matrix), 'mtil_transfer')
  return mean([a[:j, j].mean() for j in range(1, len(a))])


def _evaluated(a: np.ndarray, metric: str) -> np.ndarray:
  if np.isnan(a).any():
    raise ValueError(f'{metric} needs zero-shot entries (above the diagonal); some are missing')
  return a


METRICS = (
  Metric(
    name='fwt_gem',
    function=fwt_gem,
    needs=('zero_shot', 'start'),
    tasks=2,
    title='Forward transfer, zero-shot',
    definition='Mean gain on the next task over the model before the first task (GEM).',
    range=(-1.0, 1.0),
    difference=True,
    paper='arXiv:1706.08840',
  ),
  Metric(
    name='mtil_transfer',
    function=mtil_transfer,
    needs=('zero_shot',),
    tasks=2,
    title='Transfer (MTIL)',
    definition='Mean {measure} on tasks before they are learned, each task the same weight.',
    main=True,
    paper='arXiv:2303.06628',
  ),
  Metric(
    name='mtil_average',
    function=mtil_average,
    needs=('zero_shot',),
    tasks=2,
    title='Avg. (MTIL)',
    definition='Mean {measure} over all times and all tasks, learned or not.',
    main=True,
    paper='arXiv:2303.06628',
  ),
  Metric(
    name='mtil_last',
    function=mtil_last,
    needs=('zero_shot',),
    tasks=2,
    title='Last (MTIL)',
    definition='Mean {measure} of all tasks in the end: the average {measure} by its name there.',
    paper='arXiv:2303.06628',
  ),
)
