"""What eight devices compute is what one computes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from distributed.devices import report_of
from distributed.eight_devices import (
  BUFFERS,
  CASES,
  IN_PARTS,
  MOVING,
  STATISTICS,
  layouts_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def found(shared):
  """All that the processes with eight devices report; nearly all they do is to compile."""
  some = lambda part: report_of('eight_devices.py', shared / f'eight-{part}.json', *CASES[part::2])
  with ThreadPoolExecutor() as pool:
    one, other = pool.map(some, range(2))
  return {key: {**one[key], **other[key]} for key in one}


def _assert_near(distances):
  far = {name: d for name, d in distances.items() if d > 1e-5}
  assert not far


@pytest.mark.parametrize(
  ('case', 'layout'), [(case, layout) for case in CASES for layout in layouts_of(case)]
)
def test_eight_devices_agree_with_one(case, layout, found):
  got = found['runs'][case][layout]
  assert got['accuracy']
  assert got['predictions']
  assert set(got['compilations'].values()) == {1}
  _assert_near(got['distances'])


@pytest.mark.parametrize('case', STATISTICS)
def test_class_statistics_are_added_up_exactly(case, found):
  for got in found['runs'][case].values():
    distances = got['distances']
    assert distances['memory/counts'] == 0
    assert distances['memory/sums'] <= 1e-6


@pytest.mark.parametrize('case', BUFFERS)
def test_buffers_keep_the_same_examples(case, found):
  for got in found['runs'][case].values():
    distances = got['distances']
    assert distances['memory/buffer/items/x'] == distances['memory/buffer/items/y'] == 0


@pytest.mark.parametrize('case', IN_PARTS)
def test_parts_of_answers_that_are_kept_change_nothing(case, found):
  assert found['keeping'][case] == {'there': True, 'memory': True, 'disk': True}


@pytest.mark.parametrize('case', MOVING)
def test_a_run_moves_from_eight_devices_to_four_to_one(case, found):
  moved = found['moving'][case]
  assert moved['ticks'] == 12  # Stopped twice, 6 ticks apart, of 15.
  assert moved['accuracy']
  _assert_near(moved['distances'])
