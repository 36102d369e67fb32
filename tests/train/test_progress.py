"""What is shown while a run goes on."""

import io
import re
import sys
import types

import pytest
from rich.console import Console
from tiny_runs import TRAINING, quiet, tiny_experiment, tiny_method

from pecft_jax.train import RunOptions, progress, run
from pecft_jax.train.progress import Reporter, phase_batches, phase_costs
from pecft_jax.train.schedule import training_steps
from pecft_jax.workdir.position import Position


def test_batches_of_each_phase():
  experiment = tiny_experiment('ease')
  assert phase_batches(experiment, experiment.method, 1) == {
    'prepare': 3,
    'train': 6,
    'consolidate': 3,
    'evaluate': 3,
  }


def test_costs_of_each_phase():
  experiment = tiny_experiment('ease')
  first, second = phase_costs(experiment, experiment.method)
  some = {'begin': 0, 'train': 6 * 4 * 3, 'end': 0}
  # Batches of 5, the last one filled up; two passes per prediction in the second task, on the test
  # sets of both.
  assert first == {**some, 'consolidate': 15, 'evaluate': 10}
  assert second == {**some, 'consolidate': 30, 'evaluate': 30}


def test_costs_of_evaluations_that_keep_what_does_not_change():
  cost = lambda name: [
    each['evaluate'] for each in phase_costs(*of(tiny_experiment(name, 3)), keeping=True)
  ]
  of = lambda experiment: (experiment, experiment.method)
  # 6, 12 and 18 examples in batches of 5: 2, 3, and 4, of which 2 are new in each later task.
  assert cost('simplecil') == [10, 10, 10]
  assert cost('ease') == [10, 15 + 10, 20 + 2 * 10]  # The new subspace, and the old ones.
  assert cost('l2p') == [10 + 10, 15 + 10, 20 + 10]  # The prompted pass, and the query.


def test_lines_where_there_is_no_terminal(monkeypatch, tmp_path):
  monkeypatch.setattr(progress, '_QUIET_SECONDS', 0.0)
  console = quiet()
  run(tiny_experiment('ease'), tmp_path, RunOptions(console=console))
  lines = console.file.getvalue().splitlines()
  assert any('task 1/2 · epoch 2/2 · step 4/6 · loss' in line for line in lines)
  assert any('task 2/2 · consolidate' in line for line in lines)
  assert any('left' in line for line in lines)
  shares = [int(line.split('%')[0].split()[-1]) for line in lines]
  assert shares == sorted(shares)
  assert shares[-1] == 100


def test_nothing_is_printed_by_quick_runs(tmp_path):
  console = quiet()
  run(tiny_experiment('ease'), tmp_path, RunOptions(console=console))
  assert console.file.getvalue() == ''


def reporter_of(experiment, console=None):
  return Reporter(experiment, experiment.method, 'ease', console or quiet())


@pytest.mark.parametrize('method', ['ease', 'ranpac', 'joint'])
@pytest.mark.parametrize(
  'more', [{}, {'evaluate': 'all', 'evaluate_every': 2}], ids=['ends', 'all']
)
def test_the_end_is_a_hundred_percent(method, more):
  training = TRAINING._replace(epochs=3, **more)
  experiment = tiny_experiment(method, training=training)
  reporter = reporter_of(experiment)
  last = phase_batches(experiment, tiny_method(method), 1)['evaluate']
  done = reporter._done(Position(task=1, phase='evaluate', batch=last))[1]
  total = reporter._before[-1][1]
  assert {kind: done[kind] for kind in total} == pytest.approx(total)
  assert sum(reporter._done(Position())[1].values()) == 0


class Clock:
  """Time that passes when it is told to."""

  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)


def stepped(reporter, shown, clock, steps, seconds):
  """Training steps of task 0, each told; returns what is said of the time left after each."""
  with reporter:
    reporter._show = lambda each, now: shown.append(each)
    for step in range(steps):
      clock.now += seconds(step)
      reporter(Position(phase='train', batch=step + 1), 1.0, True)
  return [each.left for each in shown]


def test_compilation_is_not_extrapolated(monkeypatch):
  clock = Clock(monkeypatch)
  experiment = tiny_experiment('finetune', training=TRAINING._replace(epochs=200))
  total = training_steps(experiment, experiment.method, 0)
  said = stepped(reporter_of(experiment), [], clock, 5, lambda step: 0.1 if step else 20.0)
  assert said[:4] == ['', '', '', '']
  minutes, seconds = said[4].removesuffix(' left').split(':')
  # Evaluations are 8 batches of forward passes, next to nothing beside two tasks of training.
  rest = 0.1 * (2 * total - 5)
  assert rest / 2 <= 60 * int(minutes) + int(seconds) <= 2 * rest


@pytest.mark.parametrize('width', [100, 80, 60, 40])
def test_a_line_fits_a_terminal_of_any_width(monkeypatch, width):
  experiment = tiny_experiment('ease', training=TRAINING._replace(epochs=200))
  clock = Clock(monkeypatch)
  console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
  with reporter_of(experiment, console) as reporter:
    for step in range(6):
      clock.now += 100
      reporter(Position(phase='train', batch=step + 1), 1.0, True)
  text = re.sub(r'\x1b\[[^a-zA-Z]*[a-zA-Z]', '', console.file.getvalue())
  lines = [line.rstrip() for line in re.split(r'[\r\n]+', text) if line.strip()]
  assert all('%' in line and len(line) < width for line in lines), lines
  for part in ('ease', '0 %', 'task 1/2', ' left'):
    assert part in lines[-1]


class Displayed:
  """Stands for IPython's `display`: keeps what each output area shows."""

  def __init__(self):
    self.states = []

  def __call__(self, data, *, raw, display_id):
    assert raw and display_id
    self.states.append(data['text/plain'])
    return self

  def update(self, data, *, raw):
    assert raw
    self.states.append(data['text/plain'])


def test_a_notebook_shows_one_line_that_changes(monkeypatch):
  displayed = Displayed()
  made = types.ModuleType('IPython.display')
  made.display = displayed
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setitem(sys.modules, 'IPython.display', made)
  monkeypatch.setattr(progress, '_NOTEBOOK_SECONDS', 0.0)
  console = Console(file=io.StringIO(), force_jupyter=True)
  run(tiny_experiment('ease'), None, RunOptions(console=console))
  assert any('task 1/2 · epoch 2/2 · step 4/6 · loss' in state for state in displayed.states)
  assert '100 %' in displayed.states[-1]
  assert console.file.getvalue() == ''


def test_where_there_is_no_ipython_there_are_lines(monkeypatch):
  monkeypatch.setitem(sys.modules, 'IPython', None)
  assert progress._in_notebook('ease') is None
