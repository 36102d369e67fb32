"""Averages over tasks, times and examples."""

import numpy as np
import pytest

from pecft_jax import metrics

from .worked_example import MATRIX, SEEN, SIZES


@pytest.mark.parametrize('matrix', [MATRIX, SEEN], ids=['zero-shot', 'seen only'])
def test_worked_example(matrix):
  np.testing.assert_allclose(metrics.average_accuracy(matrix), [0.9, 0.825, 0.8])
  assert metrics.average_incremental_accuracy(matrix) == pytest.approx(0.841667, abs=1e-6)
  np.testing.assert_allclose(metrics.union_accuracy(matrix, SIZES), [0.9, 0.8375, 0.82])
  assert metrics.average_union_accuracy(matrix, SIZES) == pytest.approx(0.8525)


def test_union_of_equal_test_sets_is_the_average():
  union = metrics.union_accuracy(SEEN, (5, 5, 5))
  np.testing.assert_allclose(union, metrics.average_accuracy(SEEN))


def test_union_is_the_share_of_right_examples():
  rng = np.random.default_rng(0)
  right = [rng.random(n) < 0.6 for n in (7, 20, 3)]
  rows = [[r.mean() for r in right[: k + 1]] + [np.nan] * (2 - k) for k in range(3)]
  expected = [np.concatenate(right[: k + 1]).mean() for k in range(3)]
  np.testing.assert_allclose(metrics.union_accuracy(rows, [7, 20, 3]), expected)


def test_sizes_are_checked():
  with pytest.raises(ValueError, match=r'sizes of shape \(3,\), one per task, got \(2,\)'):
    metrics.union_accuracy(SEEN, SIZES[:2])
  with pytest.raises(ValueError, match='positive test sizes'):
    metrics.union_accuracy(SEEN, (100, 0, 600))
