"""Several processes compute what one does, end together, and resume in any number."""

import functools
import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest
from tiny_runs import outcome, tiny_experiment

from distributed.jobs import PATIENCE, TESTS, finish, run_job, start
from pecft_jax.cli import main
from pecft_jax.paths import named_leaves
from pecft_jax.train import compile_steps, one_device
from pecft_jax.workdir.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

LONG = ('--method', 'derpp(finetune)', '--epochs', '40')
# Every loss depends on which examples were seen, so equal ones tell that they were the same.
TOLERANCE = 1e-5  # Sums over devices come in another order.


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def here():
  """`here(workdir, *flags)`: runs the command that jobs run, in this process, with one device."""

  def go(workdir: pathlib.Path, *flags: str) -> None:
    assert main(['run', str(TESTS / 'tiny_file.py'), '--workdir', str(workdir), *flags]) == 0

  names = 'jax_persistent_cache_min_compile_time_secs', 'jax_persistent_cache_min_entry_size_bytes'
  before = {name: jax.config.values[name] for name in names}
  yield go
  for name, value in before.items():  # That file sets them.
    jax.config.update(name, value)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, here):
  """`alone(method, *flags)`: work directory of the run of one process with one device."""

  @functools.cache
  def get(method: str, *flags: str) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp('alone')
    here(workdir, '--method', method, *flags)
    return workdir

  return get


def _final_state(workdir: pathlib.Path, method: str):
  experiment = tiny_experiment(method)
  steps = compile_steps(
    experiment.method, experiment.training.recipe, one_device(), experiment.frozen
  )
  like = jax.eval_shape(steps.init, jax.random.key(0), experiment.frozen)
  checkpoints = Checkpoints(workdir / 'checkpoints')
  state, _ = checkpoints.load(checkpoints.ticks()[-1], like, steps.state_shardings)
  return dict(named_leaves(state))


def _assert_equal_runs(a: pathlib.Path, b: pathlib.Path, method: str) -> None:
  one, other = outcome(a), outcome(b)
  assert one['results']['accuracy_matrix'] == other['results']['accuracy_matrix']
  assert len(one['rows']) == len(other['rows'])
  for x, y in zip(one['rows'], other['rows'], strict=True):
    assert x.pop('loss', 0) == pytest.approx(y.pop('loss', 0), rel=TOLERANCE)
    assert x == y
  states = _final_state(a, method), _final_state(b, method)
  for name, x in states[0].items():
    y = np.asarray(states[1][name], np.float64)
    scale = max(1.0, np.abs(y).max(initial=0))
    solved = 100 if name == 'memory/weights' else 1  # Of a badly conditioned system.
    np.testing.assert_allclose(
      np.asarray(x, np.float64), y, rtol=0, atol=solved * TOLERANCE * scale, err_msg=name
    )


@pytest.mark.parametrize(
  ('method', 'flags', 'slurm'),
  [
    ('aligned(derpp(icarl))', (), False),  # A buffer, and phases of its own.
    ('l2p', ('--cache-queries',), False),
    ('ranpac', (), True),  # Slurm tells its processes of each other.
  ],
)
def test_processes_agree_with_one(method, flags, slurm, alone, cache, tmp_path):
  run_job(2, tmp_path, '--method', method, *flags, cache=cache, slurm=slurm)
  _assert_equal_runs(tmp_path, alone(method, *flags), method)


@pytest.mark.parametrize(
  'flags',
  [
    ('--mesh', 'data=1,model=4'),
    ('--seeds', '2', '--mesh', 'seed=2,data=2', '--fsdp'),
  ],
)
def test_meshes_go_over_processes(flags, alone, cache, tmp_path):
  """Two processes with two devices each; on the first mesh both need all of each batch."""
  run_job(2, tmp_path, '--method', 'ease', *flags, cache=cache, devices=2)
  one = outcome(alone('ease'))
  other = outcome(tmp_path / 'seed_0' if '--seeds' in flags else tmp_path)
  assert one['results']['accuracy_matrix'] == other['results']['accuracy_matrix']
  losses = [[row['loss'] for row in each['rows'] if 'loss' in row] for each in (one, other)]
  np.testing.assert_allclose(*losses, rtol=TOLERANCE)


def _wait(job: Sequence[subprocess.Popen[str]], there: Callable[[], bool]) -> None:
  """Waits for what a job does; one that ends or takes too long before is killed."""
  until = time.monotonic() + PATIENCE
  while not there():
    if time.monotonic() > until or any(process.poll() is not None for process in job):
      raise AssertionError(finish(job, 9))
    time.sleep(0.05)


def _ticks(workdir: pathlib.Path) -> list[int]:
  return [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdigit()]


def _log(workdir: pathlib.Path) -> str:
  log = workdir / 'metrics.jsonl'
  return log.read_text() if log.exists() else ''


def _kill_one(victim: int, workdir: pathlib.Path, cache: pathlib.Path) -> None:
  """Begins or resumes a job, and kills one of its two processes, which ends the other."""
  before = max(_ticks(workdir), default=0)
  job = start(2, workdir, *LONG, '--save-every', '0', cache=cache)
  _wait(job, lambda: max(_ticks(workdir), default=0) > before + 3)
  job[victim].kill()
  killed = time.monotonic()
  printed = finish(job, 60)
  assert time.monotonic() - killed < 60
  other = 1 - victim
  assert job[other].returncode not in (0, None)
  assert 'start every process again' in printed[other] or 'JAX distributed' in printed[other]
  assert before < max(_ticks(workdir)) < 240


def test_one_killed_or_asked_to_stop_ends_all_and_any_number_goes_on(alone, cache, tmp_path):
  """One run: the first of two is killed, then the second, then four are asked to stop."""
  workdir = tmp_path / 'run'
  for victim in (0, 1):
    _kill_one(victim, workdir, cache)
  before = max(_ticks(workdir))
  job = start(4, workdir, *LONG, '--save-every', '0.2', cache=cache)
  _wait(job, lambda: max(_ticks(workdir)) > before)
  job[1].send_signal(signal.SIGTERM)
  printed = finish(job)
  assert [process.returncode for process in job] == [143] * 4, printed
  assert 'same command resumes' in ' '.join(printed[0].split())  # Wherever lines end.
  assert json.loads((workdir / 'results.json').read_text())['status'] == 'running'
  run_job(1, workdir, *LONG, cache=cache)
  _assert_equal_runs(workdir, alone('derpp(finetune)', *LONG[2:]), 'derpp(finetune)')


def test_an_error_in_the_first_process_is_told_by_all(here, cache, tmp_path):
  here(tmp_path)
  job = start(2, tmp_path, '--epochs', '3', cache=cache)
  printed = finish(job, 60)
  for process, text in zip(job, printed, strict=True):
    assert process.returncode == 1
    assert 'another configuration' in text and 'epochs: there 2, here 3' in text


def test_one_that_hangs_ends_all(cache, tmp_path):
  """Its connections stay open, but no heartbeat comes."""
  job = start(2, tmp_path, '--epochs', '4000', cache=cache)
  _wait(job, lambda: bool(_log(tmp_path)))
  job[1].send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  printed = job[0].communicate(timeout=60)[0]
  assert time.monotonic() - stopped < 60
  assert job[0].returncode not in (0, None)
  assert 'another task died' in printed or 'start every process again' in printed
  job[1].kill()
  job[1].communicate()
