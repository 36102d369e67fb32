import numpy as np
import pytest

from pecft_jax import data
from pecft_jax.data import Split, arrays, class_incremental, joined, task_masks
from pecft_jax.data.scenario import data_sha256, one_after_another
from pecft_jax.data.source import select_rows
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


class Read:
  """Inputs that are read on demand, and count how often."""

  def __init__(self, array):
    self.array, self.read = array, 0

  def __len__(self):
    return len(self.array)

  def __getitem__(self, rows):
    self.read += len(rows)
    return self.array[rows]


def of_inputs(wrapped, images):
  """Two tasks of 200 training and 4 test examples each."""
  labels = np.arange(400) % 4
  train = data.arrays('mine', images, labels)
  test = data.arrays('mine', images[:8], labels[:8])
  train = train._replace(inputs=wrapped(train.inputs))
  return data.class_incremental(train, test, tasks=2)


def test_every_byte_of_data_in_memory_counts():
  images = np.random.default_rng(0).integers(0, 255, (400, 5, 6, 1), np.uint8)
  whole = data_sha256(of_inputs(lambda inputs: inputs, images))
  for row, column in ((0, 0), (201, 3), (399, 5)):
    other = images.copy()
    other[row, 4, column] ^= 1
    assert data_sha256(of_inputs(lambda inputs: inputs, other)) != whole
  # However the rows lie.
  turned = select_rows(data.arrays('mine', images[::-1].copy(), np.zeros(400, int)), np.arange(400))
  assert data_sha256(of_inputs(lambda _: turned.inputs, images)) != whole
  back = select_rows(turned, np.arange(400)[::-1])
  assert data_sha256(of_inputs(lambda _: back.inputs, images)) == whole


def test_of_data_that_is_read_on_demand_a_sample_counts():
  images = np.random.default_rng(0).integers(0, 255, (400, 5, 6, 1), np.uint8)
  scenario = of_inputs(Read, images)
  found, inputs = data_sha256(scenario), scenario.tasks[0].train.inputs
  assert inputs.read == 2 * 64
  assert data_sha256(of_inputs(Read, images)) == found
  assert data_sha256(of_inputs(Read, 255 - images)) != found


def test_splits_of_several_sources_are_read_one_after_another():
  first = np.arange(5 * 3 * 2, dtype=np.int32).reshape(5, 6)
  second = 100 + np.arange(4 * 6, dtype=np.int32).reshape(4, 6)
  parts = [
    Split(first, np.array([4, 1]), np.array([0, 1], np.int32)),
    Split(second, np.array([3, 0, 3]), np.array([2, 2, 0], np.int32)),
    Split(first, np.array([2]), np.array([1], np.int32)),
  ]
  whole = one_after_another(parts)
  expected = np.concatenate([part.inputs[part.rows] for part in parts])
  assert whole.labels.tolist() == [0, 1, 2, 2, 0, 1]
  assert len(whole.inputs) == 5 + 4 + 5
  np.testing.assert_array_equal(whole.inputs[whole.rows], expected)
  mixed = np.array([5, 0, 3, 2, 0])  # In any order, and twice.
  np.testing.assert_array_equal(whole.inputs[whole.rows[mixed]], expected[mixed])
  assert whole.inputs[whole.rows].dtype == np.int32


def test_splits_of_one_source_keep_it():
  images = np.zeros((4, 2, 2, 1), np.uint8)
  parts = [Split(images, np.array([i]), np.array([i], np.int32)) for i in (2, 0)]
  assert one_after_another(parts).inputs is images
