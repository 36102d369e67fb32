"""What a method trains on in each task, and for how long."""

from typing import Any

import numpy as np

from pecft_jax.data import Split, joined, steps_for, task_masks
from pecft_jax.train.experiment import Experiment
from pecft_jax.typing import ContinualMethod, Task


def training_split(experiment: Experiment, method: ContinualMethod, t: int) -> Split:
  """What a method trains on in task t: its data, or those of all tasks so far."""
  first = 0 if method.cumulative else t
  return joined([task.train for task in experiment.scenario.tasks[first : t + 1]])


def training_steps(experiment: Experiment, method: ContinualMethod, t: int) -> int:
  """Training steps of task t; 0 where the method does not train."""
  if not method.trains(t):
    return 0
  training = experiment.training
  n = len(training_split(experiment, method, t).rows)
  return steps_for(n, training.batch_size, training.epochs)


def task_arrays(experiment: Experiment, method: ContinualMethod, t: int) -> Task:
  """Task t as the compiled functions see it."""
  classes, seen = task_masks(experiment.scenario, t)
  past = task_masks(experiment.scenario, t - 1)[1] if t else np.zeros_like(seen)
  steps = max(1, training_steps(experiment, method, t))
  arrays: Any = (np.int32(t), classes, seen, past, np.int32(0), np.int32(steps))
  return Task(*arrays)
