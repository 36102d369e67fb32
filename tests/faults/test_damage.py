"""The real command on damaged checkpoints: it goes back to a good one, or stops and says why."""

import fcntl
import os
import pathlib
import shutil

import pytest
from tiny_runs import outcome

from faults.conftest import ALWAYS
from pecft_jax.workdir.inspection import inspect_run

METHOD = 'ease'
# Reads of damaged files leave coroutines of orbax behind.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def _arrays(checkpoint: pathlib.Path) -> pathlib.Path:
  """The file that holds the arrays, which are too small here to be apart from their index."""
  return max((checkpoint / 'state' / 'd').iterdir(), key=lambda path: path.stat().st_size)


def _metadata(checkpoint: pathlib.Path) -> pathlib.Path:
  return checkpoint / '_CHECKPOINT_METADATA'


def _truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def _flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def _unfinished(checkpoint: pathlib.Path) -> None:
  """As a process leaves it that was killed before the last step, the renaming."""
  tick = int(checkpoint.name) + 1
  shutil.copytree(checkpoint, checkpoint.with_name(f'{tick}.orbax-checkpoint-tmp'))


@pytest.fixture(scope='session')
def stopped(shared, finish):
  """A run that was killed in its second task."""
  workdir = shared / 'stopped'
  with open(f'{workdir}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Another worker may be at it.
    if not workdir.exists():
      finish(METHOD, workdir, *ALWAYS, fault=r"die(r'checkpoints/20\.orbax', 1)")
  return workdir


DAMAGES = {
  'a truncated file of arrays': lambda at: _truncate(_arrays(at)),
  'a missing file of arrays': lambda at: _arrays(at).unlink(),
  'a flipped bit of an array': lambda at: _flip(_arrays(at)),
  'a flipped bit of metadata': lambda at: _flip(_metadata(at)),
  'missing metadata': lambda at: _metadata(at).unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize('damage', DAMAGES)
def test_it_goes_back_to_the_checkpoint_before(damage, stopped, again, whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  DAMAGES[damage](workdir / 'checkpoints' / '19')
  bad = inspect_run(workdir, arrays=True)
  assert [each['problem'] is None for each in bad['checkpoints']] == [True, False]
  status, said = again(METHOD, workdir, *ALWAYS)
  assert status == 0, said
  assert 'checkpoint 19 ' in said
  assert 'going back to checkpoint 18' in said
  assert outcome(workdir) == whole(METHOD)
  assert list(inspect_run(workdir)['damaged']) == ['19']


@pytest.mark.slow
def test_an_unfinished_write_is_not_taken_for_a_checkpoint(stopped, again, whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  _unfinished(workdir / 'checkpoints' / '19')
  assert list(inspect_run(workdir)['unfinished']) == ['20.orbax-checkpoint-tmp']
  status, said = again(METHOD, workdir, *ALWAYS)
  assert status == 0, said
  assert 'going back' not in said
  assert outcome(workdir) == whole(METHOD)


@pytest.mark.slow
def test_where_all_are_damaged_it_stops_and_destroys_nothing(stopped, again, whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  for checkpoint in (workdir / 'checkpoints').iterdir():
    if checkpoint.name.isdigit():
      _truncate(_arrays(checkpoint))
  log = (workdir / 'metrics.jsonl').read_text()
  status, said = again(METHOD, workdir, *ALWAYS)
  assert status == 1, said
  assert f'no checkpoint in {workdir / "checkpoints"} is good: checkpoint 19 ' in said
  assert 'bring a good one back from a copy, or choose another --workdir' in said
  assert [each['tick'] for each in inspect_run(workdir)['checkpoints']] == [18, 19]
  assert (workdir / 'metrics.jsonl').read_text() == log
  # A run without its checkpoints is not begun again in silence.
  (workdir / 'checkpoints').rename(workdir / 'evidence')
  status, said = again(METHOD, workdir, *ALWAYS)
  assert status == 1 and 'are gone' in said, said
