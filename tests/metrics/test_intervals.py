import pytest
from scipy.stats import binomtest

from pecft_jax.metrics import wilson_interval


@pytest.mark.parametrize('level', [0.5, 0.95, 0.999])
@pytest.mark.parametrize(('correct', 'examples'), [(0, 1), (1, 1), (0, 40), (17, 40), (974, 1000)])
def test_it_is_scipys(correct, examples, level):
  found = binomtest(correct, examples).proportion_ci(level, 'wilson')
  assert wilson_interval(correct, examples, level) == pytest.approx((found.low, found.high))


def test_ends_are_exact_where_all_or_none_are_correct():
  for examples in range(1, 200):
    assert wilson_interval(0, examples)[0] == 0
    assert wilson_interval(examples, examples)[1] == 1


@pytest.mark.parametrize('counts', [(0, 0), (3, 2), (-1, 2)])
def test_counts_that_cannot_be_are_refused(counts):
  with pytest.raises(ValueError, match='expected 0 <= correct <= examples'):
    wilson_interval(*counts)


def test_a_level_that_is_none_is_refused():
  with pytest.raises(ValueError, match='expected a level between 0 and 1, got 95'):
    wilson_interval(1, 2, 95.0)
