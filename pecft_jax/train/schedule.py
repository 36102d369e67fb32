"""What a method trains on in each task, and for how long."""

from typing import Any

import numpy as np

from pecft_jax.continual.plan import Calibrating, Step, plan_of
from pecft_jax.data import Split, joined, steps_for, task_masks
from pecft_jax.data.counter import permutation
from pecft_jax.train.experiment import Experiment
from pecft_jax.typing import ContinualMethod, Fit, Task


def training_split(experiment: Experiment, method: ContinualMethod, t: int) -> Split:
  """The training data of a method in task t: that task's, or those of all tasks so far."""
  first = 0 if method.cumulative else t
  return joined([task.train for task in experiment.scenario.tasks[first : t + 1]])


def gathered_split(experiment: Experiment, method: ContinualMethod, step: Step, t: int) -> Split:
  """The data of a pass of task t: its training data, or a sample of them for a calibration."""
  split = training_split(experiment, method, t)
  if not isinstance(step, Calibrating):
    return split
  calibration = method.transforms[step.entry].calibrate
  assert calibration is not None
  if calibration.examples is None:
    return split
  # A function of the task alone, so that seeds side by side share their batches.
  some = permutation(0, t, len(split.rows))[: calibration.examples]
  return split._replace(rows=split.rows[some], labels=split.labels[some])


def stored_examples(experiment: Experiment, method: ContinualMethod, t: int) -> int:
  """The number of stored examples in each epoch of task t, besides the task's own."""
  if method.joined is None:
    return 0
  # A stream without boundaries has no past task.
  at = t if experiment.scenario.boundaries else 0
  return method.joined.count(_arrays(experiment, at, steps=1))


def training_steps(experiment: Experiment, method: ContinualMethod, t: int) -> int:
  """Training steps of task t; 0 where the method does not train."""
  if not method.trains(t):
    return 0
  training = experiment.training
  n = len(training_split(experiment, method, t).rows) + stored_examples(experiment, method, t)
  return steps_for(n, training.batch_size, training.epochs)


def check_batch_size(experiment: Experiment) -> None:
  """Raises ValueError where a batch is larger than all epochs of a task together."""
  method, training = experiment.method, experiment.training
  for t, task in enumerate(experiment.scenario.tasks):
    n = len(training_split(experiment, method, t).rows) + stored_examples(experiment, method, t)
    if method.trains(t) and training.batch_size > n * training.epochs:
      raise ValueError(
        f'batch_size {training.batch_size} is above all that task {task.name!r} trains on: {n} '
        f'examples in {training.epochs} epochs fill no batch'
      )


def progress_of(experiment: Experiment, method: ContinualMethod, t: int, step: int) -> float:
  """`Env.progress` of an update of task t: of the task, or of a stream without boundaries."""
  if experiment.scenario.boundaries:
    return step / max(1, training_steps(experiment, method, t))
  each = [training_steps(experiment, method, i) for i in range(len(experiment.scenario.tasks))]
  return (sum(each[:t]) + step) / max(1, sum(each))


def fit_steps(experiment: Experiment, method: ContinualMethod, phase: Fit, t: int) -> int:
  """Updates of a phase of the method's own in task t."""
  if phase.steps is not None:
    return phase.steps(_arrays(experiment, t, steps=1))
  n = len(training_split(experiment, method, t).rows)
  return steps_for(n, experiment.training.batch_size, phase.epochs)


def boundary_of(method: ContinualMethod, step: Step, t: int, tasks: int) -> int | None:
  """Where a phase runs in a stream whose boundaries the method is not told.

  Phases before training run once, before the first part of the stream; those after it once, after
  the last.

  Returns:
    The task that the phase counts as; None where it does not run at part `t`.
  """
  plan = plan_of(method)
  at, training = plan.index(step), plan.index('train')
  if at < training:
    return 0 if t == 0 else None
  if at > training:
    return 0 if t == tasks - 1 else None
  return 0


def task_arrays(experiment: Experiment, method: ContinualMethod, t: int) -> Task:
  """Task t as the compiled functions see it.

  Without boundaries all parts are one task, with the classes that came so far.
  """
  if experiment.scenario.boundaries:
    return _arrays(experiment, t, steps=max(1, training_steps(experiment, method, t)))
  parts = range(len(experiment.scenario.tasks))
  steps = max(1, sum(training_steps(experiment, method, part) for part in parts))
  seen = task_masks(experiment.scenario, t)[1]
  whole = _arrays(experiment, 0, steps=steps)
  home: Any = np.where(seen, 0, -1).astype(np.int32)
  return whole._replace(classes=seen, seen=seen, home=home)


def _arrays(experiment: Experiment, t: int, *, steps: int) -> Task:
  scenario = experiment.scenario
  classes, seen = task_masks(scenario, t)
  past = task_masks(scenario, t - 1)[1] if t else np.zeros_like(seen)
  home = np.full(seen.shape, -1, np.int32)
  for j in reversed(range(t + 1)):
    home[list(scenario.tasks[j].classes)] = j
  arrays: Any = (np.int32(t), classes, seen, past, home, np.int32(0), np.int32(steps))
  return Task(*arrays)
