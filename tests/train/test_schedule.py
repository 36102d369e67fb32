"""The schedule of each task."""

import dataclasses

import numpy as np
from tiny_runs import TRAINING, tiny_experiment, tiny_method

from pecft_jax.train.schedule import task_arrays, training_split, training_steps

EXPERIMENT = tiny_experiment()


def test_training_data_of_a_task():
  sizes = lambda name: [
    len(training_split(EXPERIMENT, tiny_method(name), t).rows) for t in range(2)
  ]
  assert sizes('finetune') == [12, 12]
  assert sizes('joint') == [12, 24]


def test_training_steps_of_a_task():
  steps = lambda name, **fields: [
    training_steps(
      dataclasses.replace(EXPERIMENT, training=TRAINING._replace(**fields)), tiny_method(name), t
    )
    for t in range(2)
  ]
  assert steps('finetune') == [6, 6]
  assert steps('finetune', batch_size=5) == [5, 5]
  assert steps('joint') == [6, 12]
  assert steps('ranpac') == [6, 0]


def test_tasks_as_arrays():
  first, second = (task_arrays(EXPERIMENT, tiny_method('ranpac'), t) for t in range(2))
  assert first.classes.tolist() == first.seen.tolist() == [True, True, False, False]
  assert not first.past.any()
  assert second.classes.tolist() == [False, False, True, True]
  assert second.past.tolist() == first.seen.tolist()
  assert second.seen.all()
  assert first.home.tolist() == [0, 0, -1, -1] and second.home.tolist() == [0, 0, 1, 1]
  assert (first.steps, second.steps) == (6, 1)  # At least one, so that progress is defined.
  assert all(leaf.dtype in (np.bool_, np.int32) for leaf in second)
