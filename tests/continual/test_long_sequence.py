"""Runs of twenty tasks of unequal sizes compile each function once, and nothing else late."""

import jax.monitoring
import numpy as np
import pytest
from kinds import kinds_in_method, one_of_each
from tinies import WRAPPED_NAMES, needs_of, tiny, without
from tiny_runs import SIZE, TRAINING, silent, tiny_world

from pecft_jax import data
from pecft_jax.train import Experiment, run
from pecft_jax.typing import Capacity, Parts

TASKS = 20
CAPACITY = Capacity(TASKS, 2 * TASKS)
NAMES = one_of_each((*without('adapters', 'texts'), *WRAPPED_NAMES), kinds_in_method)
# Method, and settings of training.
CASES = {
  **{name: (name, {}) for name in NAMES},
  'lwf(ewc(derpp(olora)))': ('lwf(ewc(derpp(olora)))', {}),
  'l2p with cached queries': ('l2p', {'cache_queries': True}),
}

pytestmark = pytest.mark.slow


def scenario():
  """Two classes a task, distinguished by their brightness; 6 to 14 examples of a task."""

  def source(counts, seed):
    labels = np.repeat(np.arange(2 * TASKS), counts)
    noise = np.random.default_rng(seed).integers(0, 50, (len(labels), SIZE, SIZE, 1))
    return data.arrays('tiny', (noise + 5 * labels[:, None, None, None]).astype(np.uint8), labels)

  counts = 3 + np.arange(2 * TASKS) % 5
  return data.class_incremental(source(counts, 0), source(counts - 1, 1), tasks=TASKS)


@pytest.fixture
def compiled():
  """What XLA compiles from here on, as a list that grows."""
  found = []

  def note(event, seconds, **details):
    if 'backend_compile' in event:
      found.append(details.get('fun_name', event))

  jax.monitoring.register_event_duration_secs_listener(note)
  yield found
  jax.monitoring.unregister_event_duration_listener(note)


SAVED = 'l2p'


@pytest.mark.parametrize('case', CASES)
def test_twenty_tasks_compile_nothing_after_the_second(case, compiled, tmp_path):
  name, settings = CASES[case]
  model = tiny_world('adapters' if 'attention' in needs_of(name) else '').model
  method = tiny(name, model.backbone, CAPACITY)
  # A batch holds fewer than the smallest task has, so that two tasks show every kind of batch;
  # an evaluation has far fewer batches than there are test sets, which takes a third of the time.
  training = TRAINING._replace(epochs=1, log_every=2, eval_batch_size=16, **settings)
  experiment = Experiment(model, scenario(), method, training)
  after = []  # Compiled up to the end of each task.

  def note(row):
    if row['kind'] == 'eval':
      after.append(len(compiled))

  # One is saved after each task, too; the others take less time without.
  found = run(experiment, tmp_path if case == SAVED else None, silent(writers=(note,)))
  assert len(after) == TASKS and found['status'] == 'done'
  assert all(len(row) == TASKS and None not in row[: t + 1]
             for t, row in enumerate(found['accuracy_matrix']))  # fmt: skip
  answers = 'parts.part' if isinstance(method.predict, Parts) else 'predict'
  assert {'begin', 'end', answers} <= set(found['compilations'])
  assert set(found['compilations'].values()) == {1}
  # It does see what is compiled; phases that the first task lacks are, in the second.
  assert after[1] >= len(found['compilations'])
  # After the second task comes the first task in which nothing at all is new.
  assert not compiled[after[1] :]
