"""Learning accuracy, intransigence, forward transfer."""

import numpy as np
import pytest

from pecft_jax import metrics

from .worked_example import JOINT, SEEN, SINGLE


def test_worked_example():
  assert metrics.learning_accuracy(SEEN) == pytest.approx(0.85)
  assert metrics.fwt(SEEN, SINGLE) == pytest.approx(-0.035)
  assert metrics.intransigence(SEEN, JOINT) == pytest.approx(0.03)


def test_baselines_of_tasks_to_come_may_be_missing():
  assert metrics.intransigence(SEEN[:2], (0.9, 0.88, np.nan)) == pytest.approx(0.015)
  with pytest.raises(ValueError, match='joint for each of the 3 finished tasks'):
    metrics.intransigence(SEEN, (0.9, 0.9, np.nan))


def test_forward_transfer_needs_two_tasks():
  with pytest.raises(ValueError, match='at least two finished tasks'):
    metrics.fwt([[0.9, None]], [0.9, 0.9])
