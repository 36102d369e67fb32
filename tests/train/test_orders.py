"""Orders side by side find what they find one by one."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from tiny_runs import TRAINING, outcome, silent, tiny_experiment, tiny_scenario

from pecft_jax import cli, data
from pecft_jax.learners import load_run
from pecft_jax.report import comparison_markdown
from pecft_jax.train import Stopped, adapted_after, run, run_orders, sgd
from pecft_jax.workdir.inspection import inspect_run

ORDERS = {'natural': [0, 1, 2, 3, 4, 5], 'mixed': [4, 1, 0, 5, 3, 2], 'back': [5, 4, 3, 2, 1, 0]}
# One batched product in the place of several may add in another order.
CLOSE = pytest.approx
TRAININGS = {
  'l2p': TRAINING._replace(cache_queries=True, recipe=sgd(0.05, accumulate=2)),
  'finetune': TRAINING._replace(evaluate='all', evaluate_every=3),
}


@functools.cache
def ordered(order, make=data.class_incremental):
  """The tiny scenario with three tasks, in another order."""
  whole = tiny_scenario(3)
  sources = [
    data.arrays('tiny', split.inputs, np.arange(6).repeat(len(split.inputs) // 6))
    for split in (whole.tasks[0].train, whole.tasks[0].test)
  ]
  return make(*sources, tasks=3, order=ORDERS[order])


def side_by_side(method, make=data.class_incremental, **fields):
  """Experiments by the name of their order, each with a seed of its own."""
  # A recipe of its own: runs of one recipe share what they compile, and its count.
  training = TRAININGS.get(method, TRAINING)
  if make is not data.class_incremental:
    training = training._replace(recipe=sgd(0.06))
  first = tiny_experiment(method, 3, training=training, **fields)
  return {
    name: first.replace(scenario=ordered(name, make), seed=seed) for seed, name in enumerate(ORDERS)
  }


@pytest.mark.slow
@pytest.mark.parametrize('method', ['derpp(inflora)', 'ease', 'finetune', 'l2p'])
def test_orders_side_by_side_end_as_single_runs_do(method, tmp_path):
  experiments = side_by_side(method)
  found = run_orders(experiments, tmp_path / 'all', silent())
  assert list(found) == list(experiments)
  digests = set()
  for name, experiment in experiments.items():
    single = run(experiment, tmp_path / name, silent())
    one, other = outcome(tmp_path / name), outcome(tmp_path / 'all' / name)
    for row, same in zip(one['rows'], other['rows'], strict=True):
      assert row.pop('loss', 0) == CLOSE(same.pop('loss', 0), rel=1e-5)
      assert row == same
    for key in ('accuracy_matrix', 'per_class_accuracy', 'metrics', 'seed', 'identity', 'status',
                'compilations', 'class_names'):  # fmt: skip
      assert single[key] == found[name][key], key
    config = json.loads((tmp_path / 'all' / name / 'config.json').read_text())
    assert config.pop('orders_together') == list(experiments)
    alone = json.loads((tmp_path / name / 'config.json').read_text())
    assert config.pop('environment').keys() == alone.pop('environment').keys()
    assert config == alone
    digests.add(single['state_sha256'])
  assert len(digests) == len(experiments)  # They do differ from one another.


def test_the_task_is_given_to_each_order_of_a_task_incremental_scenario(tmp_path):
  experiments = side_by_side('finetune', data.task_incremental)
  found = run_orders(experiments, None, silent())
  for name, experiment in experiments.items():
    assert run(experiment, None, silent())['accuracy_matrix'] == found[name]['accuracy_matrix']


def test_interruptions_do_not_show(interrupt, tmp_path):
  experiments = side_by_side('derpp(inflora)')
  run_orders(experiments, tmp_path / 'whole', silent())
  stops = 0
  for _ in range(100):
    interrupt(13)
    try:
      run_orders(experiments, tmp_path / 'parts', silent())
      break
    except Stopped:
      stops += 1
  assert 2 < stops < 100
  for name in experiments:
    assert outcome(tmp_path / 'parts' / name) == outcome(tmp_path / 'whole' / name)


def test_each_order_can_be_read_and_used_by_its_directory(tmp_path):
  experiments = side_by_side('finetune')
  found = run_orders(experiments, tmp_path, silent())
  assert not inspect_run(tmp_path)['problems']
  table = comparison_markdown([tmp_path / name for name in experiments])
  assert 'finetune' in table
  images = tiny_scenario(3).tasks[0].test.inputs
  for name, experiment in experiments.items():
    learner = load_run(tmp_path / name, model=experiment.model)
    assert learner.class_names == tuple(str(label) for label in ORDERS[name])
    said = learner.predict(images).argmax(-1)
    right = np.array(ORDERS[name])[said] == np.arange(6).repeat(len(images) // 6)
    assert right.mean() == CLOSE(found[name]['accuracy_matrix'][-1] and np.mean(
      found[name]['accuracy_matrix'][-1]))  # fmt: skip
    assert adapted_after(experiment, tmp_path / name).tasks == 3
    inspected = inspect_run(tmp_path / name)
    assert (inspected['status'], inspected['finished'], inspected['problems']) == ('done', 3, [])
    assert cli.main(['report', str(tmp_path / name)]) == 0
    assert (tmp_path / name / 'report.html').exists()
  assert cli.main(['report', str(tmp_path), '--out', str(tmp_path / 'all.html')]) == 0
  assert all(name in (tmp_path / 'all.html').read_text() for name in ('finetune', '3 runs'))
  with pytest.raises(ValueError, match='name the directory of one of them'):
    load_run(tmp_path, model=experiments['back'].model)


def refused(match, change, **options):
  """Asserts that changed experiments are refused."""
  with pytest.raises(ValueError, match=match):
    run_orders(change(side_by_side('finetune')), None, dataclasses.replace(silent(), **options))


def test_what_cannot_run_side_by_side_is_refused():
  change = lambda **fields: lambda all_: {**all_, 'back': all_['back'].replace(**fields)}
  refused('at least two', lambda all_: {'back': all_['back']})
  refused("'back' has another training", change(training=TRAINING._replace(epochs=3)))
  other = tiny_experiment('ease', 3)
  refused("'back' has another method", change(method=other.method))
  classes = [[0, 1, 2], [3, 4], [5]]
  whole = ordered('natural').tasks[0]
  source = data.arrays('tiny', whole.train.inputs, np.arange(6).repeat(12 // 2))
  uneven = data.class_incremental(source, source, classes_per_task=classes)
  refused('differ in the outputs of each task', change(scenario=uneven))
  for name in ('checkpoints', '../back', 'a/b', '', '.', 'Natural', 'ä'):
    refused('names', lambda all_, name=name: {**all_, name: all_['back']})
  refused('no writers', lambda all_: all_, writers=(lambda row: None,))
