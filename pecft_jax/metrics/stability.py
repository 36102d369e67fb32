"""Stability: forgetting and backward transfer."""

import numpy as np

from pecft_jax.metrics.matrix import Matrix, PerTask, finished, mean, per_task, several, square
from pecft_jax.metrics.record import Metric


def forgetting(matrix: Matrix) -> float:
  """FM = (1/(T-1)) sum_{j<T} (max_{j<=l<=T-1} a[l, j] - a[T, j]); 0 for one task.

  RWalk (Chaudhry et al., 2018, arXiv:1801.10112). The maximum is over the past
  only, so that backward transfer at the last task counts as negative forgetting.

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(forgetting([[0.9, None], [0.7, 0.8]]), 3)
  0.2
  """
  a = square(matrix)
  return mean([a[j:-1, j].max() - a[-1, j] for j in range(len(a) - 1)])


def forgetting_inclusive(matrix: Matrix) -> float:
  """Forgetting with the maximum over j <= l <= T: includes the present, never negative.

  The variant in the code of L2P and its successors; 0 for one task.

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> forgetting_inclusive([[0.5, None], [0.7, 0.8]])
  0.0
  """
  a = square(matrix)
  return mean([a[j:, j].max() - a[-1, j] for j in range(len(a) - 1)])


def coda_forgetting(matrix: Matrix) -> float:
  """(1/(T-1)) sum_{t>=2} (1/(t-1)) sum_{i<t} (a[t-1, i] - a[t, i]); 0 for one task.

  The mean drop per step of CODA-Prompt (Smith et al., 2023, arXiv:2211.13218).
  Much smaller than `forgetting` by construction; never compare the two.

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(coda_forgetting([[0.9, None], [0.7, 0.8]]), 3)
  0.2
  """
  a = square(matrix)
  return mean([(a[t - 1, :t] - a[t, :t]).mean() for t in range(1, len(a))])


def bwt(matrix: Matrix) -> float:
  """BWT = (1/(T-1)) sum_{j<T} (a[T, j] - a[j, j]) (GEM, arXiv:1706.08840); 0 for one task.

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(bwt([[0.9, None], [0.7, 0.8]]), 3)
  -0.2
  """
  a = square(matrix)
  return mean((a[-1] - np.diag(a))[:-1])


def bwt_trace(matrix: Matrix) -> float:
  """BWT divided by T rather than T-1 (TRACE, Wang et al., 2023, arXiv:2310.06762).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(bwt_trace([[0.9, None], [0.7, 0.8]]), 3)
  -0.1
  """
  a = square(matrix)
  return mean(a[-1] - np.diag(a))


def retention(matrix: Matrix) -> np.ndarray:
  """[k] of a[T, j] / a[j, j]; NaN where the task was never learned (CLiMB, arXiv:2206.09059).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> retention([[0.8, None], [0.6, 0.9]]).round(3).tolist()
  [0.75, 1.0]
  """
  a = square(matrix)
  return _ratio(a[-1], np.diag(a))


def relative_forgetting(matrix: Matrix, chance: float | PerTask) -> np.ndarray:
  """[k-1] of (a[j, j] - a[T, j]) / (a[j, j] - chance_j), j < T: 1 is back to chance.

  CLiMB (Srinivasan et al., 2022, arXiv:2206.09059); NaN where a task was learned
  exactly to chance.

  Args:
    matrix: [k, T].
    chance: accuracy of guessing, one for all tasks or [T].

  >>> relative_forgetting([[0.9, None], [0.5, 0.9]], 0.1).round(3).tolist()
  [0.5]
  """
  a, width = square(matrix), finished(matrix).shape[1]
  chances = per_task(np.broadcast_to(chance, width), 'chance', width, len(a))
  learned = np.diag(a)
  return _ratio(learned - a[-1], learned - chances)[:-1]


def min_acc(matrix: Matrix) -> float:
  """min-ACC = (1/(T-1)) sum_{j<T} min_{n>j} a[n, j], the worst after each task was learned.

  De Lange et al. (2023, arXiv:2205.13452). The minimum is over the evaluations at
  task ends; dips within a task (the stability gap) do not show.

  Args:
    matrix: [k, T], the measure at each time on each task.

  Raises:
    ValueError: for a single task.

  >>> min_acc([[0.9, None, None], [0.5, 0.8, None], [0.7, 0.6, 0.9]])
  0.55
  """
  a = several(matrix)
  return mean([a[j + 1 :, j].min() for j in range(len(a) - 1)])


def wc_acc(matrix: Matrix) -> float:
  """WC-ACC = a[T, T] / T + (1 - 1/T) min-ACC (De Lange et al., 2023, arXiv:2205.13452).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(wc_acc([[0.9, None], [0.7, 0.8]]), 3)
  0.75
  """
  a = square(matrix)
  rest = min_acc(a) if len(a) > 1 else 0.0
  return float(a[-1, -1] / len(a) + (1 - 1 / len(a)) * rest)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


METRICS = (
  Metric(
    name='forgetting',
    function=forgetting,
    title='Forgetting',
    definition='How much worse each earlier task is in the end than at its past best (RWalk).',
    range=(-1.0, 1.0),
    direction='lower',
    difference=True,
    main=True,
    paper='arXiv:1801.10112',
  ),
  Metric(
    name='bwt',
    function=bwt,
    title='Backward transfer',
    definition='Mean change of each earlier task since it was learned (GEM).',
    range=(-1.0, 1.0),
    difference=True,
    main=True,
    paper='arXiv:1706.08840',
  ),
  Metric(
    name='forgetting_inclusive',
    function=forgetting_inclusive,
    title='Forgetting, inclusive',
    definition='Forgetting with the present counted in the best; never negative (L2P’s variant).',
    direction='lower',
    difference=True,
    paper='arXiv:2112.08654',
  ),
  Metric(
    name='coda_forgetting',
    function=coda_forgetting,
    title='Forgetting per step',
    definition='Mean drop of earlier tasks from one time to the next (CODA-Prompt’s variant).',
    range=(-1.0, 1.0),
    direction='lower',
    difference=True,
    paper='arXiv:2211.13218',
  ),
  Metric(
    name='worst_case_{measure}',
    function=wc_acc,
    tasks=2,
    title='Worst-case {measure}',
    definition='The last task, and the worst of every other since it was learned (WC-ACC).',
    paper='arXiv:2205.13452',
  ),
)
