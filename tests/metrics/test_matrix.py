"""What is no matrix [time, task] is refused."""

import numpy as np
import pytest

from pecft_jax.metrics import Measure, average_accuracy, bwt, forgetting, validate

from .worked_example import MATRIX, SEEN


def test_transposed_reading_gives_other_numbers():
  # With all zero-shot entries a transpose cannot be detected, only seen in the numbers.
  np.testing.assert_allclose(average_accuracy(MATRIX.T), [0.9, 0.475, 1 / 3])
  assert bwt(MATRIX.T) == pytest.approx(-0.775)


def test_transposed_matrix_is_refused_where_zero_shot_is_missing():
  with pytest.raises(ValueError, match=r'time 2, task 1; is the matrix \[task, time\]'):
    validate(SEEN.T)
  with pytest.raises(ValueError, match=r'at most T times for T tasks, got shape \(3, 2\)'):
    validate(MATRIX[:2].T)


@pytest.mark.parametrize(
  ('matrix', 'message'),
  [
    (MATRIX * 100, r'accuracy in \[0, 1\], got 90.0 at time 1, task 1'),
    (-MATRIX, r'accuracy in \[0, 1\], got -0.9'),
    ([[np.inf]], 'finite values, got inf at time 1, task 1'),
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
    validate(matrix)


def test_range_is_that_of_the_measure():
  error = Measure('squared error', 0.0, np.inf, False)
  assert validate(MATRIX * 100, error)[0, 0] == 90
  with pytest.raises(ValueError, match=r'squared error in \[0, inf\], got -0.9'):
    validate(-MATRIX, error)


def test_metrics_of_percentages_are_percentages():
  assert forgetting(100 * SEEN) == pytest.approx(7.5)
