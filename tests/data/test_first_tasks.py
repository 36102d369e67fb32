import numpy as np
import pytest

from pecft_jax import data
from pecft_jax.data.scenario import data_sha256

LABELS = np.repeat(np.arange(6), [4, 5, 6, 7, 8, 9])
SOURCE = data.arrays('mine', np.arange(len(LABELS), dtype=np.uint8).reshape(-1, 1, 1, 1), LABELS)
TEST = data.arrays('mine', 100 + np.arange(6, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(6))
SCENARIO = data.class_incremental(SOURCE, TEST, tasks=3)


def test_the_two_parts_make_up_the_training_set_and_no_test_example_is_in_them():
  found = data.validation(SCENARIO, 2, 0.25)
  assert len(found.tasks) == 2
  for task, whole in zip(found.tasks, SCENARIO.tasks, strict=False):
    assert task.classes == whole.classes
    assert task.test.inputs is whole.train.inputs
    rows = [*task.train.rows, *task.test.rows]
    assert sorted(rows) == sorted(whole.train.rows.tolist())
    for part in (task.train, task.test):
      np.testing.assert_array_equal(part.labels, LABELS[part.rows])
  # A quarter of each class: of 4, 5, 6 and 7 examples.
  assert [np.bincount(task.test.labels)[-2:].tolist() for task in found.tasks] == [[1, 1], [2, 2]]


def test_outputs_stay_those_of_the_whole_scenario():
  found = data.validation(SCENARIO, 1)
  assert found.class_order == SCENARIO.class_order
  assert found.capacity.classes == SCENARIO.capacity.classes
  assert found.digest != SCENARIO.digest
  assert data_sha256(found) != data_sha256(SCENARIO)


def test_a_scenario_with_fewer_tasks_gives_all_of_them():
  assert len(data.validation(SCENARIO, 10).tasks) == 3


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_classes():
  held = lambda scenario, seed: sorted(
    int(row) for task in data.validation(scenario, 3, seed=seed).tasks for row in task.test.rows
  )
  backwards = data.class_incremental(SOURCE, TEST, tasks=3, order=[5, 4, 3, 2, 1, 0])
  assert held(SCENARIO, 0) == held(backwards, 0)
  assert held(SCENARIO, 0) != held(SCENARIO, 1)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [((0,), 'at least 1 task'), ((1, 0.0), 'between 0 and 1'), ((1, 1.0), 'between 0 and 1')],
)
def test_other_sizes_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    data.validation(SCENARIO, *arguments)


def test_a_class_with_one_example_is_named():
  source = data.arrays('mine', SOURCE.inputs[:5], [0, 0, 1, 0, 0])
  scenario = data.class_incremental(source, source, tasks=1)
  with pytest.raises(ValueError, match=r'got 1 of .*1'):
    data.validation(scenario)
