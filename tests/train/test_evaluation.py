"""Runs that evaluate tasks to come, before the first task, and within tasks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import (
  TRAINING,
  outcome,
  silent,
  tiny_experiment,
  tiny_frozen,
  tiny_method,
)

from pecft_jax.train import Stopped, run, run_seeds
from pecft_jax.train.state import init_state
from pecft_jax.typing import Env

ALL = TRAINING._replace(evaluate='all', evaluate_every=2)


def _results(workdir):
  return json.loads((workdir / 'results.json').read_text())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The work directory of a run that was never interrupted."""
  workdir = tmp_path_factory.mktemp('all')
  run(tiny_experiment('finetune', training=ALL), workdir, silent())
  return workdir


def test_the_matrix_is_full_and_metrics_follow(whole):
  found = _results(whole)
  matrix = np.array(found['accuracy_matrix'], float)
  assert matrix.shape == (2, 2)
  assert np.isfinite(matrix).all()
  assert len(found['start_accuracy']) == 2
  metrics = found['metrics']
  assert metrics['fwt_gem'] == matrix[0, 1] - found['start_accuracy'][1]
  assert metrics['mtil_transfer'] == matrix[0, 1]
  rows = [(row['task'], row['step']) for row in found['anytime']]
  assert rows == [(0, 2), (0, 4), (0, 6), (1, 2), (1, 4), (1, 6)]
  averages = [np.mean(row['evaluated'][: row['task'] + 1]) for row in found['anytime']]
  averages += [matrix[0, 0], matrix[1].mean()]
  assert metrics['anytime_accuracy'] == pytest.approx(np.mean(averages))


def test_accuracies_by_class_add_up_to_those_by_task(whole):
  found = _results(whole)
  right = np.array(found['per_class_accuracy']) * found['class_test_sizes']
  by_task = np.array(found['accuracy_matrix'][-1]) * found['test_sizes']
  np.testing.assert_allclose(right.reshape(2, 2).sum(1), by_task)  # Two classes a task.
  assert sum(found['class_test_sizes']) == sum(found['test_sizes'])


def test_every_function_is_still_compiled_once(whole):
  assert set(_results(whole)['compilations'].values()) == {1}


def test_what_is_learnt_does_not_depend_on_it(whole, tmp_path):
  run(tiny_experiment('finetune', training=TRAINING), tmp_path, silent())
  plain, found = _results(tmp_path), _results(whole)
  assert plain['state_sha256'] == found['state_sha256']
  seen = np.tri(2, dtype=bool)
  a, b = (np.array(each['accuracy_matrix'], float) for each in (plain, found))
  np.testing.assert_array_equal(a[seen], b[seen])
  # Evaluations within tasks, before the first and of tasks to come are not counted by class.
  assert plain['per_class_accuracy'] == found['per_class_accuracy']
  assert np.isnan(a[~seen]).all()
  assert 'fwt_gem' not in plain['metrics']


@pytest.mark.parametrize('tick', [1, 4, 5, 9, 12, 14, 40])
def test_interruptions_do_not_show(tick, whole, interrupt, tmp_path):
  # Within the evaluation before the first task, within those in a task, and at its end.
  experiment = tiny_experiment('finetune', training=ALL)
  interrupt(tick)
  with pytest.raises(Stopped):
    run(experiment, tmp_path, silent())
  interrupt(None)
  run(experiment, tmp_path, silent())
  assert outcome(tmp_path) == outcome(whole)


def test_answers_on_a_task_to_come_are_among_its_own_classes_and_those_seen(tmp_path):
  # Nothing was seen at the start: with the own classes alone, a task of two is a coin toss.
  experiment = tiny_experiment('finetune', 3, training=ALL._replace(evaluate_every=None))
  run(experiment, tmp_path, silent())
  found = _results(tmp_path)
  aware = np.array(found['task_aware_accuracy_matrix'], float)
  assert np.isfinite(aware).all()
  assert (aware >= np.array(found['accuracy_matrix'], float)).all()
  assert min(found['start_accuracy']) > 0


@pytest.mark.parametrize('name', ['ease', 'ranpac', 'l2p', 'olora'])
def test_answers_of_untrained_methods_are_numbers(name):
  method, frozen = tiny_method(name), tiny_frozen()
  state = init_state(method, TRAINING.recipe, jax.random.key(0), frozen)
  task = state.task._replace(seen=jnp.array([True, True, False, False]))
  x = jnp.zeros((3, *method.backbone.inputs.shape), method.backbone.inputs.dtype)
  answers = method.predict(state.params, state.memory, Env(frozen, task, state.step), x)
  assert np.isfinite(np.asarray(answers)[:, :2]).all()


def test_seeds_side_by_side_look_ahead_as_one_by_one(tmp_path):
  training = ALL._replace(evaluate_every=None)
  experiment = tiny_experiment('finetune', training=training)
  together = run_seeds(experiment, [0, 1], tmp_path / 'both', silent())
  alone = run(experiment.replace(seed=1), tmp_path / 'one', silent())
  for name in ('accuracy_matrix', 'start_accuracy'):
    assert together[1][name] == alone[name]
