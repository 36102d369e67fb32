"""A checkpoint that could not be read need not be damaged."""

import errno
import os
import pathlib
import shutil

import pytest
from orbax.checkpoint import v1 as ocp
from tiny_runs import silent, tiny_experiment

from pecft_jax.train import run
from pecft_jax.workdir.inspection import inspect_run
from pecft_jax.workdir.stored import Damaged, Unread, read_contents, verify


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  run(tiny_experiment(), path, silent())
  return path


def _newest(workdir: pathlib.Path) -> pathlib.Path:
  return max((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))


def test_a_relative_path_reads_as_the_absolute_one(workdir, monkeypatch):
  there = read_contents(_newest(workdir))
  monkeypatch.chdir(workdir)
  (workdir / 'beside').mkdir(exist_ok=True)
  for start in ('checkpoints', 'beside/../checkpoints', './checkpoints'):
    path = pathlib.Path(start) / _newest(workdir).name
    assert read_contents(path).state_sha256 == there.state_sha256
    verify(path)


@pytest.mark.parametrize(
  'error',
  [
    PermissionError(errno.EACCES, 'Permission denied'),
    OSError(errno.EIO, 'Input/output error'),
    OSError(errno.EMFILE, 'Too many open files'),
    MemoryError(),
    ValueError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes'),
    ExceptionGroup('several', [ValueError('PERMISSION_DENIED: Error reading "d/1"')]),
  ],
)
def test_a_failure_around_it_is_not_called_damage(workdir, tmp_path, monkeypatch, error):
  def fail(*_, **__):
    raise error

  before = sorted(os.listdir(workdir / 'checkpoints'))
  monkeypatch.setattr(ocp, 'metadata', fail)
  with pytest.raises(Unread, match='could not be read'):
    read_contents(_newest(workdir))
  problems = inspect_run(workdir)['problems']
  assert problems
  assert all('could not be read' in problem for problem in problems)
  # A run that needs it stops, and moves none of its good checkpoints away.
  unfinished = shutil.copytree(workdir, tmp_path / 'run')
  (unfinished / 'results.json').unlink()
  with pytest.raises(Unread):
    run(tiny_experiment(), unfinished, silent())
  assert sorted(os.listdir(unfinished / 'checkpoints')) == before
  assert not (unfinished / 'damaged').exists()


def test_a_missing_part_is_damage(workdir, monkeypatch):
  def fail(*_, **__):
    raise FileNotFoundError(errno.ENOENT, 'No such file')

  monkeypatch.setattr(ocp, 'metadata', fail)
  with pytest.raises(Damaged, match='is damaged: FileNotFoundError'):
    read_contents(_newest(workdir))
