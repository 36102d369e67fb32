import numpy as np
import pytest

from pecft_jax.data import Split, arrays, class_incremental, joined, task_masks
from pecft_jax.typing import Capacity


def source(labels, classes=4):
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  return arrays('toy', images, labels, [str(i) for i in range(classes)])


def scenario(**options):
  options = {'tasks': 2} | options
  return class_incremental(source([0, 1, 2, 3] * 3), source([3, 2, 1, 0]), **options)


def test_the_capacity_counts_tasks_and_classes():
  assert scenario(increments=(2, 1, 1), tasks=None).capacity == Capacity(tasks=3, classes=4)


def test_masks_mark_the_classes_of_a_task_and_all_seen():
  classes, seen = task_masks(scenario(increments=(2, 1, 1), tasks=None), 1)
  np.testing.assert_array_equal(classes, [False, False, True, False])
  np.testing.assert_array_equal(seen, [True, True, True, False])


@pytest.mark.parametrize('t', [-1, 2])
def test_masks_of_a_task_that_is_not_there_are_refused(t):
  with pytest.raises(ValueError, match=rf'task in 0..1, got {t}'):
    task_masks(scenario(), t)


def test_joined_splits_hold_all_rows():
  tasks = scenario().tasks
  split = joined([task.train for task in tasks])
  assert sorted(split.rows.tolist()) == list(range(12))
  assert split.inputs is tasks[0].train.inputs
  assert split.labels.dtype == np.int32


def test_joined_refuses_nothing_and_several_sources():
  train, test = scenario().tasks[0].train, scenario().tasks[0].test
  with pytest.raises(ValueError, match='at least one split'):
    joined([])
  with pytest.raises(ValueError, match='one source'):
    joined([train, Split(np.zeros((4, 2, 2, 1), np.uint8), test.rows, test.labels)])


def test_the_digest_is_stable():
  # A changed constant means that identities of old results no longer match.
  assert scenario().digest == scenario(name='another name').digest
  assert scenario().digest == 'c44be5725aa272b69a2dc5d8b03cae95a84a5e013897663a780d41df5dc3a182'


def test_the_digest_sees_every_part_of_the_split():
  digests = {
    scenario().digest,
    scenario(tasks=4).digest,
    scenario(order='1,0,2,3').digest,
    class_incremental(source([0, 1, 2, 3] * 2), source([3, 2, 1, 0]), tasks=2).digest,
    class_incremental(source([0, 1, 2, 3] * 3), source([3, 2, 0, 1]), tasks=2).digest,
  }
  assert len(digests) == 5
