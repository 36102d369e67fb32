"""What the loop fetches and checks; that it can be left anywhere is in test_run.py."""

import chex
import jax
import numpy as np
import pytest

from pecft_jax.devices.sharding import batched, one_device
from pecft_jax.problems import Judged
from pecft_jax.train.batches import on_devices
from pecft_jax.train.context import NonFiniteLoss
from pecft_jax.train.logs import settle
from pecft_jax.train.update import StepLog
from pecft_jax.workdir.position import Findings, Position


def _logs(*losses, finite=True):
  return [StepLog(np.float32(loss), np.int32(2), np.int32(4), np.bool_(finite)) for loss in losses]


def test_settling_fetches_losses_and_counts():
  sums = Judged(*np.array([[1, 4], [2, 5], [3, 6]], np.int32))  # Each of two test sets.
  found = Findings(counts=[[1, 2, 3], [0, 0, 0]])
  position = Position(phase='train', batch=2, logs=_logs(0.5, 0.25), seeds=[found], sums=sums)
  settle(position)
  assert found.losses == [[0.5, 2, 4], [0.25, 2, 4]]
  assert position.to_json()['seeds'][0]['counts'] == [[1, 2, 3], [4, 5, 6]]


def test_settling_parts_what_seeds_found():
  sums = Judged(*np.arange(6, dtype=np.int32).reshape(3, 2, 1))  # [S, J] each.
  log = StepLog(np.array([0.5, 0.25]), np.array([1, 2]), np.array([4, 4]), np.ones(2, bool))
  found = [Findings(counts=[[9, 9, 9]]), Findings()]
  settle(Position(phase='train', batch=1, logs=[log], seeds=found, sums=sums))
  assert [each.losses for each in found] == [[[0.5, 1, 4]], [[0.25, 2, 4]]]
  assert [each.counts for each in found] == [[[0, 2, 4]], [[1, 3, 5]]]


def test_settling_adds_right_answers_by_class():
  hits = np.array([[[1, 0], [1, 1]], [[0, 2], [0, 3]]], np.int32)  # [S, 2, C]
  sums = Judged(*np.arange(6, dtype=np.int32).reshape(3, 2, 1), hits=hits)
  found = [Findings(counts=[[1, 1, 1]], hits=[[1, 1], [1, 1]]), Findings()]
  settle(Position(phase='evaluate', batch=1, seeds=found, sums=sums))
  assert [each.hits for each in found] == [[[2, 1], [2, 2]], [[0, 2], [0, 3]]]


def test_settling_names_the_seed_that_diverged():
  log = StepLog(np.array([0.5, np.nan]), np.array([1, 2]), np.array([4, 4]), np.ones(2, bool))
  position = Position(phase='train', batch=1, logs=[log], seeds=[Findings(), Findings()])
  with pytest.raises(NonFiniteLoss, match='task 0, step 1 of the task, of seed number 1'):
    settle(position)


def test_settling_names_the_first_bad_step():
  position = Position(task=3, phase='train', batch=9, logs=_logs(0.5, np.inf, np.nan))
  with pytest.raises(NonFiniteLoss, match='the loss is inf at task 3, step 8 of the task'):
    settle(position)
  position = Position(task=3, phase='train', batch=9, logs=_logs(0.5, finite=False))
  with pytest.raises(NonFiniteLoss, match='not finite after task 3, step 9 of the task'):
    settle(position)


def test_batches_on_devices():
  sharding = batched(one_device())
  batch = {'x': np.arange(6).reshape(3, 2), 'y': np.arange(3)}
  on = on_devices(batch, sharding)
  assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(on))
  chex.assert_trees_all_equal(on, batch)


def test_a_process_puts_down_its_own_part_of_a_batch():
  """On one device all parts are asked for; it has none of other processes."""
  sharding = batched(one_device())
  rows = np.arange(6).reshape(3, 2)
  np.testing.assert_array_equal(on_devices({'x': rows}, sharding, (0, 1), axis=1)['x'], rows)
