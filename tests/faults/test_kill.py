"""The real command, killed in each phase and while it writes a checkpoint, ends as if it never was.

By default three methods, which have every kind of phase between them, are killed once in each of
their places, but for phases of a kind that a method before them has. With `--kills 200`, every
registered method is, all wrappers around one, and transforms with a phase of their own: once in
each place, and at least 200 times each. A new run begins whenever one comes to its end. That all of
them resume in each of their phases is shown without processes, in tests/train/test_common.py.
"""

import collections
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from kinds import kind_of_step
from tinies import ALL_PEFTS, ALL_WRAPPERS, METHOD_NAMES, WRAPPED_NAMES
from tiny_runs import outcome, tiny_method

from faults.conftest import ALWAYS
from pecft_jax.continual.plan import Step, has_phase, plan_of
from pecft_jax.workdir.inspection import inspect_run

FEW = ('aligned(sema)', 'derpp(icarl)', 'finetune[rosa]')
# At most so many kills that miss the place they were meant for.
_MISSES = 20
# Uses of files by Python in one checkpoint, the last but one its renaming; see `hooks.die`.
_USES = 16


def pytest_generate_tests(metafunc):
  """A few methods, or all where the number of kills is given."""
  if 'method' in metafunc.fixturenames:
    every = metafunc.config.getoption('--kills') is not None
    metafunc.parametrize('method', (*METHOD_NAMES, ALL_WRAPPERS, *ALL_PEFTS) if every else FEW)


def _phases(method: str) -> list[Step]:
  """The phases that a method, by name, has in some task, without a task's begin and end."""
  found = tiny_method(method)
  return [
    step
    for step in plan_of(found)
    if step not in ('begin', 'end') and any(has_phase(found, step, task) for task in range(2))
  ]


def places_of(method: str) -> tuple[str, ...]:
  """Where a method is killed, in the order of a run.

  `start` is before there is anything to be saved, `write` in the middle of writing a checkpoint.
  """
  names = [step if isinstance(step, str) else step.name for step in _phases(method)]
  return 'start', 'write', *names, 'evaluate'


def _first_places_of(method: str) -> tuple[str, ...]:
  """The places of one of a few methods but for phases of a kind that was had before."""
  before = FEW[: FEW.index(method)]
  had = {kind_of_step(step) for name in before for step in _phases(name)}
  firsts = {
    kind_of_step(step): step for step in reversed(_phases(method)) if kind_of_step(step) not in had
  }
  steps = [step for step in _phases(method) if step in firsts.values()]
  names = tuple(step if isinstance(step, str) else step.name for step in steps)
  return names if before else ('start', 'write', *names, 'evaluate')


def test_methods_killed_by_default_have_every_kind_of_phase():
  kinds = lambda names: {kind_of_step(step) for name in names for step in _phases(name)}
  assert kinds((*METHOD_NAMES, *WRAPPED_NAMES, *ALL_PEFTS)) <= kinds(FEW)
  assert [_first_places_of(name) for name in FEW[1:]] == [
    ('fetch',), ('calibrate delta', 'calibrated delta'),
  ]  # fmt: skip


def newest(workdir: pathlib.Path) -> dict:
  """The position of the newest checkpoint; where there is none, that of no tick."""
  try:
    names = [name for name in os.listdir(workdir / 'checkpoints') if name.isdigit()]
    path = workdir / 'checkpoints' / max(names, key=int) / '_CHECKPOINT_METADATA'
    return json.loads(path.read_text())['custom_metadata']['position']
  except (FileNotFoundError, ValueError):  # None yet, or just removed for a newer one.
    return {'tick': 0, 'phase': 'start'}


def _kill(command, method: str, workdir: pathlib.Path, place: str, ticks: int, rng) -> bool:
  """Starts the command and kills it in a place, some ticks on; False where it ended before."""
  until, fault = newest(workdir)['tick'] + ticks, ''
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
      time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.01 * ticks))  # A batch with its checkpoint takes about 0.03 s.
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
def test_killed_commands_end_alike(method, command, again, whole, kills, tmp_path):
  rng = np.random.default_rng(len(method))
  expected, places = whole(method), _first_places_of(method) if kills is None else places_of(method)
  least, hits, runs = kills or 0, collections.Counter(), 0
  missing = list(places)
  done, workdir = 0, tmp_path / '0'
  while done < least or missing:
    place, ticks = (missing[0], 1) if missing else (rng.choice(places), rng.integers(1, 5))
    if _kill(command, method, workdir, place, ticks, rng):
      hit = _hits(workdir) | ({'start'} if place == 'start' else set())
      hits.update(hit)
      missing = [each for each in missing if each not in hit]
      done += 1
      assert done < least + len(places) + _MISSES, f'never killed in {missing}'
    else:
      assert outcome(workdir) == expected
      runs += 1
      workdir = tmp_path / str(runs)
  status, said = again(method, workdir, *ALWAYS)
  assert status == 0, said
  assert outcome(workdir) == expected
  assert all(name.isdigit() for name in os.listdir(workdir / 'checkpoints'))
  assert not (workdir / 'damaged').exists()
  print(f'{method}: {done} kills in {runs + 1} runs, by place: {dict(hits)}')
