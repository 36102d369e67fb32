"""All metrics together, checked by hand, against loops, and for another measure."""

import itertools
import math

import numpy as np
import pytest

from pecft_jax.metrics import ACCURACY, Evaluation, Measure, metrics_of, summarise

from .worked_example import JOINT, MATRIX, SEEN, SINGLE, SIZES, START

BASELINES = {'joint': JOINT, 'single': SINGLE, 'start': START}
WORKED = {
  'average_accuracy': 0.8,
  'average_incremental_accuracy': 0.841667,
  'union_accuracy': 0.82,
  'average_union_accuracy': 0.8525,
  'learning_accuracy': 0.85,
  'forgetting': 0.075,
  'forgetting_inclusive': 0.1,
  'coda_forgetting': 0.0625,
  'bwt': -0.075,
  'worst_case_accuracy': 0.8,
  'fwt': -0.035,
  'fwt_gem': 0.07,
  'intransigence': 0.03,
  'mtil_last': 0.8,
  'mtil_average': 5.25 / 9,
  'mtil_transfer': 0.1,
}


def test_worked_example():
  assert summarise(MATRIX, SIZES, **BASELINES) == pytest.approx(WORKED, abs=1e-6)


def test_metrics_are_there_with_their_evidence_only():
  plain = summarise(SEEN)
  baselines = {'fwt', 'fwt_gem', 'intransigence', 'mtil_last', 'mtil_average', 'mtil_transfer'}
  union = {'union_accuracy', 'average_union_accuracy'}
  assert plain.keys() == WORKED.keys() - baselines - union
  assert summarise(SEEN, SIZES).keys() == WORKED.keys() - baselines
  assert 'fwt_gem' not in summarise(SEEN, SIZES, **BASELINES)
  stream = [Evaluation(0, [0.5]), Evaluation(1, [0.4, 0.6])]
  assert summarise(SEEN, evaluations=stream)['anytime_accuracy'] == pytest.approx(0.5)
  assert summarise(SEEN, evaluations=stream)['min_accuracy'] == pytest.approx(0.4)
  assert all(type(value) is float for value in summarise(MATRIX, SIZES, **BASELINES).values())


@pytest.mark.parametrize('pad', [0, 1], ids=['k rows', 'rows of null'])
def test_partly_finished_run_reads_as_its_finished_tasks(pad):
  rows = [[0.9, None, None], [0.8, 0.85, None], *[[None] * 3] * pad]
  whole = [[0.9, None], [0.8, 0.85]]
  cut = {name: values[:2] for name, values in BASELINES.items()}
  assert summarise(rows, SIZES, **BASELINES) == summarise(whole, SIZES[:2], **cut)


def test_one_task_has_no_metrics_between_tasks():
  assert summarise([[0.9, None]], single=[0.5, 0.5], start=[0.1, 0.1]) == {
    'average_accuracy': 0.9,
    'average_incremental_accuracy': 0.9,
    'learning_accuracy': 0.9,
    'forgetting': 0.0,
    'forgetting_inclusive': 0.0,
    'coda_forgetting': 0.0,
    'bwt': 0.0,
  }


def by_loops(a, n, joint, single, start):
  """The formulas as sums, one term after the other."""
  T, out = len(a), {}
  aa = [math.fsum(a[k][j] for j in range(k + 1)) / (k + 1) for k in range(T)]
  seen = [sum(n[: k + 1]) for k in range(T)]
  union = [math.fsum(n[j] * a[k][j] for j in range(k + 1)) / seen[k] for k in range(T)]
  out['average_accuracy'], out['average_incremental_accuracy'] = aa[-1], math.fsum(aa) / T
  out['union_accuracy'], out['average_union_accuracy'] = union[-1], math.fsum(union) / T
  out['learning_accuracy'] = math.fsum(a[k][k] for k in range(T)) / T
  past = [max(a[m][j] for m in range(j, T - 1)) for j in range(T - 1)]
  ever = [max(a[m][j] for m in range(j, T)) for j in range(T - 1)]
  worst = [min(a[m][j] for m in range(j + 1, T)) for j in range(T - 1)]
  end = a[T - 1]
  out['forgetting'] = math.fsum(past[j] - end[j] for j in range(T - 1)) / (T - 1)
  out['forgetting_inclusive'] = math.fsum(ever[j] - end[j] for j in range(T - 1)) / (T - 1)
  out['bwt'] = math.fsum(end[j] - a[j][j] for j in range(T - 1)) / (T - 1)
  drop = [math.fsum(a[t - 1][i] - a[t][i] for i in range(t)) / t for t in range(1, T)]
  out['coda_forgetting'] = math.fsum(drop) / (T - 1)
  out['worst_case_accuracy'] = end[-1] / T + (T - 1) / T * (math.fsum(worst) / (T - 1))
  out['intransigence'] = math.fsum(joint[k] - a[k][k] for k in range(T)) / T
  out['fwt'] = math.fsum(a[j][j] - single[j] for j in range(1, T)) / (T - 1)
  out['fwt_gem'] = math.fsum(a[j - 1][j] - start[j] for j in range(1, T)) / (T - 1)
  out['mtil_last'] = math.fsum(end) / T
  out['mtil_average'] = math.fsum(itertools.chain(*a)) / T**2
  early = [math.fsum(a[k][j] for k in range(j)) / j for j in range(1, T)]
  out['mtil_transfer'] = math.fsum(early) / (T - 1)
  return out


@pytest.mark.parametrize('tasks', [2, 5, 11])
def test_random_matrices_against_loops(tasks):
  rng = np.random.default_rng(tasks)
  a, (joint, single, start) = rng.random((tasks, tasks)), rng.random((3, tasks))
  sizes = rng.integers(1, 100, tasks)
  found = summarise(a, sizes, joint=joint, single=single, start=start)
  expected = by_loops(a.tolist(), sizes.tolist(), joint.tolist(), single.tolist(), start.tolist())
  assert found == pytest.approx(expected, abs=1e-13)


def test_a_measure_of_which_less_is_better_is_its_mirror_image():
  # The error 1 - a: levels are mirrored, gains and losses are the same.
  error = Measure('error', 0.0, 1.0, False)
  mirrored = {name: 1 - np.asarray(values) for name, values in BASELINES.items()}
  found = summarise(1 - MATRIX, SIZES, **mirrored, measure=error)
  expected = summarise(MATRIX, SIZES, **BASELINES)
  names = {m.name: m for m in metrics_of(error)}
  plain = {m.name.replace('accuracy', 'error'): m.name for m in metrics_of(ACCURACY)}
  assert found.keys() == {name.replace('accuracy', 'error') for name in expected}
  for name, value in found.items():
    want = expected[plain[name]]
    assert value == pytest.approx(want if names[name].difference else 1 - want), name


def test_values_out_of_the_range_of_the_measure_are_refused():
  with pytest.raises(ValueError, match=r'accuracy in \[0, 1\], got 90.0'):
    summarise(100 * MATRIX)
  error = Measure('squared error', 0.0, math.inf, False)
  assert summarise(100 * SEEN, measure=error)['average_squared_error'] == pytest.approx(80)
