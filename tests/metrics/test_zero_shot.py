"""Tasks that were not learned yet."""

import pytest

from pecft_jax import metrics

from .worked_example import MATRIX, SEEN, START


def test_worked_example():
  assert metrics.fwt_gem(MATRIX, START) == pytest.approx(0.07)
  assert metrics.mtil_last(MATRIX) == pytest.approx(0.8)
  assert metrics.mtil_average(MATRIX) == pytest.approx(5.25 / 9)
  assert metrics.mtil_transfer(MATRIX) == pytest.approx(0.1)


def test_missing_entries_are_named():
  with pytest.raises(ValueError, match='fwt_gem needs zero-shot entries'):
    metrics.fwt_gem(SEEN, START)
  with pytest.raises(ValueError, match='mtil_average needs zero-shot entries'):
    metrics.mtil_average(SEEN)
  with pytest.raises(ValueError, match='at least two finished tasks'):
    metrics.mtil_transfer([[0.9, 0.1]])
