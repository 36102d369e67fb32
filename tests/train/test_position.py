"""Positions as JSON."""

import json

from pecft_jax.train.position import Position


def test_json_and_back():
  position = Position(
    task=2,
    phase='evaluate',
    batch=3,
    tick=9,
    counts=[[1, 2, 3]],
    accuracy=[[0.1, None]],
    losses=[[1 / 3, 1, 4]],
    data={'next_index': 4},
    seconds=[0.1 + 0.2],
    compilations={'train': 1},
  )
  assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position


def test_json_does_not_change_with_the_position():
  position = Position(counts=[[1, 2, 3]])
  value = position.to_json()
  position.counts[0][0] = 7
  assert value['counts'] == [[1, 2, 3]]


def test_boundaries_are_where_a_row_of_accuracies_is():
  assert not Position(phase='begin').at_boundary()
  assert Position(phase='evaluate', accuracy=[[0.5, None]]).at_boundary()
  assert not Position(task=1, phase='begin', accuracy=[[0.5, None]]).at_boundary()
