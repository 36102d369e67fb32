"""What holds for runs of every method, of all wrappers around one, and of all transforms in one.

Of what is registered nothing is left out: wrappers stand around each other, transforms in a chain.
"""

import functools

import pytest
from tinies import ALL_PEFTS, ALL_WRAPPERS, METHOD_NAMES
from tiny_runs import TRAINING, outcome, silent, tiny_experiment

from pecft_jax.continual.plan import has_phase, plan_of
from pecft_jax.train import Experiment, Stopped, run, run_seeds, sgd
from pecft_jax.typing import ContinualMethod

TASKS, SEED = 2, 3
CACHED = 'l2p with cached queries'
METHODS = (*METHOD_NAMES, ALL_WRAPPERS, CACHED)


@functools.cache
def experiment_of(case: str) -> Experiment:
  """A few updates a task, all of them in one epoch."""
  training = TRAINING._replace(epochs=1)
  if case == CACHED:
    case = 'l2p'
    training = training._replace(cache_queries=True, recipe=sgd(0.05, accumulate=2))
  return tiny_experiment(case, TASKS, training=training, seed=SEED)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """`whole(case)`: the outcome of a run that nothing disturbed."""

  @functools.cache
  def get(case):
    workdir = tmp_path_factory.mktemp('whole')
    run(experiment_of(case), workdir, silent())
    return outcome(workdir)

  return get


def phases_of(method: ContinualMethod) -> set[tuple[int, str]]:
  """Each phase of the method's plan, and the evaluation, in the last task that has it."""
  last = {}
  for step in plan_of(method):
    name = step if isinstance(step, str) else step.name
    tasks = [task for task in range(TASKS) if has_phase(method, step, task)]
    last |= {name: tasks[-1]} if tasks else {}
  return {(task, name) for name, task in {**last, 'evaluate': TASKS - 1}.items()}


@pytest.mark.parametrize('case', (*METHODS, *ALL_PEFTS))
def test_a_run_that_stops_in_every_phase_ends_as_if_it_had_not(case, whole, stop_in, tmp_path):
  experiment, expected = experiment_of(case), whole(case)
  phases = phases_of(experiment.method)
  stops = len(phases)
  stop_in(phases)
  for _ in range(stops):
    with pytest.raises(Stopped):
      run(experiment, tmp_path, silent())
  run(experiment, tmp_path, silent())
  assert not phases
  assert outcome(tmp_path) == expected
  assert set(expected['results']['compilations'].values()) == {1}


@pytest.mark.parametrize('case', METHODS)
def test_seeds_side_by_side_end_as_single_runs_do(case, whole, tmp_path):
  experiment, expected = experiment_of(case), whole(case)
  other, same = run_seeds(experiment, (SEED + 1, SEED), tmp_path, silent())
  assert other['state_sha256'] != same['state_sha256'] or not experiment.method.trains(0)
  rows = outcome(tmp_path / f'seed_{SEED}')['rows']
  for row, want in zip(rows, expected['rows'], strict=True):
    loss = want.get('loss', 0)
    assert row.pop('loss', 0) == pytest.approx(loss, rel=1e-5)
    assert row == {key: value for key, value in want.items() if key != 'loss'}
  matrices = [key for key in same if key.endswith('_matrix')]
  assert matrices
  for key in (*matrices, 'metrics', 'seed', 'identity', 'status'):
    assert same[key] == expected['results'][key], key
  assert set(same['compilations'].values()) == {1}
