"""Streams: without boundaries, with test sets of their own, with one optimizer, of numbers."""

import functools

import numpy as np
import pytest
from tiny_runs import (
  TRAINING,
  outcome,
  silent,
  tiny_backbone,
  tiny_experiment,
  tiny_frozen,
  tiny_method,
  tiny_scenario,
)

from pecft_jax.continual import er, finetune
from pecft_jax.data import Probe, Scenario, Split, TaskData
from pecft_jax.data.scenario import split_digest
from pecft_jax.peft import lora
from pecft_jax.problems import regression
from pecft_jax.train import Experiment, Stopped, Training, adam, run
from pecft_jax.train.schedule import stored_examples
from pecft_jax.typing import Capacity, Pretrained

TASKS = 3


def one_stream():
  return tiny_experiment('ewc(finetune)', TASKS).replace(
    scenario=tiny_scenario(TASKS)._replace(boundaries=False)
  )


@functools.cache
def of_probes():
  """A method for itself: steps are shared by method, and those of probes have other shapes."""
  return tiny_method('finetune', TASKS)._replace()


def probed():
  scenario = tiny_scenario(TASKS)
  probes = (Probe('first', scenario.tasks[0].test), Probe('last', scenario.tasks[2].test))
  scenario = scenario._replace(probes=probes)
  return tiny_experiment('finetune', TASKS).replace(scenario=scenario, method=of_probes())


def unrestarted():
  return tiny_experiment('finetune', TASKS, training=TRAINING._replace(restart=False))


@functools.cache
def numbers() -> Scenario:
  """Two sums of pixels are asked for, of images that get brighter from task to task."""
  rng = np.random.default_rng(0)
  images = np.concatenate([rng.integers(0, 120 + 60 * t, (26, 4, 4, 1)) for t in range(2)])
  images = images.astype(np.uint8)
  bright = images[..., 0] / 255
  targets = np.stack([bright[:, 0].mean(1), bright[:, :, 1].mean(1)], 1).astype(np.float32)

  def split(rows):
    return Split(images, rows, targets[rows])

  tasks = tuple(
    TaskData(f't{t}', (0, 1), split(np.arange(26 * t, 26 * t + 18)), split(
      np.arange(26 * t + 18, 26 * t + 26)))
    for t in range(2)
  )  # fmt: skip
  digest = split_digest('domain', (0, 1), tasks)
  return Scenario('sums', 'domain', (0, 1), ('row', 'column'), tasks, digest)


@functools.cache
def regressor():
  capacity = Capacity(2, 2, regression(2))
  return er(finetune(tiny_backbone(), capacity, peft=lora('attn/q$', rank=2)), size=9)


def of_numbers():
  training = Training(adam(3e-2), epochs=20, batch_size=6, eval_batch_size=5, log_every=7)
  return Experiment(Pretrained(tiny_backbone(), tiny_frozen()), numbers(), regressor(), training)


EXPERIMENTS = {
  'one stream': one_stream,
  'probes': probed,
  'one optimizer': unrestarted,
  'numbers': of_numbers,
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """`whole(name)`: the outcome of a run that was never interrupted."""

  @functools.cache
  def get(name):
    workdir = tmp_path_factory.mktemp('whole')
    run(EXPERIMENTS[name](), workdir, silent())
    return outcome(workdir)

  return get


@pytest.mark.parametrize(
  ('name', 'tick'),
  # In training of the first part and of a later one, after a task, in an evaluation.
  [
    *[('one stream', tick) for tick in (3, 11, 14, 29)],
    *[('probes', tick) for tick in (10, 13, 22)],
    *[('one optimizer', tick) for tick in (4, 15)],
    *[('numbers', tick) for tick in (20, 63, 90)],
  ],
)
def test_interruptions_do_not_show(name, tick, whole, interrupt, tmp_path):
  expected = whole(name)
  interrupt(tick)
  with pytest.raises(Stopped):
    run(EXPERIMENTS[name](), tmp_path, silent(save_every=1e9))
  interrupt(None)
  run(EXPERIMENTS[name](), tmp_path, silent(save_every=1e9))
  assert outcome(tmp_path) == expected


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_function_is_compiled_once(name, whole):
  assert set(whole(name)['results']['compilations'].values()) == {1}


def test_without_boundaries_phases_run_at_the_ends_of_the_stream_alone(interrupt, tmp_path):
  """Ticks: begin 1, training 6; a part that is entered 1, training 6; ...; the end."""
  where = {}
  for tick in (1, 7, 8, 11, 12, 18):
    workdir = tmp_path / str(tick)
    interrupt(tick)
    with pytest.raises(Stopped) as stopped:
      run(one_stream(), workdir, silent(save_every=1e9))
    where[tick] = str(stopped.value)
  assert where[1].endswith('task 0, begin 1') and where[7].endswith('task 0, train 6')
  # No pass of consolidation behind the first part: EWC is not told that it ended.
  assert 'task 0, evaluate' in where[8]


def test_parts_of_a_stream_are_one_task_with_the_classes_that_came(whole):
  rows = whole('one stream')['rows']
  rates = [row['learning_rate'] for row in rows if row['kind'] == 'train']
  assert rates == sorted(rates, reverse=True)  # One cosine over all parts.
  matrix = whole('one stream')['results']['accuracy_matrix']
  assert [[a is None for a in row] for row in matrix] == np.triu(np.ones((3, 3), bool), 1).tolist()


def test_a_stream_joins_no_stored_examples_as_it_has_no_past():
  experiment = one_stream()
  method = tiny_experiment('icarl', TASKS).method
  assert [stored_examples(experiment, method, t) for t in range(TASKS)] == [0] * TASKS
  told = tiny_experiment('icarl', TASKS)
  assert stored_examples(told, method, 1) > 0


def test_probes_are_evaluated_after_each_task(whole):
  results = whole('probes')['results']
  found = results['probes']
  assert sum(results['class_test_sizes']) == sum(results['test_sizes'])
  assert found['names'] == ['first', 'last']
  rows = np.array(found['matrix'], float)
  assert rows.shape == (TASKS, 2) and np.isfinite(rows).all()
  # The probes are test sets of tasks, so that what is known of these is known of them.
  assert rows[2].tolist() == [results['accuracy_matrix'][2][i] for i in (0, 2)]


def test_an_optimizer_that_is_not_restarted_goes_on_from_its_moments(tmp_path):
  restarted = run(tiny_experiment('finetune', TASKS), tmp_path / 'a', silent())
  going_on = run(unrestarted(), tmp_path / 'b', silent())
  first = lambda found: found['accuracy_matrix'][0]
  assert first(restarted) == first(going_on)
  assert restarted['state_sha256'] != going_on['state_sha256']


def test_numbers_are_learnt_and_judged_by_their_error(whole):
  results = whole('numbers')['results']
  (matrix,) = [v for k, v in results.items() if k.endswith('_matrix') and 'aware' not in k]
  scenario = numbers()
  for t, task in enumerate(scenario.tasks):
    spread = task.test.labels.var(0).mean() + np.square(task.test.labels.mean(0)).mean()
    assert 0 < matrix[t][t] < 0.5 * spread, (t, matrix)
