"""Plasticity: how well new tasks are learned, and what earlier tasks add."""

import numpy as np

from pecft_jax.metrics.matrix import Matrix, PerTask, finished, mean, of_matrix, several
from pecft_jax.metrics.record import Metric


def learning_accuracy(matrix: Matrix) -> float:
  """LA = (1/T) sum_k a[k, k]: plasticity (Riemer et al., 2019, arXiv:1810.11910).

  Args:
    matrix: [k, T], the measure at each time on each task.

  >>> round(learning_accuracy([[0.9, None], [0.7, 0.8]]), 3)
  0.85
  """
  return mean(np.diag(finished(matrix)))


def intransigence(matrix: Matrix, joint: PerTask) -> float:
  """IM = (1/T) sum_k (a*_k - a[k, k]) (RWalk, arXiv:1801.10112): the shortfall in plasticity.

  Args:
    matrix: [k, T].
    joint: [T], accuracy a*_k on task k after joint training on tasks 1..k: the
      diagonal of the matrix of a joint run.

  >>> round(intransigence([[0.9, None], [0.7, 0.8]], [0.9, 0.9]), 3)
  0.05
  """
  a = finished(matrix)
  return mean(of_matrix(joint, 'joint', a) - np.diag(a))


def fwt(matrix: Matrix, single: PerTask) -> float:
  """FWT = (1/(T-1)) sum_{j>=2} (a[j, j] - s_j): what earlier tasks add to learning a new one.

  Forward transfer in training (Progressive Prompts, Razdaibiedina et al., 2023,
  arXiv:2301.12314).

  Args:
    matrix: [k, T], k >= 2.
    single: [T], accuracy s_j of the same model and PEFT trained on task j alone.

  Raises:
    ValueError: for a single finished task.

  >>> round(fwt([[0.9, None], [0.7, 0.8]], [0.9, 0.75]), 3)
  0.05
  """
  a = several(matrix)
  return mean((np.diag(a) - of_matrix(single, 'single', matrix))[1:])


METRICS = (
  Metric(
    name='learning_{measure}',
    function=learning_accuracy,
    title='Learning {measure}',
    definition='Mean {measure} on each task just after learning it.',
    main=True,
    paper='arXiv:1810.11910',
  ),
  Metric(
    name='intransigence',
    function=intransigence,
    needs=('matrix', 'joint'),
    title='Intransigence',
    definition='Mean shortfall on each new task against joint training up to it (RWalk).',
    range=(-1.0, 1.0),
    direction='lower',
    difference=True,
    main=True,
    paper='arXiv:1801.10112',
  ),
  Metric(
    name='fwt',
    function=fwt,
    needs=('matrix', 'single'),
    tasks=2,
    title='Forward transfer',
    definition='Mean gain in learning a task over the same model trained on that task alone.',
    range=(-1.0, 1.0),
    difference=True,
    main=True,
    paper='arXiv:2301.12314',
  ),
)
