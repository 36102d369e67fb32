"""The real command, asked to stop."""

import json
import signal
import time

import pytest
from tiny_runs import outcome

from faults.conftest import RARELY
from pecft_jax.workdir.inspection import inspect_run

# Long enough for a signal to arrive within a phase, without checkpoints but at the ends of tasks.
EPOCHS = ('--epochs', '100')
METHOD = 'derpp(olora)'


def _rows(workdir) -> int:
  path = workdir / 'metrics.jsonl'
  return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_signal_saves_and_stops(command, again, whole, tmp_path):
  """SIGTERM; that SIGINT is the same is shown without processes, in tests/train/test_running.py."""
  expected = whole(METHOD, *EPOCHS)
  workdir = tmp_path / 'run'
  process = command(METHOD, workdir, *EPOCHS, *RARELY)
  while process.poll() is None and _rows(workdir) < 5:
    time.sleep(0.01)
  running = inspect_run(workdir)
  process.send_signal(signal.SIGTERM)
  asked = time.monotonic()
  said, _ = process.communicate(timeout=60)
  # A batch and a checkpoint of some kilobytes; clusters grant 30 s.
  assert time.monotonic() - asked < 15
  assert process.returncode == 143, said
  assert f'saved in {workdir}. The same command resumes.' in ' '.join(said.split())
  assert (running['status'], running['process']) == ('running', process.pid)
  stopped = inspect_run(workdir, arrays=True)
  assert (stopped['status'], stopped['process']) == ('stopped', None)
  assert not stopped['problems']
  assert not stopped['unfinished']
  # It was stopped in the middle of the first task, which had no checkpoint before.
  (checkpoint,) = stopped['checkpoints']
  assert (checkpoint['task'], checkpoint['phase']) == (0, 'train')
  assert checkpoint['rows'] == stopped['log']['rows'] >= 5
  status, said = again(METHOD, workdir, *EPOCHS, *RARELY)
  assert status == 0, said
  assert outcome(workdir) == expected


@pytest.mark.slow
def test_a_second_signal_does_not_wait(command, again, whole, tmp_path):
  workdir = tmp_path / 'run'
  process = command(METHOD, workdir, *EPOCHS, *RARELY)
  while process.poll() is None and _rows(workdir) < 5:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGTERM, 143)  # It may just have been done.
  status, said = again(METHOD, workdir, *EPOCHS, *RARELY)
  assert status == 0, said
  assert json.loads((workdir / 'results.json').read_text())['status'] == 'done'
  assert outcome(workdir) == whole(METHOD, *EPOCHS)
