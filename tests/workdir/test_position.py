"""Positions as JSON."""

import json

from pecft_jax.workdir.position import Findings, Position


def test_json_and_back():
  position = Position(
    task=2,
    phase='evaluate',
    batch=3,
    tick=9,
    seeds=[Findings([[1, 2, 3]], [[0.1, None]], [[0.2, None]], [[1 / 3, 1, 4]], 5), Findings()],
    data={'next_index': 4},
    seconds=[0.1 + 0.2],
    compilations={'train': 1},
  )
  assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position


def test_json_does_not_change_with_the_position():
  position = Position(seeds=[Findings(counts=[[1, 2, 3]])])
  value = position.to_json()
  position.seeds[0].counts[0][0] = 7
  assert value['seeds'][0]['counts'] == [[1, 2, 3]]


def test_boundaries_are_where_a_row_of_accuracies_is():
  assert not Position(phase='begin').at_boundary()
  found = [Findings(accuracy=[[0.5, None]])]
  assert Position(phase='evaluate', seeds=found).at_boundary()
  assert not Position(task=1, phase='begin', seeds=found).at_boundary()
