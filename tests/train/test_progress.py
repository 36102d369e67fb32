"""What is shown while a run goes on."""

import pytest
from tiny_runs import TRAINING, quiet, tiny_experiment, tiny_method

from pecft_jax.train import RunOptions, progress, run
from pecft_jax.train.progress import Reporter, phase_batches, phase_costs
from pecft_jax.workdir.position import Position


def test_batches_of_each_phase():
  experiment = tiny_experiment('ease')
  assert phase_batches(experiment, experiment.method, 1) == {
    'prepare': 3,
    'train': 6,
    'consolidate': 3,
    'evaluate': 4,
  }


def test_costs_of_each_phase():
  experiment = tiny_experiment('ease')
  first, second = phase_costs(experiment, experiment.method)
  some = {'begin': 0, 'train': 6 * 4 * 3, 'end': 0}
  assert first == {**some, 'consolidate': 12, 'evaluate': 6}
  assert second == {**some, 'consolidate': 24, 'evaluate': 24}


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


@pytest.mark.parametrize('method', ['ease', 'ranpac', 'joint'])
def test_the_end_is_a_hundred_percent(method):
  experiment = tiny_experiment(method, training=TRAINING._replace(epochs=3))
  reporter = Reporter(experiment, tiny_method(method), 'x', quiet())
  last = phase_batches(experiment, tiny_method(method), 1)['evaluate']
  assert reporter._done(Position(task=1, phase='evaluate', batch=last)) == pytest.approx(1)
  assert reporter._done(Position()) == 0
