"""Tables for the terminal."""

import io

import pytest
from rich.console import Console

from pecft_jax.report import accuracy_table, print_run, read_run


def printed(thing, run=None, width=100, color=None):
  console = Console(file=io.StringIO(), width=width, color_system=color, force_terminal=bool(color))
  print_run(thing, console) if run is None else console.print(thing)
  return console.file.getvalue()


def test_run_is_printed_with_headline_matrix_and_bounds(work, bounds):
  text = printed(read_run(work(beside=bounds)))
  assert 'closes 71' in text
  assert ' 80.0  85.0  90.0   85.0\n' in text
  assert 'sequential fine-tuning  joint training' in text


@pytest.mark.parametrize('tasks', [5, 20])
def test_matrix_fits_a_narrow_terminal(work, tasks):
  run = read_run(work(tasks=tasks, drop=0.02))
  text = printed(accuracy_table(run), run, width=80)
  assert '…' not in text
  assert max(map(len, text.splitlines())) <= 80


def test_cells_are_shaded(work):
  run = read_run(work())
  assert '48;2;' in printed(accuracy_table(run), run, color='truecolor')


def test_running_run_says_after_how_many_tasks(work):
  assert 'Metrics after 1 of 3 tasks' in printed(read_run(work(finished=1)))


def test_nothing_finished(work):
  assert 'no task finished yet' in printed(read_run(work(finished=0)))


def test_names_are_not_markup(work):
  assert 'a[bold]b: 85.0' in printed(read_run(work(method='a[bold]b')))
