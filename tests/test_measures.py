"""Measures."""

import pytest

from pecft_jax.measures import ACCURACY, Measure, check_measure
from pecft_jax.problems import classification, next_tokens, regression


def test_measures_of_all_problems_are_sound():
  for problem in (classification, next_tokens(3), regression(2)):
    assert check_measure(problem.measure) == problem.measure


def test_only_fractions_are_percent():
  assert ACCURACY.percent
  assert not regression(1).measure.percent
  assert regression(1).measure.sign == -1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [(('1 - x', 0.0, 1.0), "words, got '1 - x'"), (('x', 1.0, 0.0), 'x: expected low < high')],
)
def test_bad_measures_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    check_measure(Measure(*fields))
