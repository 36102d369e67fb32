"""The time that is left, from measured batches."""

import pytest

from pecft_jax.train.pace import Pace


def test_nothing_is_said_before_enough_is_measured():
  pace = Pace()
  for step in range(1, 6):
    assert pace.left({'train': 1.0}) is None
    pace.told('train', step, float(step), 20.0 + step, settled=True)
  assert pace.left({'train': 1.0}) == pytest.approx(1.0)


def test_what_runs_behind_the_host_counts_once_it_has_arrived():
  pace = Pace()
  for step in range(1, 10):
    pace.told('train', step, float(step), 0.001 * step, settled=False)
  assert pace.left({'train': 1.0}) is None
  pace.told('train', 10, 10.0, 9.0, settled=True)
  assert pace.left({'train': 2.0}) == pytest.approx(2.0, rel=0.01)


def test_each_kind_has_its_own_rate_and_one_that_is_new_the_mean():
  pace = Pace()
  now = 0.0
  for kind, seconds in (('train', 3.0), ('evaluate', 1.0)):
    for step in range(1, 6):
      now += 50.0 if step == 1 else seconds
      pace.told(kind, step, 2.0 * step, now, settled=True)
  assert pace.left({'train': 2.0}) == pytest.approx(3.0)
  assert pace.left({'evaluate': 20.0}) == pytest.approx(10.0)
  assert pace.left({'prepare': 1.0}) == pytest.approx((4 * 3.0 + 4 * 1.0) / 16)


def test_a_run_that_goes_on_measures_its_own_process_only():
  pace = Pace()
  for step in range(500, 506):
    pace.told('train', step, float(step), 30.0 + 2 * step, settled=True)
  assert pace.left({'train': 10.0}) == pytest.approx(20.0)
