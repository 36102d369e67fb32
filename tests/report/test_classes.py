"""Classes and intervals on pages and in tables."""

import io

import numpy as np
import pytest
from rich.console import Console

from pecft_jax.metrics import wilson_interval
from pecft_jax.report import print_run, read_run, write_page
from pecft_jax.report.classes import by_class, task_intervals


def counted(work, shares, size=10, **fields):
  names = [f'kind {c}' for c in range(len(shares))]
  return work(per_class_accuracy=shares, class_test_sizes=[size] * len(shares), class_names=names,
              **fields)  # fmt: skip


def test_classes_come_worst_first_with_their_intervals(work):
  found = by_class(read_run(counted(work, [0.5, 1.0, 0.2])))
  assert [each.name for each in found] == ['kind 2', 'kind 0', 'kind 1']
  assert found[0].interval == wilson_interval(2, 10)


def test_classes_not_seen_yet_are_left_out(work):
  path = work(per_class_accuracy=[0.5, None], class_test_sizes=[4, 0])
  assert [each.name for each in by_class(read_run(path))] == ['class 0']


@pytest.mark.parametrize('fields', [{}, {'per_class_accuracy': None, 'class_test_sizes': None}])
def test_without_counts_there_is_no_section(work, fields):
  path = work(**fields)
  assert by_class(read_run(path)) == []
  assert 'Class by class' not in write_page(path).read_text(encoding='utf-8')


def test_the_page_has_all_of_few_classes_and_the_worst_of_many(work):
  few = write_page(counted(work, [0.5, 1.0, 0.2], name='few')).read_text(encoding='utf-8')
  assert all(f'kind {c}<' in few for c in range(3))
  shares = (np.arange(100) / 100).tolist()
  many = write_page(counted(work, shares, 100, name='many')).read_text(encoding='utf-8')
  assert 'the 10 worst of 100' in many
  assert 'kind 9<' in many and 'kind 10<' not in many


def test_the_terminal_names_the_worst_classes(work):
  console = Console(file=io.StringIO(), width=80)
  print_run(read_run(counted(work, [0.5, 1.0, 0.2])), console)
  lines = [line for line in console.file.getvalue().splitlines() if 'kind' in line]
  assert [line.split()[1] for line in lines] == ['2', '0', '1']


def test_each_task_has_the_interval_of_its_test_set(work):
  sizes = [100, 50, 10]
  run = read_run(work(test_sizes=sizes))
  expected = [wilson_interval(round(a * n), n) for a, n in zip(run.matrix[-1], sizes, strict=True)]
  assert task_intervals(run) == expected
  assert task_intervals(run, 0) == [wilson_interval(90, 100), None, None]


def test_a_measure_that_counts_no_examples_has_no_interval(work):
  measure = {'name': 'token accuracy', 'low': 0.0, 'high': 1.0, 'higher_is_better': True}
  path = work(measure=measure, accuracy_matrix=..., token_accuracy_matrix=[[0.5]], test_sizes=[10],
              tasks=1)  # fmt: skip
  assert task_intervals(read_run(path)) == [None]
