"""Forgetting in its variants."""

import numpy as np
import pytest

from pecft_jax import metrics

from .worked_example import MATRIX, SEEN


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('forgetting', 0.075),
    ('forgetting_inclusive', 0.1),
    ('coda_forgetting', 0.0625),
    ('bwt', -0.075),
    ('bwt_trace', -0.05),
    ('min_acc', 0.8),
    ('wc_acc', 0.8),
  ],
)
@pytest.mark.parametrize('matrix', [MATRIX, SEEN], ids=['zero-shot', 'seen only'])
def test_worked_example(name, value, matrix):
  assert getattr(metrics, name)(matrix) == pytest.approx(value, abs=1e-6)


def test_worked_example_per_task():
  np.testing.assert_allclose(metrics.retention(SEEN), [0.777778, 1.058824, 1.0], atol=1e-6)
  np.testing.assert_allclose(metrics.relative_forgetting(SEEN, 0.10), [0.25, -0.066667], atol=1e-6)
  assert np.isnan(metrics.relative_forgetting([[0.1, None], [0.2, 0.5]], [0.1, 0.2])[0])


def test_one_task_forgets_nothing():
  for name in ('forgetting', 'forgetting_inclusive', 'coda_forgetting', 'bwt', 'bwt_trace'):
    assert getattr(metrics, name)([[0.9]]) == 0.0
  assert metrics.wc_acc([[0.9]]) == 0.9


def test_worst_case_needs_two_tasks():
  with pytest.raises(ValueError, match='at least two finished tasks'):
    metrics.min_acc([[0.9, 0.1]])
