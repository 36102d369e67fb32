"""Metrics of continual learning, each with one definition, over an accuracy matrix.

The matrix is `a[time, task]`, fractions in [0, 1]: `a[k, j]` is the accuracy on
task j's test set after training on tasks 1..k. Entries above the diagonal
(zero-shot) are NaN or None where they were not evaluated. Formulas count tasks
from 1. A partly finished run is a matrix with k < T rows, or with trailing rows
that are all NaN; every metric then reads its formula with T = k.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Matrix = np.ndarray | Sequence[Sequence[float | None]]  # [k, T], rows are times.
PerTask = np.ndarray | Sequence[float]  # [T]


def validate(matrix: Matrix) -> np.ndarray:
  """Checks an accuracy matrix and returns its finished rows as float64 [k, T].

  A matrix read transposed fails here if any entry above its diagonal is missing,
  or if the run is partly finished.

  Raises:
    ValueError: unless it is `[time, task]` with at most as many times as tasks,
      values in [0, 1], at least one finished row, and none missing on or below
      the diagonal of finished rows.
  """
  try:
    a = np.asarray(matrix, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f'expected a rectangular [time, task] matrix of numbers: {error}') from None
  if a.ndim != 2 or a.shape[0] > a.shape[1]:
    raise ValueError(
      f'expected an accuracy matrix [time, task] with at most T times for T tasks, got shape '
      f'{a.shape}'
    )
  finished = ~np.isnan(a).all(axis=1)
  a = a[: np.flatnonzero(finished)[-1] + 1 if finished.any() else 0]
  if not len(a):
    raise ValueError('expected at least one finished task, got a matrix without any value')
  outside = ~np.isnan(a) & ~((a >= 0) & (a <= 1))
  if outside.any():
    k, j = np.argwhere(outside)[0]
    raise ValueError(f'expected accuracies in [0, 1], got {a[k, j]} at time {k + 1}, task {j + 1}')
  missing = np.isnan(a) & np.tri(*a.shape, dtype=bool)
  if missing.any():
    k, j = np.argwhere(missing)[0]
    raise ValueError(
      f'expected every task up to the present to be evaluated, got nothing at time {k + 1}, task '
      f'{j + 1}; is the matrix [task, time] rather than [time, task]?'
    )
  return a


def average_accuracy(matrix: Matrix) -> np.ndarray:
  """Curve [k] of AA_k = (1/k) sum_{j<=k} a[k, j]; the last entry is the final average accuracy.

  ACC of GEM (Lopez-Paz & Ranzato, 2017, arXiv:1706.08840). Every task weighs the same.
  """
  return np.array([row[: k + 1].mean() for k, row in enumerate(validate(matrix))])


def average_incremental_accuracy(matrix: Matrix) -> float:
  """AIA = (1/T) sum_k AA_k (iCaRL, Rebuffi et al., 2017, arXiv:1611.07725)."""
  return float(average_accuracy(matrix).mean())


def union_accuracy(matrix: Matrix, sizes: PerTask) -> np.ndarray:
  """Curve [k] of the accuracy over all seen test examples: sum_{j<=k} n_j a[k, j] / sum n_j.

  The top-1 curve of PILOT (Sun et al., 2023, arXiv:2309.07117), whose "average
  accuracy" is the mean of this curve. Differs from `average_accuracy` where
  tasks have test sets of unequal size.

  Args:
    sizes: [T], examples in each task's test set.
  """
  a = validate(matrix)
  n = _per_task(sizes, 'sizes', a)
  if (n <= 0).any():
    raise ValueError(f'expected positive test sizes, got {n.tolist()}')
  return np.array([np.average(row[: k + 1], weights=n[: k + 1]) for k, row in enumerate(a)])


def learning_accuracy(matrix: Matrix) -> float:
  """LA = (1/T) sum_k a[k, k]: plasticity (Riemer et al., 2019, arXiv:1810.11910)."""
  return float(np.diag(validate(matrix)).mean())


def forgetting(matrix: Matrix) -> float:
  """FM = (1/(T-1)) sum_{j<T} (max_{j<=l<=T-1} a[l, j] - a[T, j]); 0 for one task.

  RWalk (Chaudhry et al., 2018, arXiv:1801.10112). The maximum is over the past
  only, so that backward transfer at the last task counts as negative forgetting.
  """
  a = _square(matrix)
  return _mean([a[j:-1, j].max() - a[-1, j] for j in range(len(a) - 1)])


def forgetting_inclusive(matrix: Matrix) -> float:
  """Forgetting with the maximum over j <= l <= T: includes the present, never negative.

  The variant in the code of L2P and its successors; 0 for one task.
  """
  a = _square(matrix)
  return _mean([a[j:, j].max() - a[-1, j] for j in range(len(a) - 1)])


def coda_forgetting(matrix: Matrix) -> float:
  """(1/(T-1)) sum_{t>=2} (1/(t-1)) sum_{i<t} (a[t-1, i] - a[t, i]); 0 for one task.

  The mean drop per step of CODA-Prompt (Smith et al., 2023, arXiv:2211.13218).
  Much smaller than `forgetting` by construction; never compare the two.
  """
  a = _square(matrix)
  return _mean([(a[t - 1, :t] - a[t, :t]).mean() for t in range(1, len(a))])


def bwt(matrix: Matrix) -> float:
  """BWT = (1/(T-1)) sum_{j<T} (a[T, j] - a[j, j]) (GEM, arXiv:1706.08840); 0 for one task."""
  a = _square(matrix)
  return _mean((a[-1] - np.diag(a))[:-1])


def bwt_trace(matrix: Matrix) -> float:
  """BWT divided by T rather than T-1 (TRACE, Wang et al., 2023, arXiv:2310.06762)."""
  a = _square(matrix)
  return _mean(a[-1] - np.diag(a))


def fwt(matrix: Matrix, single: PerTask) -> float:
  """FWT = (1/(T-1)) sum_{j>=2} (a[j, j] - s_j): what earlier tasks add to learning a new one.

  Forward transfer in training (Progressive Prompts, Razdaibiedina et al., 2023,
  arXiv:2301.12314).

  Args:
    single: [T], accuracy s_j of the same model and PEFT trained on task j alone.
  """
  a = _several(matrix)
  return _mean((np.diag(a) - _per_task(single, 'single', validate(matrix)))[1:])


def fwt_gem(matrix: Matrix, random: PerTask) -> float:
  """FWT = (1/(T-1)) sum_{j>=2} (a[j-1, j] - b_j) (GEM, arXiv:1706.08840).

  Zero-shot transfer; meaningless in class-incremental runs, where unseen classes
  cannot be predicted.

  Args:
    random: [T], accuracy b_j of the model at its random initialisation.
  """
  a = _zero_shot(_several(matrix), 'fwt_gem')
  return _mean(np.diag(a, 1) - _per_task(random, 'random', validate(matrix))[1:])


def intransigence(matrix: Matrix, joint: PerTask) -> float:
  """IM = (1/T) sum_k (a*_k - a[k, k]) (RWalk, arXiv:1801.10112): what is missing in plasticity.

  Args:
    joint: [T], accuracy a*_k on task k after joint training on tasks 1..k: the
      diagonal of the matrix of a joint run.
  """
  a = validate(matrix)
  return _mean(_per_task(joint, 'joint', a) - np.diag(a))


class DiazRodriguez(NamedTuple):
  """Metrics of Díaz-Rodríguez et al. (2018, arXiv:1810.13166)."""

  accuracy: float  # Mean over all entries on and below the diagonal.
  bwt: float  # Mean of a[i, j] - a[j, j] over i > j.
  remembering: float  # REM = 1 - |min(bwt, 0)|
  positive_bwt: float  # BWT+ = max(bwt, 0)
  fwt: float | None  # Mean over the entries above the diagonal; None where not evaluated.


def diaz_rodriguez(matrix: Matrix) -> DiazRodriguez:
  """Computes the metrics of Díaz-Rodríguez et al. that read the accuracy matrix."""
  a = _several(matrix)
  backward = float((a - np.diag(a))[np.tril_indices(len(a), -1)].mean())
  ahead = a[np.triu_indices(len(a), 1)]
  return DiazRodriguez(
    accuracy=float(a[np.tril_indices(len(a))].mean()),
    bwt=backward,
    remembering=1 - abs(min(backward, 0.0)),
    positive_bwt=max(backward, 0.0),
    fwt=None if np.isnan(ahead).any() else float(ahead.mean()),
  )


def mtil_last(matrix: Matrix) -> float:
  """Last = mean_j a[T, j] (ZSCL, Zheng et al., 2023, arXiv:2303.06628)."""
  return _mean(_square(matrix)[-1])


def mtil_average(matrix: Matrix) -> float:
  """Avg = mean of a[k, j] over all k and j, zero-shot entries included (ZSCL)."""
  return float(_zero_shot(_square(matrix), 'mtil_average').mean())


def mtil_transfer(matrix: Matrix) -> float:
  """Transfer = mean over j >= 2 of (1/(j-1)) sum_{k<j} a[k, j] (ZSCL)."""
  a = _zero_shot(_several(matrix), 'mtil_transfer')
  return _mean([a[:j, j].mean() for j in range(1, len(a))])


def retention(matrix: Matrix) -> np.ndarray:
  """[k] of a[T, j] / a[j, j]; NaN where the task was never learned (CLiMB, arXiv:2206.09059)."""
  a = _square(matrix)
  return _ratio(a[-1], np.diag(a))


def relative_forgetting(matrix: Matrix, chance: float | PerTask) -> np.ndarray:
  """[k-1] of (a[j, j] - a[T, j]) / (a[j, j] - chance_j), j < T: 1 is back to chance.

  CLiMB (Srinivasan et al., 2022, arXiv:2206.09059); NaN where a task was learned
  exactly to chance.

  Args:
    chance: accuracy of guessing, one for all tasks or [T].
  """
  a = _square(matrix)
  width = validate(matrix)
  chances = _per_task(np.broadcast_to(chance, width.shape[1]), 'chance', width)
  learned = np.diag(a)
  return _ratio(learned - a[-1], learned - chances)[:-1]


def min_acc(matrix: Matrix) -> float:
  """min-ACC = (1/(T-1)) sum_{j<T} min_{n>j} a[n, j], the worst after each task was learned.

  De Lange et al. (2023, arXiv:2205.13452). Here the minimum is over the evaluations
  at task ends; dips within a task (the stability gap) do not show.
  """
  a = _several(matrix)
  return _mean([a[j + 1 :, j].min() for j in range(len(a) - 1)])


def wc_acc(matrix: Matrix) -> float:
  """WC-ACC = a[T, T] / T + (1 - 1/T) min-ACC (De Lange et al., 2023, arXiv:2205.13452)."""
  a = _square(matrix)
  rest = min_acc(a) if len(a) > 1 else 0.0
  return float(a[-1, -1] / len(a) + (1 - 1 / len(a)) * rest)


def summarise(
  matrix: Matrix,
  sizes: PerTask | None = None,
  *,
  joint: PerTask | None = None,
  single: PerTask | None = None,
  random: PerTask | None = None,
) -> dict[str, float]:
  """The metrics of `results.json`, under their names there.

  Args:
    matrix: [k, T], k <= T.
    sizes: [T] test sizes; without them the union accuracies are left out.
    joint: [T] for `intransigence`.
    single: [T] for `fwt`, which also needs two finished tasks.
    random: [T] for `fwt_gem`, which also needs two finished tasks.
  """
  a = validate(matrix)
  out = {
    'average_accuracy': float(average_accuracy(a)[-1]),
    'average_incremental_accuracy': average_incremental_accuracy(a),
    'learning_accuracy': learning_accuracy(a),
    'forgetting': forgetting(a),
    'forgetting_inclusive': forgetting_inclusive(a),
    'bwt': bwt(a),
  }
  if sizes is not None:
    union = union_accuracy(a, sizes)
    out |= {'union_accuracy': float(union[-1]), 'average_union_accuracy': float(union.mean())}
  if joint is not None:
    out['intransigence'] = intransigence(a, joint)
  if single is not None and len(a) > 1:
    out['fwt'] = fwt(a, single)
  if random is not None and len(a) > 1:
    out['fwt_gem'] = fwt_gem(a, random)
  return out


def _square(matrix: Matrix) -> np.ndarray:
  """The finished tasks at the finished times, [k, k]."""
  a = validate(matrix)
  return a[:, : len(a)]


def _several(matrix: Matrix) -> np.ndarray:
  a = _square(matrix)
  if len(a) < 2:
    raise ValueError('expected at least two finished tasks, got one')
  return a


def _zero_shot(a: np.ndarray, metric: str) -> np.ndarray:
  # Only the entries one step ahead of the diagonal enter fwt_gem; the others need all.
  ahead = np.diag(a, 1) if metric == 'fwt_gem' else a
  if np.isnan(ahead).any():
    raise ValueError(f'{metric} needs zero-shot entries (above the diagonal); some are missing')
  return a


def _per_task(values: PerTask, name: str, a: np.ndarray) -> np.ndarray:
  """Checks a per-task input against the matrix and returns its first k entries."""
  v = np.asarray(values, np.float64)
  if v.shape != a.shape[1:]:
    raise ValueError(f'expected {name} of shape {a.shape[1:]}, one per task, got {v.shape}')
  v = v[: len(a)]
  if np.isnan(v).any():
    raise ValueError(f'expected {name} for each of the {len(a)} finished tasks, got {v.tolist()}')
  return v


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _mean(values: Sequence[float] | np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else 0.0
