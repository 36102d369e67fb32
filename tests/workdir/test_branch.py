"""Runs that start where others stood after a task."""

import json
import os
import pathlib

import pytest
from tiny_runs import TRAINING, outcome, silent, tiny_experiment

from pecft_jax.train import Branch, run, run_seeds, sgd

TASKS = 3
OTHER = TRAINING._replace(recipe=sgd(0.2), epochs=3)


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
  """A finished run with a checkpoint after each task."""
  workdir = tmp_path_factory.mktemp('trunk')
  run(tiny_experiment(tasks=TASKS), workdir, silent(keep_tasks=True))
  return workdir


def _contents(directory):
  return {
    path.relative_to(directory): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def test_a_branch_with_the_same_settings_ends_as_the_trunk(trunk, tmp_path):
  before = _contents(trunk)
  run(tiny_experiment(tasks=TASKS), tmp_path, silent(branch=Branch(trunk, 1)))
  assert outcome(tmp_path) == outcome(trunk)
  assert _contents(trunk) == before


def test_paths_may_be_relative(trunk, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  source = os.path.relpath(trunk)
  assert not os.path.isabs(source)
  branch = Branch(pathlib.Path(source), 1)
  run(tiny_experiment(tasks=TASKS), 'branch', silent(branch=branch))
  assert outcome(tmp_path / 'branch') == outcome(trunk)


def test_a_branch_with_other_settings_shares_the_tasks_before(trunk, tmp_path):
  experiment = tiny_experiment(tasks=TASKS, training=OTHER)
  run(experiment, tmp_path, silent(branch=Branch(trunk, 2)))
  one, other = outcome(trunk), outcome(tmp_path)
  shared = lambda found: [row for row in found['rows'] if row['task'] < 2]
  assert shared(one) == shared(other)
  matrices = [found['results']['accuracy_matrix'] for found in (one, other)]
  assert matrices[0][:2] == matrices[1][:2]
  assert one['results']['state_sha256'] != other['results']['state_sha256']
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['branch'] == {'source': str(trunk), 'after_task': 2}


def test_a_branch_resumes(trunk, interrupt, tmp_path):
  experiment = tiny_experiment(tasks=TASKS, training=OTHER)
  run(experiment, tmp_path / 'whole', silent(branch=Branch(trunk, 1)))
  for _ in range(50):
    interrupt(4)
    try:
      run(experiment, tmp_path / 'parts', silent(branch=Branch(trunk, 1)))
      break
    except Exception as stop:
      assert type(stop).__name__ == 'Stopped'
  assert outcome(tmp_path / 'parts') == outcome(tmp_path / 'whole')


def test_checkpoints_after_tasks_stay_where_that_is_asked(trunk, tmp_path):
  run(tiny_experiment(tasks=TASKS), tmp_path, silent())
  assert len(os.listdir(trunk / 'checkpoints')) == TASKS
  assert len(os.listdir(tmp_path / 'checkpoints')) == 2
  with pytest.raises(
    ValueError, match=r'no checkpoint after task 1; there are some after \[2, 3\]'
  ):
    run(tiny_experiment(tasks=TASKS), tmp_path / 'new', silent(branch=Branch(tmp_path, 1)))


def test_a_branch_learns_the_same_sequence(trunk, tmp_path):
  with pytest.raises(ValueError, match=r'learns something else than this run; .*split_digest'):
    run(tiny_experiment(tasks=2), tmp_path, silent(branch=Branch(trunk, 1)))


def test_a_branch_of_another_method_is_refused(trunk, tmp_path):
  with pytest.raises(ValueError, match=r'leaves .* that differ'):
    run(tiny_experiment('ease', TASKS), tmp_path, silent(branch=Branch(trunk, 1)))


def test_a_branch_has_as_many_seeds(trunk, tmp_path):
  with pytest.raises(ValueError, match='has 1 seeds in a program, this run 2'):
    run_seeds(tiny_experiment(tasks=TASKS), (0, 1), tmp_path, silent(branch=Branch(trunk, 1)))


def test_there_must_be_something_to_branch_from(trunk, tmp_path):
  experiment = tiny_experiment(tasks=TASKS)
  with pytest.raises(ValueError, match='holds no checkpoints'):
    run(experiment, tmp_path / 'new', silent(branch=Branch(tmp_path / 'none', 1)))
  # The refusal leaves nothing that would stand in the way of a better command.
  run(experiment, tmp_path / 'new', silent(branch=Branch(trunk, 1)))


def test_branches_of_seeds(tmp_path):
  experiment = tiny_experiment(tasks=2)
  run_seeds(experiment, (0, 1), tmp_path / 'trunk', silent())
  branch = Branch(tmp_path / 'trunk', 1)
  run_seeds(experiment, (0, 1), tmp_path / 'branch', silent(branch=branch))
  for seed in (0, 1):
    assert outcome(tmp_path / f'branch/seed_{seed}') == outcome(tmp_path / f'trunk/seed_{seed}')
