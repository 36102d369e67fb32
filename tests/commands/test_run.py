"""`pecft run` on a work directory whose experiment file, or environment, was changed since."""

import json
import pathlib
import sys

import pytest
from run_fixtures import interrupt, shared_steps  # noqa: F401  Fixtures.

from pecft_jax import cli
from pecft_jax.files import write_json

FILE = """
from parts import TASKS
from tiny_runs import TRAINING, tiny_experiment

def experiment(*, epochs: int = 1):
  return tiny_experiment(tasks=TASKS, training=TRAINING._replace(epochs=epochs, batch_size=4))
"""


class Folder:
  """A file, what it imports from beside it, and the work directory of its run."""

  def __init__(self, path: pathlib.Path, capsys):
    self.file, self.parts, self.workdir = path / 'mine.py', path / 'parts.py', path / 'run'
    self.file.write_text(FILE)
    self.parts.write_text('TASKS = 2\n')
    self._capsys = capsys

  def run(self, *flags):
    """The exit status of a run, and what it printed on either stream."""
    status = cli.main(['run', str(self.file), '--workdir', str(self.workdir), *flags])
    return status, ' '.join(' '.join(self._capsys.readouterr()).split())

  def config(self):
    return json.loads((self.workdir / 'config.json').read_text())


@pytest.fixture
def stopped(tmp_path, monkeypatch, capsys, interrupt):  # noqa: F811
  """A run that was stopped after its first batch."""
  monkeypatch.setenv('COLUMNS', '400')
  monkeypatch.setattr(sys, 'path', [*sys.path])  # What a run adds goes again.
  monkeypatch.delitem(sys.modules, 'parts', raising=False)
  folder = Folder(tmp_path, capsys)
  interrupt(1)
  status, text = folder.run()
  assert status == 143
  assert 'The same command resumes' in text
  interrupt(None)
  return folder


def test_a_comment_in_the_file_is_refused_until_it_is_accepted(stopped):
  before = stopped.config()
  stopped.file.write_text(f'# A comment.\n{FILE}')
  status, text = stopped.run()
  assert status == 1
  assert 'mine.py was changed since (sha256 there' in text
  assert '--accept-changes if what was changed has no part in what is computed' in text
  assert stopped.config() == before

  status, text = stopped.run('--accept-changes')
  assert status == 0
  assert 'goes on although mine.py was changed since' in text
  (accepted,) = stopped.config()['accepted']
  there, here = before['files']['mine.py'], stopped.config()['files']['mine.py']
  assert accepted['files'] == {'mine.py': {'there': there, 'here': here}}
  assert accepted['date'] >= before['environment']['started']

  status, text = stopped.run()  # What was accepted is accepted for good.
  assert status == 0
  assert 'was changed' not in text


def test_a_file_beside_it_counts(stopped):
  stopped.parts.write_text('TASKS = 2  # Two.\n')
  status, text = stopped.run()
  assert status == 1
  assert 'parts.py was changed since' in text
  assert 'mine.py was' not in text


def test_another_value_is_refused_by_key_even_where_changes_are_accepted(stopped):
  before = stopped.config()
  stopped.file.write_text(FILE.replace('batch_size=4', 'batch_size=3'))
  assert stopped.run()[0] == 1
  status, text = stopped.run('--accept-changes')
  assert status == 1
  assert 'training.batch_size: there 4, here 3' in text
  assert stopped.config() == before


def test_a_resume_on_other_versions_says_so_once(stopped):
  config = stopped.config()
  jax = config['environment']['versions']['jax']
  config['environment']['versions']['jax'] = '0.0.1'
  write_json(stopped.workdir / 'config.json', config)
  status, text = stopped.run()
  assert status == 0
  assert f'{stopped.workdir}: resumed in another environment: jax 0.0.1 -> {jax}' in text
  (resumed,) = stopped.config()['resumed']
  assert resumed['versions']['jax'] == jax
  results = json.loads((stopped.workdir / 'results.json').read_text())
  assert results['environment']['resumed'] == [resumed]
  page = (stopped.workdir / 'report.html').read_text(encoding='utf-8')
  assert f'times do not compare: jax: 0.0.1 / {jax}.' in page
  assert 'another environment' not in stopped.run()[1]
