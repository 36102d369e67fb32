"""Evaluations that keep the parts of answers that do not change."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import ALL_WRAPPERS, METHOD_NAMES, tiny
from tiny_runs import (
  SIZE,
  TRAINING,
  outcome,
  silent,
  tiny_experiment,
  tiny_method,
)

from pecft_jax import data
from pecft_jax.continual import ewc, finetune
from pecft_jax.peft import nothing
from pecft_jax.train import Stopped, evaluation, job, run
from pecft_jax.train.asking import part_reader
from pecft_jax.train.kept import Kept
from pecft_jax.typing import Parts

SHORT = TRAINING._replace(epochs=1)
NONE = {'parts_memory': 0, 'parts_disk': 0}
PROBE = 'linear probe in ewc'
# Variants of a method are its own functions with other options.
NAMES = [name for name in METHOD_NAMES if ':' not in name]
IN_PARTS = (*(name for name in NAMES if isinstance(tiny_method(name).predict, Parts)), PROBE)


def experiment_of(name, tasks=3, training=SHORT):
  if name != PROBE:
    return tiny_experiment(name, tasks, training=training)
  experiment = tiny_experiment('finetune', tasks, training=training)
  probe = finetune(experiment.backbone, experiment.scenario.capacity, peft=nothing())
  return experiment.replace(method=ewc(probe))


class Counting:
  """A compiled function that counts its calls; tracing is none."""

  def __init__(self, fn):
    self.fn, self.calls, self._cache_size = fn, 0, fn._cache_size

  def __call__(self, *args):
    self.calls += not isinstance(args[-1], jax.core.Tracer)
    return self.fn(*args)


@pytest.fixture
def passes(monkeypatch):
  """`passes(experiment, ...)`: how many parts a run computes, and its results."""

  def count(experiment, workdir=None, **options):
    compiled, counting = job.compile_steps, []

    def compile_steps(*args, **kwargs):
      steps = compiled(*args, **kwargs)
      counting.append(Counting(steps.parts.part))
      return steps._replace(parts=steps.parts._replace(part=counting[-1]))

    with monkeypatch.context() as patch:
      patch.setattr(job, 'compile_steps', compile_steps)
      results = run(experiment, workdir, silent(**options))
    return sum(each.calls for each in counting), results

  return count


def test_methods_with_frozen_parts_declare_them():
  assert {'ease', 'fecam', 'l2p', 'masked_probe', 'ranpac', 'simplecil', 'slda'} <= {*IN_PARTS}
  assert not isinstance(tiny_method('finetune').predict, Parts)
  assert not isinstance(tiny_method(ALL_WRAPPERS).predict, Parts)


@pytest.mark.parametrize('name', IN_PARTS)
def test_what_is_kept_changes_no_result(name, passes, tmp_path):
  experiment = experiment_of(name)
  many, _ = passes(experiment, tmp_path / 'none', **NONE)
  few, _ = passes(experiment, tmp_path / 'memory')
  assert few < many
  assert outcome(tmp_path / 'memory') == outcome(tmp_path / 'none')


def test_parts_on_disk_serve_as_those_in_memory_and_go_with_the_run(passes, tmp_path):
  experiment = experiment_of('ease')
  few, _ = passes(experiment, tmp_path / 'memory', parts_disk=0)
  assert passes(experiment, tmp_path / 'disk', parts_memory=0)[0] == few
  assert outcome(tmp_path / 'disk') == outcome(tmp_path / 'memory')
  assert not (tmp_path / 'disk' / 'parts').exists()


@pytest.mark.parametrize('harmed', [False, True])
def test_a_resumed_run_reads_what_is_whole(harmed, passes, interrupt, tmp_path):
  experiment = experiment_of('ease')
  few, _ = passes(experiment, tmp_path / 'whole')
  interrupt(22)  # In the second task's evaluation.
  with pytest.raises(Stopped):
    run(experiment, tmp_path / 'run', silent())
  files = sorted((tmp_path / 'run' / 'parts').iterdir())
  assert len(files) > 3
  if harmed:
    contents = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(contents[1][:-1] + bytes([contents[1][-1] ^ 1]))
    files[2].write_bytes(contents[3])  # Whole, and of something else.
    files[3].write_bytes(contents[3][:40])
  interrupt(None)
  left, _ = passes(experiment, tmp_path / 'run')
  assert outcome(tmp_path / 'run') == outcome(tmp_path / 'whole')
  if harmed:
    assert left > few - len(files)
  else:
    assert left == few - len(files)


def test_other_weights_of_a_slot_are_never_answered_from_files(passes, interrupt, tmp_path):
  first, other = experiment_of('ease'), experiment_of('ease').replace(seed=5)
  interrupt(20)
  for name, experiment in (('first', first), ('other', other)):
    with pytest.raises(Stopped):
      run(experiment, tmp_path / name, silent())
  (tmp_path / 'other' / 'parts').rename(tmp_path / 'aside')
  (tmp_path / 'first' / 'parts').rename(tmp_path / 'other' / 'parts')
  interrupt(None)
  run(other, tmp_path / 'other', silent())
  run(other, tmp_path / 'whole', silent(**NONE))
  assert outcome(tmp_path / 'other') == outcome(tmp_path / 'whole')


@pytest.mark.parametrize('name', ['ease', 'simplecil'])
def test_evaluations_ahead_and_within_tasks_use_what_is_kept(name, passes, tmp_path):
  training = SHORT._replace(evaluate='all', evaluate_every=2)
  experiment = experiment_of(name, training=training)
  many, _ = passes(experiment, tmp_path / 'none', **NONE)
  few, results = passes(experiment, tmp_path / 'kept')
  assert few < many / 1.5
  assert outcome(tmp_path / 'kept') == outcome(tmp_path / 'none')
  assert set(results['compilations'].values()) == {1}


def test_what_does_not_fit_is_computed_again(passes, tmp_path):
  experiment = experiment_of('ease')
  many, _ = passes(experiment, tmp_path / 'none', **NONE)
  few, _ = passes(experiment, tmp_path / 'all', parts_disk=0)
  room = 3 * 5 * 8 * 4 / 2**30  # Of three parts: five rows, eight numbers, four bytes.
  some, _ = passes(experiment, tmp_path / 'some', parts_memory=room, parts_disk=0)
  assert few < some < many
  assert outcome(tmp_path / 'some') == outcome(tmp_path / 'none')


def test_ease_on_twenty_tasks_needs_at_most_half_of_the_passes(passes):
  experiment = long_experiment(20, 3)
  assert passes(experiment)[0] <= without(experiment) / 2


@pytest.mark.parametrize(
  ('tasks', 'each', 'most'), [(20, 1, 1 / 2), (20, 8, 1 / 2), (50, 1, 1 / 4)]
)
def test_subspaces_of_old_tasks_are_computed_once(tasks, each, most):
  """As above for any size of test sets, without learning anything."""
  experiment, calls = long_experiment(tasks, each), []

  def part(state, frozen, batch, slot):
    if not isinstance(slot, jax.core.Tracer):
      calls.append(slot)
    return jnp.zeros((8, 1))

  prints = np.arange(4 * tasks, dtype=np.uint32).reshape(tasks, 4)
  look = lambda state, frozen: (prints, state)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  steps = SimpleNamespace(
    parts=SimpleNamespace(look=look, part=part, sharding=one, slots=tasks), counts_sharding=one
  )
  loop: Any = SimpleNamespace(steps=steps, kept=Kept('', 2**20), frozen=None)
  for t in range(tasks):
    reader = part_reader(loop, np.int32(t + 1), inside=False)
    for found in evaluation.rounds(evaluation.test_sets(experiment, t), t):
      for start in range(0, len(found.place), 8):
        rows = np.arange(start, start + 8)
        reader(None, evaluation.examples(found, rows))
    loop.kept.settle(every=True)
  assert len(calls) <= most * without(experiment)


def without(experiment):
  """The passes of EASE where every batch goes through every subspace so far."""
  tasks = range(len(experiment.scenario.tasks))
  return sum((t + 1) * evaluation.round_batches(experiment, t) for t in tasks)


def test_without_anything_kept_every_batch_goes_through_every_subspace(passes):
  experiment = long_experiment(4, 3)
  assert passes(experiment, **NONE)[0] == without(experiment)


def long_experiment(tasks, test):
  """EASE on one class a task, of `test` examples to test."""

  def source(count, seed):
    rng, labels = np.random.default_rng(seed), np.arange(tasks).repeat(count)
    images = rng.integers(0, 256, (len(labels), SIZE, SIZE, 1), np.uint8)
    return data.arrays('long', images, labels)

  scenario = data.class_incremental(source(4, 0), source(test, 1), tasks=tasks)
  experiment = tiny_experiment('ease', training=SHORT._replace(eval_batch_size=8))
  method = tiny('ease', experiment.backbone, scenario.capacity)
  return experiment.replace(scenario=scenario, method=method)
