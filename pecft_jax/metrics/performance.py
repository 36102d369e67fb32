"""Performance: averages over tasks, over time, and over examples."""

import numpy as np

from pecft_jax.metrics.matrix import Matrix, PerTask, finished, mean, of_matrix
from pecft_jax.metrics.record import Metric


def average_accuracy(matrix: Matrix) -> np.ndarray:
  """Curve [k] of AA_k = (1/k) sum_{j<=k} a[k, j]; the last entry is the final average accuracy.

  ACC of GEM (Lopez-Paz & Ranzato, 2017, arXiv:1706.08840). Every task has the same weight.

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> average_accuracy([[0.9, None], [0.8, 0.6]]).round(3).tolist()
  [0.9, 0.7]
  """
  return np.array([row[: k + 1].mean() for k, row in enumerate(finished(matrix))])


def average_incremental_accuracy(matrix: Matrix) -> float:
  """AIA = (1/T) sum_k AA_k (iCaRL, Rebuffi et al., 2017, arXiv:1611.07725).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(average_incremental_accuracy([[0.9, None], [0.8, 0.6]]), 3)
  0.8
  """
  return mean(average_accuracy(matrix))


def union_accuracy(matrix: Matrix, sizes: PerTask) -> np.ndarray:
  """Curve [k] of the accuracy over all seen test examples: sum_{j<=k} n_j a[k, j] / sum n_j.

  The top-1 curve of PILOT (Sun et al., 2023, arXiv:2309.07117), whose "average
  accuracy" is the mean of this curve. Differs from `average_accuracy` where
  tasks have test sets of unequal size.

  Args:
    matrix: [k, T].
    sizes: [T], examples in each task's test set.

  Raises:
    ValueError: for sizes that are not positive, or not one per task.

  >>> union_accuracy([[0.9, None], [0.8, 0.5]], [100, 200]).round(3).tolist()
  [0.9, 0.6]
  """
  a = finished(matrix)
  n = of_matrix(sizes, 'sizes', a)
  if (n <= 0).any():
    raise ValueError(f'expected positive test sizes, got {n.tolist()}')
  return np.array([np.average(row[: k + 1], weights=n[: k + 1]) for k, row in enumerate(a)])


def average_union_accuracy(matrix: Matrix, sizes: PerTask) -> float:
  """Mean over time of `union_accuracy`: the "average accuracy" of PILOT.

  Args:
    matrix: [k, T], the measure at each time on each task.
    sizes: [T], examples in the test set of each task.

  >>> round(average_union_accuracy([[0.9, None], [0.8, 0.5]], [100, 200]), 3)
  0.75
  """
  return mean(union_accuracy(matrix, sizes))


METRICS = (
  Metric(
    name='average_{measure}',
    function=lambda matrix: average_accuracy(matrix)[-1],
    title='Average {measure}',
    definition='Mean over tasks of the {measure} after the last task.',
    main=True,
    paper='arXiv:1706.08840',
  ),
  Metric(
    name='average_incremental_{measure}',
    function=average_incremental_accuracy,
    title='Average incremental {measure}',
    definition='Mean over time of the average {measure} after each task.',
    main=True,
    paper='arXiv:1611.07725',
  ),
  Metric(
    name='union_{measure}',
    function=lambda matrix, sizes: union_accuracy(matrix, sizes)[-1],
    needs=('matrix', 'sizes'),
    title='Union {measure}',
    definition='Final {measure} over all test examples together, so that larger tasks weigh more.',
    main=True,
    paper='arXiv:2309.07117',
  ),
  Metric(
    name='average_union_{measure}',
    function=average_union_accuracy,
    needs=('matrix', 'sizes'),
    title='Average union {measure}',
    definition='Mean over time of the union {measure} (PILOT’s “average accuracy”).',
    paper='arXiv:2309.07117',
  ),
)
