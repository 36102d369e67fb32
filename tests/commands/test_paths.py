"""Every command takes relative directories of any name, and refuses at once those it cannot use."""

import contextlib
import io
import pathlib
import shutil

import pytest

from pecft_jax import cli
from pecft_jax.train import running

FILE = pathlib.Path(__file__).parents[1] / 'flags_file.py'
NAMES = ["it's 100% äöü", 'lr=1e-3,peft=lora', 'a:b', './-dash', '#1 {b} $c & ~d;', 'two\nlines']
URLS = ['gs://bucket/run', 'file:///tmp/run']


class Reached(BaseException):
  pass


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A work directory of one task that is done, made from a relative path."""
  at = tmp_path_factory.mktemp('work')
  with contextlib.chdir(at), contextlib.redirect_stdout(io.StringIO()):
    assert cli.main(['run', str(FILE), '--workdir', 'run', '--epochs', '1']) == 0
  return at / 'run'


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
  """The current folder, in which copies of the work directory are made; home is in it, too."""

  def reach(job):
    raise Reached(job)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(running, 'run_job', reach)
  monkeypatch.syspath_prepend(FILE.parent)
  return lambda name: shutil.copytree(finished, tmp_path / name)


def branched(source, workdir, file=FILE):
  with pytest.raises(Reached) as reached:
    command = ['run', str(file), '--workdir', workdir, '--epochs', '1']
    cli.main([*command, '--branch', source, '--after-task', '1'])
  return reached.value.args[0]


@pytest.mark.parametrize('name', NAMES)
def test_a_directory_of_any_name(name, here, tmp_path, capsys):
  here(name)
  assert cli.main(['inspect', name, '--verify']) == 0
  assert cli.main(['report', name, '--out', f'{name} pages/one.html']) == 0
  assert (tmp_path / f'{name} pages' / 'one.html').is_file()
  assert cli.main(['report', name, '--markdown']) == 0
  assert branched(name, f'{name} 2').directory.resolve() == (tmp_path / f'{name} 2').resolve()
  assert (tmp_path / f'{name} 2' / 'checkpoints').is_dir()


def test_an_adapter_is_exported_from_and_to_directories_of_any_name(here, tmp_path):
  here(NAMES[0])
  assert cli.main(['export', NAMES[0], './-an [adapter]? \\ *']) == 0
  assert (tmp_path / '-an [adapter]? \\ *' / 'adapter_config.json').is_file()


def test_a_tilde_is_the_home_directory(here, tmp_path):
  home = here('home/run')
  shutil.copy(FILE, tmp_path / 'home' / 'my [file].py')
  assert cli.main(['inspect', '~/run']) == 0
  assert cli.main(['report', '~/run', '--out', '~/page.html']) == 0
  assert (home.parent / 'page.html').is_file()
  assert branched('~/run', '~/second', '~/my [file].py').directory == home.parent / 'second'
  assert not (tmp_path / '~').exists()


@pytest.mark.parametrize('name', [*URLS, 'a\udcff'])
@pytest.mark.parametrize(
  'command',
  [
    ['inspect', '{}'],
    ['report', '{}'],
    ['report', 'run', '--out', '{}'],
    ['export', '{}', 'out'],
    ['export', 'run', '{}'],
    ['export', 'run', 'out', '--file', '{}/mine.py'],
    ['run', '{}/mine.py'],
    ['plan', '{}/mine.py'],
    ['run', str(FILE), '--workdir', '{}'],
    ['run', str(FILE), '--workdir', 'new', '--epochs', '1', '--branch', '{}', '--after-task', '1'],
  ],
  ids=' '.join,
)
def test_what_is_no_path_of_this_machine_is_refused(name, command, here, tmp_path, capsys):
  here('run')
  assert cli.main([word.replace('{}', name) for word in command]) == 1
  error = capsys.readouterr().err
  assert 'expected a local path, got the URL' in error or 'expected a path in UTF-8' in error
  assert {path.name for path in tmp_path.iterdir()} <= {'run', 'new'}


@pytest.mark.parametrize('name', ['a[b]', 'a\\b', 'what?', 'star*'])
def test_directories_that_would_lose_checkpoints_are_refused(name, here, tmp_path, capsys):
  here(name)
  for command in (
    ['inspect', name],
    ['export', name, 'out'],
    ['run', str(FILE), '--workdir', name],
    ['run', str(FILE), '--workdir', 'new', '--branch', name, '--after-task', '1'],
  ):
    assert cli.main(command) == 1
    assert 'expected a path without * ? [' in capsys.readouterr().err
  assert cli.main(['report', name]) == 0  # It reads no checkpoints.


@pytest.mark.parametrize(
  'command', [['inspect', ''], ['report', ''], ['report', 'run', '--out', ''], ['export', '', 'a']]
)
def test_an_empty_path_is_not_the_current_folder(command, here, capsys):
  here('run')
  with pytest.raises(SystemExit) as stop:
    cli.main(command)
  assert stop.value.code == 2
  assert 'the value is empty' in capsys.readouterr().err
