"""results.json, from a position."""

import dataclasses
import json

import jax
import pytest
from tiny_runs import TRAINING, tiny_experiment, tiny_frozen, tiny_method

from pecft_jax.files import plain
from pecft_jax.paths import tree_size
from pecft_jax.problems import regression
from pecft_jax.train.results import metrics, peak_memory, results
from pecft_jax.train.state import init_state
from pecft_jax.workdir.position import Findings, Position

FOUND = Findings(
  accuracy=[[0.5, None], [0.25, 0.75]],
  aware=[[0.5, None], [0.5, 1.0]],
)
POSITION = Position(
  task=1,
  seeds=[FOUND],
  seconds=[1.0, 2.0, 0.5],
  images=300,
  training_seconds=2.0,
  compilations={'train': 1},
)


def _results(position=POSITION, digest='abc', **fields):
  experiment = tiny_experiment('ease', **fields)
  method = tiny_method('ease')
  state = jax.eval_shape(
    lambda: init_state(method, TRAINING.recipe, jax.random.key(0), tiny_frozen())
  )
  return state, results(experiment, method, state, position, digest=digest)


def test_a_finished_run():
  state, found = _results()
  assert found['status'] == 'done'
  assert found['accuracy_matrix'] == FOUND.accuracy
  assert found['metrics']['average_accuracy'] == 0.5
  assert found['metrics']['forgetting'] == 0.25
  assert found['efficiency']['trainable_parameters'] == tree_size(state.params)
  assert found['efficiency']['forward_passes_per_prediction'] == 2
  assert found['efficiency']['seconds_per_task'] == [1.0, 2.0]
  assert found['efficiency']['train_images_per_second'] == 150
  assert found['compilations'] == {'train': 1}
  assert json.dumps(plain(found), allow_nan=False)


def test_a_run_that_has_just_begun():
  _, found = _results(Position(), None)
  assert found['status'] == 'running'
  assert found['metrics'] == {}
  assert found['accuracy_matrix'] == []
  assert found['efficiency']['train_images_per_second'] is None


def test_known_tasks_are_judged_with_the_task_known():
  scenario = tiny_experiment().scenario._replace(kind='task')
  _, found = _results(scenario=scenario)
  assert found['accuracy_matrix'] == FOUND.aware
  assert found['metrics']['average_accuracy'] == 0.75


@pytest.mark.parametrize(('kind', 'row'), [('class', 0), ('task', 1)])
def test_accuracies_by_class_are_from_the_tasks_seen(kind, row):
  # Two classes a task, three test examples of each.
  hits = [[3, 0, 1, 0], [3, 3, 2, 0]]
  scenario = tiny_experiment().scenario._replace(kind=kind)
  once = dataclasses.replace(FOUND, accuracy=FOUND.accuracy[:1], by_class=hits)
  position = dataclasses.replace(POSITION, seeds=[once])
  _, found = _results(position, scenario=scenario)
  assert found['class_test_sizes'] == [3, 3, 0, 0]
  assert found['per_class_accuracy'] == [hits[row][0] / 3, hits[row][1] / 3, None, None]


def test_without_counts_by_class_there_are_none():
  _, found = _results()
  assert found['per_class_accuracy'] is None and found['class_test_sizes'] is None


def test_labels_and_identity_are_passed_on():
  _, found = _results(labels={'peft': 'lora'}, identity={'backbone_sha256': 'f00'})
  assert found['peft'] == 'lora'
  assert found['identity']['backbone_sha256'] == 'f00'


def test_joint_training_gives_intransigence():
  _, results = _results()
  found = metrics(results, [0.6, 0.8])
  assert found['intransigence'] == pytest.approx((0.1 + 0.05) / 2)
  assert 'intransigence' not in metrics(results)
  assert 'intransigence' not in metrics(results, [0.6])  # It has not come so far.


def test_training_on_each_task_alone_gives_forward_transfer():
  _, results = _results()
  learnt = results['accuracy_matrix'][1][1]
  assert metrics(results, None, [0.1, 0.6])['fwt'] == pytest.approx(learnt - 0.6)
  assert 'fwt' not in metrics(results) and 'fwt' not in metrics(results, None, [0.6])


def test_a_run_that_looks_ahead_has_zero_shot_metrics():
  found = Findings(
    accuracy=[[0.5, 0.25], [0.25, 0.75]],
    aware=[[0.5, 0.5], [0.5, 1.0]],
    start=[0.25, 0.125],
    anytime=[{'task': 1, 'step': 4, 'evaluated': [0.5, 0.25], 'aware': [1.0, 0.5]}],
  )
  _, results = _results(dataclasses.replace(POSITION, seeds=[found]))
  assert results['start_accuracy'] == [0.25, 0.125]
  assert results['anytime'] == found.anytime
  assert results['metrics']['fwt_gem'] == 0.125
  assert results['metrics']['mtil_transfer'] == 0.25
  assert results['metrics']['mtil_average'] == (0.5 + 0.25 + 0.25 + 0.75) / 4
  assert results['metrics']['anytime_accuracy'] == pytest.approx((0.5 + 0.375 + 0.5) / 3)
  assert json.dumps(plain(results), allow_nan=False)


def test_another_measure_keeps_its_name():
  errors = Findings(accuracy=[[0.5, None], [2.0, 0.25]], aware=[[0.5, None], [2.0, 0.25]])
  experiment, method = tiny_experiment('ease'), tiny_method('ease')
  capacity = method.capacity._replace(problem=regression(1))
  state = jax.eval_shape(
    lambda: init_state(method, TRAINING.recipe, jax.random.key(0), tiny_frozen())
  )
  position = dataclasses.replace(POSITION, seeds=[errors])
  method = method._replace(capacity=capacity)
  found = results(experiment, method, state, position, digest='abc')
  assert found['mean_squared_error_matrix'] == errors.accuracy
  assert found['metrics']['average_mean_squared_error'] == 1.125
  assert found['metrics']['forgetting'] == 1.5  # An error that grew.
  assert found.pop('per_class_accuracy') is None
  assert not any('accuracy' in name for name in [*found, *found['metrics']])


def test_peak_memory_is_in_bytes():
  assert 2**26 < peak_memory() < 2**40
