"""Runs that are killed at random moments end like runs that never stopped.

Each run is killed a few times by default; `pytest tests/faults --kills 200`
kills each 200 times, beginning a new run whenever one comes to its end.
Runs save after every batch, so many kills hit a checkpoint being written.
"""

import multiprocessing
import os
import pathlib
import time

import numpy as np
import pytest
from tiny_runs import outcome

from faults import kill_run

KILLS = 4


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """`start(method, workdir)`: a process that starts or resumes a run."""
  # A process each, but forked from one that has imported the library. (Of modules outside
  # the search path of a new interpreter, as those of the tests are, it would not find any.)
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['pecft_jax.train', 'pecft_jax.continual', 'pecft_jax.backbones'])
  cache = tmp_path_factory.mktemp('compiled')

  def begin(method: str, workdir: pathlib.Path) -> multiprocessing.Process:
    process = context.Process(target=kill_run.main, args=(method, str(workdir), str(cache)))
    process.start()
    return process

  return begin


def _newest(workdir: pathlib.Path) -> int:
  try:
    names = os.listdir(workdir / 'checkpoints')
  except FileNotFoundError:
    return 0
  return max((int(name) for name in names if name.isdigit()), default=0)


def _torn(workdir: pathlib.Path) -> bool:
  """Whether something lies there that is no complete checkpoint."""
  return any(not path.name.isdigit() for path in (workdir / 'checkpoints').glob('*'))


def _kill_somewhere(process, workdir: pathlib.Path, rng: np.random.Generator) -> bool:
  """Kills a process after it has come some way; False if it ended before."""
  until = _newest(workdir) + rng.integers(0, 8)
  while process.is_alive() and _newest(workdir) < until:
    time.sleep(0.001)
  # A batch with its checkpoint takes about as long; starting up takes longer.
  process.join(rng.uniform(0, 0.1 if until else 3))
  process.kill()
  process.join()
  return process.exitcode < 0


@pytest.mark.slow
@pytest.mark.parametrize('method', kill_run.METHODS)
def test_killed_runs_end_alike(method, start, kills, tmp_path):
  rng = np.random.default_rng(len(method))
  whole = start(method, tmp_path / 'whole')
  whole.join()
  assert whole.exitcode == 0
  expected = outcome(tmp_path / 'whole')
  left = KILLS if kills is None else kills
  torn = 0
  for attempt in range(10_000):
    workdir = tmp_path / str(attempt)
    while left and _kill_somewhere(process := start(method, workdir), workdir, rng):
      left -= 1
      torn += _torn(workdir)
    if left:  # It came to its end; its exit code says how.
      assert process.exitcode == 0
    else:
      process = start(method, workdir)
      process.join()
      assert process.exitcode == 0
    assert outcome(workdir) == expected
    assert all(name.isdigit() for name in os.listdir(workdir / 'checkpoints'))
    assert not (workdir / 'damaged').exists()
    if not left:
      break
  print(f'{torn} kills hit a checkpoint being written or deleted')
  if kills is not None and kills >= 50:
    assert torn
