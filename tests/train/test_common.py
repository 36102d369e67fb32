"""What holds for runs of every method, of all wrappers around one, and of a chain of transforms.

Wrappers stand around each other, and the chain has a transform of each kind. All that is said of
one method stands together here, as it is compiled once for all of that.
"""

import functools
import json

import jax
import numpy as np
import pytest
from kinds import kind_of_peft, kinds_in_method, one_of_each
from safetensors.flax import load_file
from tinies import ALL_PEFTS, ALL_WRAPPERS, METHOD_NAMES, tiny_peft
from tiny_runs import TRAINING, outcome, silent, tiny_experiment, tiny_method

from pecft_jax.continual import finetune
from pecft_jax.continual.plan import has_phase, plan_of
from pecft_jax.learners import load_bundle, load_run, save_bundle, save_stablehlo
from pecft_jax.peft import PEFTS, chain
from pecft_jax.train import Experiment, Stopped, run, run_seeds, sgd
from pecft_jax.typing import ContinualMethod

TASKS, SEED = 2, 3
CACHED = 'l2p with cached queries'
CHAIN = 'a transform of each kind in one chain'
# Variants of a method are its own functions with other options.
LEARNERS = (*(name for name in METHOD_NAMES if ':' not in name), ALL_WRAPPERS)
METHODS = (*LEARNERS, CACHED)
# What is said of how runs and files treat a method is shown with one of each kind.
KINDS = (*one_of_each(LEARNERS[:-1], kinds_in_method), ALL_WRAPPERS)


@functools.cache
def experiment_of(case: str) -> Experiment:
  """A few updates a task, all of them in one epoch."""
  training = TRAINING._replace(epochs=1)
  if case == CHAIN:
    experiment = tiny_experiment('finetune[lora]', TASKS, training=training, seed=SEED)
    made = {name: tiny_peft(name) for name in one_of_each(PEFTS, kind_of_peft)}
    some = {name: peft for name, peft in made.items() if peft.calibrate is None}
    method = finetune(experiment.backbone, experiment.method.capacity, peft=chain(**some))
    return experiment.replace(method=method)
  if case == CACHED:
    case = 'l2p'
    training = training._replace(cache_queries=True, recipe=sgd(0.05, accumulate=2))
  return tiny_experiment(case, TASKS, training=training, seed=SEED)


@pytest.fixture(scope='module')
def case(request):
  """The name of what is run; module scope keeps the tests of one together."""
  return request.param


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """`whole(case)`: directory of a run that nothing disturbed, with all checkpoints."""

  @functools.cache
  def get(case):
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    run(experiment_of(case), workdir, silent(keep_tasks=True))
    return workdir

  return get


def phases_of(method: ContinualMethod) -> set[tuple[int, str]]:
  """Each phase of the method's plan, and the evaluation, in the last task that has it."""
  last = {}
  for step in plan_of(method):
    name = step if isinstance(step, str) else step.name
    tasks = [task for task in range(TASKS) if has_phase(method, step, task)]
    last |= {name: tasks[-1]} if tasks else {}
  return {(task, name) for name, task in {**last, 'evaluate': TASKS - 1}.items()}


def plan_steps(case: str) -> list[str]:
  """What the plan of a method consists of, by name and kind."""
  steps = plan_of(tiny_method(case))
  return [step if isinstance(step, str) else f'{step.name} {type(step).__name__}' for step in steps]


# Variants whose phases are others than their method's.
VARIANTS = [
  name
  for name in METHOD_NAMES
  if ':' in name and plan_steps(name) != plan_steps(name.partition(':')[0])
]


@pytest.mark.parametrize('case', (*METHODS, *VARIANTS, CHAIN, *ALL_PEFTS[1:]), indirect=True)
def test_a_run_that_stops_in_its_phases_ends_as_if_it_had_not(case, whole, stop_in, tmp_path):
  """In every phase; methods of a kind that was had before, in one of them, by turns."""
  experiment, expected = experiment_of(case), outcome(whole(case))
  phases = phases_of(experiment.method)
  if case in LEARNERS and case not in KINDS:
    phases = {sorted(phases)[LEARNERS.index(case) % len(phases)]}
  stops = len(phases)
  stop_in(phases)
  for _ in range(stops):
    with pytest.raises(Stopped):
      run(experiment, tmp_path, silent())
  run(experiment, tmp_path, silent())
  assert not phases
  assert outcome(tmp_path) == expected
  assert set(expected['results']['compilations'].values()) == {1}


@pytest.mark.parametrize('case', (*KINDS, CACHED), indirect=True)
def test_seeds_side_by_side_end_as_single_runs_do(case, whole, tmp_path):
  experiment, expected = experiment_of(case), outcome(whole(case))
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


def right(learner, split):
  """The share of a split that is answered right."""
  answers = learner.predict(split.inputs[split.rows], batch_size=5)
  return float((answers.argmax(-1) == split.labels).mean())


@pytest.mark.parametrize('case', KINDS, indirect=True)
def test_what_was_learned_predicts_alike_from_a_run_a_bundle_and_a_program(case, whole, tmp_path):
  experiment, directory = experiment_of(case), whole(case)
  learner = load_run(directory, model=experiment.model)
  inputs = experiment.scenario.tasks[0].test.inputs[:3]
  answers = learner.predict(inputs, batch_size=5)

  save_bundle(learner, tmp_path / 'bundle', weights=False)
  again = load_bundle(tmp_path / 'bundle', model=experiment.model)
  np.testing.assert_array_equal(again.predict(inputs, batch_size=5), answers)
  assert (again.classes, again.facts) == (learner.classes, learner.facts)
  save_bundle(again, tmp_path / 'copy', weights=False)
  states = [(tmp_path / place / 'state.safetensors').read_bytes() for place in ('bundle', 'copy')]
  assert states[0] == states[1]

  save_stablehlo(learner, tmp_path / 'program')
  program = jax.export.deserialize((tmp_path / 'program' / 'predict.stablehlo').read_bytes())
  arrays = load_file(tmp_path / 'program' / 'arrays.safetensors')
  # It is compiled apart, and may add up in another order.
  np.testing.assert_allclose(program.call(arrays, inputs), answers, rtol=1e-5, atol=1e-5)

  if not experiment.method.capacity.problem.classes:
    return
  matrix = json.loads((directory / 'results.json').read_text())['accuracy_matrix']
  for tasks, each in ((1, load_run(directory, 1, model=experiment.model)), (2, learner)):
    assert each.tasks == tasks
    assert each.classes == experiment.scenario.class_names[: 2 * tasks]
    shares = [right(each, task.test) for task in experiment.scenario.tasks[:tasks]]
    np.testing.assert_allclose(shares, matrix[tasks - 1][:tasks], rtol=1e-6)
  found = learner.features(inputs, batch_size=5)
  assert found.shape == (3, found.shape[1])
  assert np.isfinite(found).all()
  chances = learner.probabilities(inputs, batch_size=5)
  np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize('case', [name for name in LEARNERS if name not in KINDS], indirect=True)
def test_others_of_a_kind_answer_as_evaluated_and_become_programs(case, whole, tmp_path):
  experiment, directory = experiment_of(case), whole(case)
  learner = load_run(directory, model=experiment.model)
  save_stablehlo(learner, tmp_path / 'program')
  matrix = json.loads((directory / 'results.json').read_text())['accuracy_matrix']
  shares = [right(learner, task.test) for task in experiment.scenario.tasks]
  np.testing.assert_allclose(shares, matrix[-1], rtol=1e-6)
