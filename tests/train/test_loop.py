"""What the loop fetches and checks; that it can be left anywhere is in test_run.py."""

import jax
import numpy as np
import pytest

from pecft_jax.train.loop import NonFiniteLoss, on_devices, settle
from pecft_jax.train.position import Position
from pecft_jax.train.sharding import batched, one_device
from pecft_jax.train.step import StepLog


def _logs(*losses, finite=True):
  return [StepLog(np.float32(loss), np.int32(2), np.int32(4), np.bool_(finite)) for loss in losses]


def test_settling_fetches_losses_and_counts():
  position = Position(
    phase='train', batch=2, unfetched=_logs(0.5, 0.25), counts=[[1, 2, np.int32(3)]]
  )
  settle(position)
  assert position.losses == [[0.5, 2, 4], [0.25, 2, 4]]
  assert position.to_json()['counts'] == [[1, 2, 3]]


def test_settling_names_the_first_bad_step():
  position = Position(task=3, phase='train', batch=9, unfetched=_logs(0.5, np.inf, np.nan))
  with pytest.raises(NonFiniteLoss, match='the loss is inf at task 3, step 8 of the task'):
    settle(position)
  position = Position(task=3, phase='train', batch=9, unfetched=_logs(0.5, finite=False))
  with pytest.raises(NonFiniteLoss, match='not finite after task 3, step 9 of the task'):
    settle(position)


def test_batches_on_devices():
  sharding = batched(one_device())
  batch = {'x': np.arange(6).reshape(3, 2), 'y': np.arange(3)}
  on = on_devices(batch, sharding)
  assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(on))
  jax.tree.map(np.testing.assert_array_equal, on, batch)
