"""Evaluations within tasks."""

import numpy as np
import pytest

from pecft_jax.metrics import (
  Evaluation,
  anytime_accuracy,
  average_incremental_accuracy,
  min_acc,
  min_accuracy,
)

from .worked_example import SEEN

AT_ENDS = [Evaluation(t, row[: t + 1].tolist()) for t, row in enumerate(SEEN)]


def test_evaluated_at_task_ends_it_is_the_average_incremental_accuracy():
  assert anytime_accuracy(AT_ENDS) == pytest.approx(average_incremental_accuracy(SEEN))
  assert min_accuracy(AT_ENDS) == pytest.approx(min_acc(SEEN))


def test_by_hand():
  stream = [*AT_ENDS[:1], Evaluation(1, [0.2, 0.4]), *AT_ENDS[1:]]
  assert anytime_accuracy(stream) == pytest.approx((0.9 + 0.3 + 0.825 + 0.8) / 4)
  assert min_accuracy(stream) == pytest.approx((0.2 + 0.9) / 2)  # The dip of task 1 in task 2.


def test_area_under_a_line_of_equal_steps():
  values = np.linspace(0.1, 0.9, 9)
  assert anytime_accuracy([Evaluation(0, [v]) for v in values]) == pytest.approx(0.5)


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match='at least one evaluation'):
    anytime_accuracy([])
  with pytest.raises(ValueError, match='evaluation 1 within task 2: expected values of 2 tasks'):
    anytime_accuracy([Evaluation(0, [0.5]), Evaluation(1, [0.5])])
  with pytest.raises(ValueError, match='at least two tasks'):
    min_accuracy([Evaluation(0, [0.5])])
