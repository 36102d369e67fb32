import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pecft_jax.data import (
  arrays,
  class_incremental,
  domain_incremental,
  only_classes,
  task_incremental,
)


def source(labels, names='abcd', **options):
  return arrays('toy', np.zeros((len(labels), 2, 2, 1), np.uint8), labels, list(names), **options)


TRAIN, TEST = source([0, 1, 2, 3, 3, 2, 1, 0]), source([3, 1, 2, 0])


def test_tasks_hold_their_classes_in_the_class_order():
  scenario = class_incremental(TRAIN, TEST, tasks=2, order=[3, 0, 2, 1])
  assert scenario.class_names == ('d', 'a', 'c', 'b')
  assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3)]
  first = scenario.tasks[0]
  assert first.train.rows.tolist() == [0, 3, 4, 7]
  assert first.train.labels.tolist() == [1, 0, 0, 1]
  assert first.test.rows.tolist() == [0, 3]
  assert first.test.labels.tolist() == [0, 1]
  assert (first.train.rows.dtype, first.train.labels.dtype) == (np.int64, np.int32)
  assert (scenario.kind, scenario.name) == ('class', 'toy/class-incremental-2')


@given(st.permutations(range(4)), st.sampled_from([(4,), (1, 3), (2, 1, 1), (1, 1, 1, 1)]))
@settings(max_examples=20, deadline=None)
def test_every_row_is_in_just_one_task_under_its_own_class(order, increments):
  scenario = class_incremental(TRAIN, TEST, increments=increments, order=order)
  rows = np.concatenate([task.train.rows for task in scenario.tasks])
  labels = np.concatenate([task.train.labels for task in scenario.tasks])
  assert sorted(rows) == list(range(8))
  np.testing.assert_array_equal(np.array(scenario.class_order)[labels], TRAIN.labels[rows])
  assert tuple(len(task.classes) for task in scenario.tasks) == increments


def test_task_incremental_has_the_same_split_and_another_identity():
  ours, theirs = (make(TRAIN, TEST, tasks=2) for make in (task_incremental, class_incremental))
  assert ours.kind == 'task'
  assert ours.tasks[1].train.rows.tolist() == theirs.tasks[1].train.rows.tolist()
  assert ours.digest != theirs.digest


def test_classes_per_task_gives_the_order():
  scenario = class_incremental(TRAIN, TEST, classes_per_task=[[2], [0, 3, 1]])
  assert scenario.class_order == (2, 0, 3, 1)
  assert [task.classes for task in scenario.tasks] == [(0,), (1, 2, 3)]


def test_some_of_the_classes_make_a_scenario_too():
  train, test = (only_classes(s, [3, 1]) for s in (TRAIN, TEST))
  scenario = class_incremental(train, test, tasks=2)
  assert scenario.class_names == ('d', 'b')
  assert scenario.tasks[0].train.rows.tolist() == [1, 2]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'exactly one of tasks, increments and classes_per_task, got 0'),
    ({'tasks': 2, 'increments': (2, 2)}, 'got 2'),
    ({'tasks': 3}, '3 tasks do not divide 4 classes; give .* increments'),
    ({'tasks': 0}, '0 tasks do not divide'),
    ({'increments': (2, 1)}, r'sum to 4 classes, got \[2, 1\], which sum to 3'),
    ({'increments': (5, -1)}, 'increments of at least 1'),
    ({'increments': ()}, 'sum to 0'),
    ({'classes_per_task': [[0, 1], [1, 2, 3]]}, r'each label once, got \[1\]'),
    ({'classes_per_task': [[0, 1], [2, 9]]}, r'labels in 0..3, got \[9\]'),
    ({'classes_per_task': [[0, 1, 2, 3], []]}, 'increments of at least 1'),
    ({'classes_per_task': [[0, 1], [2, 3]], 'order': 'seed:0'}, 'gives the class order'),
    ({'tasks': 1, 'order': '0,1,2'}, r'train source holds labels outside .*: \[3\].*only_classes'),
  ],
)
def test_wrong_splits_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    class_incremental(TRAIN, TEST, **options)


def test_different_classes_in_train_and_test_are_refused():
  with pytest.raises(ValueError, match=r"same class_names.*not in both: \['d', 'e'\]"):
    class_incremental(TRAIN, source([0, 1, 2, 3], 'abce'), tasks=2)
  with pytest.raises(ValueError, match='their order differs'):
    class_incremental(TRAIN, source([0, 1, 2, 3], 'badc'), tasks=2)


def test_empty_tasks_are_refused():
  with pytest.raises(ValueError, match="'task_1' is empty: no test rows"):
    class_incremental(TRAIN, source([0, 1]), tasks=2)
  with pytest.raises(ValueError, match="'task_0' is empty: no train rows"):
    class_incremental(source([2, 3]), TEST, tasks=2)


@pytest.mark.parametrize('split', [class_incremental, task_incremental])
def test_classes_without_training_rows_are_refused_by_name(split):
  """Where labels start at 1, and where a class is in the test set alone."""
  for train, test in (([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [0, 1, 2, 3])):
    with pytest.raises(ValueError, match=r"1 of 4 classes have no training rows: \['a'\]"):
      split(source(train), source(test), tasks=2)
  scenario = split(source([1, 2, 3]), source([1, 2, 3]), tasks=3, order='3,1,2')
  assert scenario.class_names == ('d', 'b', 'c')


def test_a_class_may_be_trained_in_some_domains_only():
  options = {'domains': [0, 0, 1, 1], 'domain_names': ['photo', 'sketch']}
  assert len(domain_incremental(source([0, 1, 2, 3], **options), PHOTOS).tasks) == 2
  with pytest.raises(ValueError, match=r"1 of 4 classes have no training rows: \['d'\]"):
    domain_incremental(source([0, 1, 2, 2], **options), PHOTOS)


DOMAINS = {'domains': [0, 0, 1, 1], 'domain_names': ['photo', 'sketch']}
PHOTOS = source([0, 1, 2, 3], **DOMAINS)


@pytest.mark.parametrize('order', ['sketch,photo', ['sketch', 'photo'], [1, 0], '1,0'])
def test_domain_tasks_follow_the_order_and_have_all_classes(order):
  scenario = domain_incremental(PHOTOS, PHOTOS, order=order)
  assert [task.name for task in scenario.tasks] == ['sketch', 'photo']
  assert all(task.classes == (0, 1, 2, 3) for task in scenario.tasks)
  assert scenario.tasks[0].train.rows.tolist() == [2, 3]
  assert scenario.tasks[0].train.labels.tolist() == [2, 3]
  assert scenario.class_order == (0, 1, 2, 3)


def test_domain_order_is_natural_by_default():
  assert [t.name for t in domain_incremental(PHOTOS, PHOTOS).tasks] == ['photo', 'sketch']


def test_wrong_domains_are_refused():
  with pytest.raises(ValueError, match='the train source has no domains'):
    domain_incremental(TRAIN, TEST)
  with pytest.raises(ValueError, match=r'holds domains outside the domain order: \[0\]'):
    domain_incremental(PHOTOS, PHOTOS, order=['sketch'])
  with pytest.raises(ValueError, match=r'cannot read .*clipart'):
    domain_incremental(PHOTOS, PHOTOS, order=['clipart', 'photo'])
  empty = source([0, 1], domains=[0, 0], domain_names=['photo', 'sketch'])
  with pytest.raises(ValueError, match="'sketch' is empty: no test rows"):
    domain_incremental(PHOTOS, empty)
