"""The real command, killed in each phase and while it writes a checkpoint, ends as if it never was.

Each run is killed 5 times by default, 20 times in all; with `--kills 200`, each
200 times, and a new run begins whenever one comes to its end. That every registered method resumes
in each of its phases is shown without processes, in tests/train/test_common.py.
"""

import collections
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from tiny_runs import outcome

from faults.conftest import ALWAYS
from pecft_jax.workdir.inspection import inspect_run

# Where each method is killed: in each place once, then in any. `write` is in the middle of
# writing a checkpoint; `start` before there is anything to be saved.
PLACES = {
  'derpp(olora)': ('evaluate', 'write', 'train', 'start'),
  'ease': ('consolidate', 'write', 'train', 'evaluate', 'start'),
  'l2p': ('train', 'write', 'evaluate', 'start'),
  'ranpac': ('consolidate', 'write', 'train', 'evaluate', 'start'),
}
KILLS = 5
# Uses of files by Python in one checkpoint, the last but one its renaming; see `hooks.die`.
_USES = 16


def newest(workdir: pathlib.Path) -> dict:
  """The position of the newest checkpoint; where there is none, that of no tick."""
  try:
    names = [name for name in os.listdir(workdir / 'checkpoints') if name.isdigit()]
    path = workdir / 'checkpoints' / max(names, key=int) / '_CHECKPOINT_METADATA'
    return json.loads(path.read_text())['custom_metadata']['position']
  except (FileNotFoundError, ValueError):  # None yet, or just removed for a newer one.
    return {'tick': 0, 'phase': 'start'}


def _kill(command, method: str, workdir: pathlib.Path, place: str, rng) -> bool:
  """Starts the command and kills it at some moment of that place; False where it ended before."""
  before, fault = newest(workdir)['tick'], ''
  until = before + rng.integers(1, 5)
  if place == 'write':
    name = rf'checkpoints/{until}\\.orbax-checkpoint-tmp'
    fault = f"die('{name}', {rng.integers(1, _USES)})"
  process = command(method, workdir, *ALWAYS, fault=fault)
  if place == 'start':
    time.sleep(rng.uniform(0, 2.5))
  elif place != 'write':
    while process.poll() is None:
      at = newest(workdir)
      if at['tick'] >= until and at['phase'] == place:
        break
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.03))  # About as long as a batch with its checkpoint takes.
  if place != 'write':
    process.kill()
  said, _ = process.communicate()
  assert process.returncode in (0, -signal.SIGKILL), said
  return process.returncode != 0


def _hits(workdir: pathlib.Path) -> set[str]:
  """Where a killed run was: the phase of its newest checkpoint, and whether it was writing one."""
  if not workdir.exists():
    return {'start'}
  found = inspect_run(workdir, arrays=True)
  # `done` while the page was being written, `unknown` before there were results.
  assert found['status'] in ('stopped', 'done', 'unknown')
  assert not [each for each in found['checkpoints'] if each['problem']]
  return {newest(workdir)['phase'], *(['write'] if found['unfinished'] else [])}


@pytest.mark.slow
@pytest.mark.parametrize('method', PLACES)
def test_killed_commands_end_alike(method, command, finish, whole, kills, tmp_path):
  rng = np.random.default_rng(len(method))
  expected = whole(method)
  left, hits, runs = KILLS if kills is None else kills, collections.Counter(), 0
  wanted = set(PLACES[method][:left])
  done, workdir = 0, tmp_path / '0'
  while done < left or wanted:
    place = next((each for each in PLACES[method] if each in wanted), None)
    if _kill(command, method, workdir, place or rng.choice(PLACES[method]), rng):
      hit = _hits(workdir) | ({'start'} if place == 'start' else set())
      hits.update(hit)
      wanted -= hit
      done += 1
    else:
      assert outcome(workdir) == expected
      runs += 1
      workdir = tmp_path / str(runs)
  status, said = finish(method, workdir, *ALWAYS)
  assert status == 0, said
  assert outcome(workdir) == expected
  assert all(name.isdigit() for name in os.listdir(workdir / 'checkpoints'))
  assert not (workdir / 'damaged').exists()
  print(f'{method}: {done} kills in {runs + 1} runs, by place: {dict(hits)}')
