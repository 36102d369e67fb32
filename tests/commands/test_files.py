import os
import pathlib
import sys

import pytest

from pecft_jax.commands.files import (
  default_workdir,
  find_experiment,
  load_experiment,
  parse_flags,
)
from pecft_jax.commands.run import RunFlags

DIGITS = str(pathlib.Path(__file__).parents[2] / 'experiments' / 'split_digits.py')


def test_runs_with_other_flags_get_directories_of_their_own():
  function = load_experiment(DIGITS)
  values, _ = parse_flags(function, [], 'pecft', RunFlags)
  other, _ = parse_flags(function, ['--method', 'l2p', '--seed', '3'], 'pecft', RunFlags)
  assert str(default_workdir('split_digits', function, values)) == 'runs/split_digits'
  assert str(default_workdir('split_digits', function, other)).endswith('-method=l2p-seed=3')


def test_a_benchmark_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  function = load_experiment(find_experiment('split_digits'))
  assert function.__module__ == 'pecft_jax.benchmarks.split_digits'
  assert load_experiment(DIGITS) is function


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('split_digit', "unknown experiment 'split_digit'; did you mean 'split_digits'"),
    ('mine', r'its ending \.py; there is a file mine\.py'),
    ('folder', r'is a Python file, whose name ends in \.py; got folder'),
    ('notes.txt', r'is a Python file, whose name ends in \.py; got notes\.txt'),
  ],
)
def test_what_is_no_experiment_is_refused(name, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text('')
  (tmp_path / 'notes.txt').write_text('')
  (tmp_path / 'folder').mkdir()
  with pytest.raises(ValueError, match=message):
    find_experiment(name)


def test_a_file_that_is_not_there_is_refused():
  with pytest.raises(ValueError, match=r'no experiment file at nowhere\.py'):
    load_experiment(find_experiment('nowhere.py'))


def test_options_may_be_set_several_times():
  function = load_experiment(DIGITS)
  args = ['--set', 'ease.alpha=0.2', '--set', 'adaptformer.width=3']
  values, _ = parse_flags(function, args, 'pecft', RunFlags)
  assert values['set'] == ('ease.alpha=0.2', 'adaptformer.width=3')
  assert parse_flags(function, [], 'pecft', RunFlags)[0]['set'] == ()


def test_modules_of_the_folder_of_the_file_and_of_the_current_one_can_be_named(
  tmp_path, monkeypatch
):
  from pecft_jax.catalog import find

  here, there = tmp_path / 'here', tmp_path / 'there'
  for folder, name in ((here, 'module_of_here'), (there, 'module_of_there')):
    folder.mkdir()
    (folder / f'{name}.py').write_text('def mine(backbone, capacity): ...\n')
  (there / 'file_of_there.py').write_text('def experiment(): ...\n')
  monkeypatch.chdir(here)
  monkeypatch.setattr(sys, 'path', [each for each in sys.path if each])
  load_experiment(str(there / 'file_of_there.py'))
  for name in ('module_of_here', 'module_of_there'):
    assert find('method', f'{name}:mine').__name__ == 'mine'


def test_a_file_that_changes_within_a_second_is_read_anew(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'dont_write_bytecode', False)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  file = tmp_path / 'changing.py'
  for number in (3, 4):
    file.write_text(f'def experiment():\n  return {number}\n')
    os.utime(file, (10**9, 10**9))
    assert load_experiment(str(file))() == number
  sys.modules.pop('changing')
