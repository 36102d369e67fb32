"""The real command in processes of its own, and what it ends with when nothing disturbs it."""

import fcntl
import os
import pathlib
import re
import subprocess
import sys

import pytest
from run_fixtures import shared_steps
from tiny_runs import outcome

from pecft_jax.cli import main

__all__ = ('shared_steps',)

HERE = pathlib.Path(__file__).parent
# Later than anything here lasts: checkpoints at the ends of tasks alone.
RARELY = ('--save-every', '1e9')
ALWAYS = ('--save-every', '0')


@pytest.fixture(scope='session')
def command(shared):
  """`command(method, workdir, *flags, fault='', through=(), **environment)`: a process.

  It runs `pecft run`, or what `through` makes of that command line. `fault` is
  a call of `hooks` that the experiment file makes before all else.
  """
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(shared / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]),
    'COLUMNS': '400',
  }

  def begin(method, workdir, *flags, fault='', through=(), **more):
    file = HERE / 'tiny.py'
    flags = '--workdir', workdir, '--method', method, *flags
    return subprocess.Popen(
      [*through, sys.executable, '-m', 'pecft_jax.cli', 'run', file, *flags],
      cwd=shared,
      env={**environment, 'PECFT_TEST_FAULT': fault, **more},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )

  return begin


@pytest.fixture(scope='session')
def finish(command):
  """`finish(method, workdir, *flags, fault='')`: exit status and output of the command."""

  def run(*args, **options):
    process = command(*args, **options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said

  return run


@pytest.fixture
def again(shared_steps, monkeypatch, capsys):
  """`again(method, workdir, *flags)`: exit status and output of the command, in this process.

  The same entry, without the start of a process: for runs that nothing disturbs any more. Runs
  that are killed are resumed in processes in test_kill.py.
  """
  monkeypatch.setenv('COLUMNS', '400')
  monkeypatch.delenv('PECFT_TEST_FAULT', raising=False)

  def run(method, workdir, *flags):
    capsys.readouterr()
    file = str(HERE / 'tiny.py')
    status = main(['run', file, '--workdir', str(workdir), '--method', method, *flags])
    return status, ''.join(capsys.readouterr())

  return run


@pytest.fixture
def whole(shared, again):
  """`whole(method, *flags)`: the outcome of a run that nothing disturbed."""

  def get(method, *flags):
    # Checkpoints refuse a path with brackets.
    workdir = shared / re.sub(r'[\[\]]', '_', '-'.join(['whole', method, *flags]))
    with open(f'{workdir}.lock', 'w') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)  # Another worker may be at it.
      if not (workdir / 'report.html').exists():
        status, said = again(method, workdir, *flags, *RARELY)
        assert status == 0, said
      return outcome(workdir)

  return get
