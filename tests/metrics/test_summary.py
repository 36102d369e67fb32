"""Every number of a worked example of three tasks, and the checks on the input."""

import numpy as np
import pytest

from pecft_jax.metrics import summary as metrics

# Row = time, column = task; above the diagonal: zero-shot. Task 2 gains from task 3,
# which separates the variants of forgetting.
MATRIX = np.array([[0.90, 0.10, 0.05], [0.80, 0.85, 0.15], [0.70, 0.90, 0.80]])
SEEN = np.where(np.tri(3, dtype=bool), MATRIX, np.nan)
SIZES = (100, 300, 600)
JOINT = (0.90, 0.88, 0.86)
SINGLE = (0.90, 0.88, 0.84)
RANDOM = (0.08, 0.06, 0.05)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('average_incremental_accuracy', 0.841667),
    ('learning_accuracy', 0.85),
    ('forgetting', 0.075),
    ('forgetting_inclusive', 0.1),
    ('coda_forgetting', 0.0625),
    ('bwt', -0.075),
    ('bwt_trace', -0.05),
    ('mtil_last', 0.8),
    ('min_acc', 0.8),
    ('wc_acc', 0.8),
  ],
)
@pytest.mark.parametrize('matrix', [MATRIX, SEEN], ids=['zero-shot', 'seen only'])
def test_worked_example(name, value, matrix):
  assert getattr(metrics, name)(matrix) == pytest.approx(value, abs=1e-6)


def test_worked_example_curves():
  np.testing.assert_allclose(metrics.average_accuracy(SEEN), [0.9, 0.825, 0.8])
  union = metrics.union_accuracy(SEEN, SIZES)
  np.testing.assert_allclose(union, [0.9, 0.8375, 0.82])
  assert union.mean() == pytest.approx(0.8525)


def test_worked_example_with_baselines():
  assert metrics.fwt(SEEN, SINGLE) == pytest.approx(-0.035)
  assert metrics.fwt_gem(MATRIX, RANDOM) == pytest.approx(0.07)
  assert metrics.intransigence(SEEN, JOINT) == pytest.approx(0.03)


def test_worked_example_diaz_rodriguez():
  out = metrics.diaz_rodriguez(MATRIX)
  np.testing.assert_allclose(out, [0.825, -0.083333, 0.916667, 0.0, 0.1], atol=1e-6)
  assert metrics.diaz_rodriguez(SEEN).fwt is None


def test_worked_example_mtil():
  assert metrics.mtil_average(MATRIX) == pytest.approx(5.25 / 9)
  assert metrics.mtil_transfer(MATRIX) == pytest.approx(0.1)


def test_worked_example_per_task():
  np.testing.assert_allclose(metrics.retention(SEEN), [0.777778, 1.058824, 1.0], atol=1e-6)
  np.testing.assert_allclose(metrics.relative_forgetting(SEEN, 0.10), [0.25, -0.066667], atol=1e-6)
  assert np.isnan(metrics.relative_forgetting([[0.1, None], [0.2, 0.5]], [0.1, 0.2])[0])


def test_transposed_reading_gives_other_numbers():
  # With all zero-shot entries a transpose cannot be detected, just told apart.
  np.testing.assert_allclose(metrics.average_accuracy(MATRIX.T), [0.9, 0.475, 1 / 3])
  assert metrics.bwt(MATRIX.T) == pytest.approx(-0.775)


def test_transposed_matrix_is_refused_where_zero_shot_is_missing():
  with pytest.raises(ValueError, match=r'time 2, task 1; is the matrix \[task, time\]'):
    metrics.validate(SEEN.T)
  with pytest.raises(ValueError, match=r'at most T times for T tasks, got shape \(3, 2\)'):
    metrics.validate(MATRIX[:2].T)


@pytest.mark.parametrize(
  ('matrix', 'message'),
  [
    (MATRIX * 100, r'accuracies in \[0, 1\], got 90.0 at time 1, task 1'),
    (-MATRIX, r'accuracies in \[0, 1\], got -0.9'),
    ([[np.inf]], r'accuracies in \[0, 1\], got inf'),
    ([[0.5, None], [0.5]], 'rectangular'),
    ([['high']], 'rectangular'),
    ([0.5, 0.5], r'got shape \(2,\)'),
    ([], r'got shape \(0,\)'),
    ([[None, None], [None, None]], 'at least one finished task'),
    ([[0.5, None], [0.5, None]], 'nothing at time 2, task 2'),
    ([[None, None], [0.5, 0.5]], 'nothing at time 1, task 1'),
  ],
)
def test_bad_matrix_is_refused(matrix, message):
  with pytest.raises(ValueError, match=message):
    metrics.validate(matrix)


@pytest.mark.parametrize('pad', [0, 1], ids=['k rows', 'rows of null'])
def test_partly_finished_run_reads_as_its_finished_tasks(pad):
  rows = [[0.9, None, None], [0.8, 0.85, None], *[[None] * 3] * pad]
  whole = [[0.9, None], [0.8, 0.85]]
  assert metrics.summarise(rows, SIZES, joint=JOINT, single=SINGLE) == metrics.summarise(
    whole, SIZES[:2], joint=JOINT[:2], single=SINGLE[:2]
  )


def test_one_task_forgets_nothing():
  out = metrics.summarise([[0.9, None]], single=[0.5, 0.5], random=[0.1, 0.1])
  assert out == {
    'average_accuracy': 0.9,
    'average_incremental_accuracy': 0.9,
    'learning_accuracy': 0.9,
    'forgetting': 0.0,
    'forgetting_inclusive': 0.0,
    'bwt': 0.0,
  }
  assert metrics.coda_forgetting([[0.9]]) == metrics.bwt_trace([[0.9]]) == 0.0
  assert metrics.wc_acc([[0.9]]) == 0.9


@pytest.mark.parametrize('name', ['min_acc', 'diaz_rodriguez', 'mtil_transfer'])
def test_metrics_between_tasks_need_two(name):
  with pytest.raises(ValueError, match='at least two finished tasks'):
    getattr(metrics, name)([[0.9, 0.1]])


def test_summary_has_baseline_metrics_only_with_their_baselines():
  plain = metrics.summarise(SEEN, SIZES)
  assert set(plain) == {
    'average_accuracy',
    'average_incremental_accuracy',
    'union_accuracy',
    'average_union_accuracy',
    'learning_accuracy',
    'forgetting',
    'forgetting_inclusive',
    'bwt',
  }
  full = metrics.summarise(MATRIX, SIZES, joint=JOINT, single=SINGLE, random=RANDOM)
  assert set(full) - set(plain) == {'fwt', 'fwt_gem', 'intransigence'}
  assert all(type(value) is float for value in full.values())


def test_summary_repeats_the_worked_example():
  out = metrics.summarise(MATRIX, SIZES, joint=JOINT, single=SINGLE, random=RANDOM)
  assert out == pytest.approx(
    {
      'average_accuracy': 0.8,
      'average_incremental_accuracy': 0.841667,
      'union_accuracy': 0.82,
      'average_union_accuracy': 0.8525,
      'learning_accuracy': 0.85,
      'forgetting': 0.075,
      'forgetting_inclusive': 0.1,
      'bwt': -0.075,
      'fwt': -0.035,
      'fwt_gem': 0.07,
      'intransigence': 0.03,
    },
    abs=1e-6,
  )


def test_zero_shot_metrics_say_what_is_missing():
  with pytest.raises(ValueError, match='fwt_gem needs zero-shot entries'):
    metrics.fwt_gem(SEEN, RANDOM)
  with pytest.raises(ValueError, match='mtil_average needs zero-shot entries'):
    metrics.mtil_average(SEEN)


def test_per_task_inputs_are_checked():
  with pytest.raises(ValueError, match=r'sizes of shape \(3,\), one per task, got \(2,\)'):
    metrics.union_accuracy(SEEN, SIZES[:2])
  with pytest.raises(ValueError, match='positive test sizes'):
    metrics.union_accuracy(SEEN, (100, 0, 600))
  with pytest.raises(ValueError, match='joint for each of the 3 finished tasks'):
    metrics.intransigence(SEEN, (0.9, 0.9, np.nan))
