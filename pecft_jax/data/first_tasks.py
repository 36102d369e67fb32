"""A scenario to choose settings on: the first tasks, without their test sets."""

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.counter import bits
from pecft_jax.data.scenario import Scenario, Split, TaskData, split_digest
from pecft_jax.text import shortened


@checked
def validation(
  scenario: Scenario, tasks: int = 3, share: float = 0.2, *, seed: int = 0
) -> Scenario:
  """The first tasks of a scenario, tested on training examples that are held out.

  No test example is read, and no example of a later task. The first task alone would hide what a
  setting does to past tasks. Classes of later tasks stay among the outputs, so that a method of
  the scenario's capacity learns this one.

  Args:
    scenario: whose settings are to be chosen.
    tasks: how many of its first tasks; all, if it has fewer.
    share: of each class's training examples (of all, where labels are no classes) that is held
      out, rounded, with at least one example on either side.
    seed: of the choice of examples.

  Returns:
    A scenario without probes.

  Raises:
    ValueError: for no tasks, a share outside of (0, 1), or a class with a single example.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(8), tasks=5)
  >>> data.validation(scenario, 2).tasks[1]
  TaskData('task_1', classes=2, train=232, test=57)
  """
  if tasks < 1:
    raise ValueError(f'expected at least 1 task, got {tasks}')
  if not 0 < share < 1:
    raise ValueError(f'expected a share between 0 and 1, got {share}')
  first = tuple(
    _divided(task, scenario.class_names, share, seed) for task in scenario.tasks[:tasks]
  )
  return scenario._replace(
    name=f'{scenario.name}, validation',
    tasks=first,
    digest=split_digest(scenario.kind, scenario.class_order, first),
    probes=(),
  )


def _divided(task: TaskData, names: tuple[str, ...], share: float, seed: int) -> TaskData:
  """A task whose test set is a share of its training set."""
  split = task.train
  n = len(split.rows)
  is_class = split.labels.ndim == 1 and np.issubdtype(split.labels.dtype, np.integer)
  labels = split.labels if is_class else np.zeros(n, np.int64)
  chosen, alone = np.zeros(n, bool), []
  for label in np.unique(labels):
    at = np.flatnonzero(labels == label)
    if len(at) < 2:
      alone.append(names[label] if is_class else 'all')
      continue
    count = min(max(round(share * len(at)), 1), len(at) - 1)
    # By rows of the source: independent of the order of tasks and classes.
    drawn = np.argsort(bits(seed, split.rows[at]), kind='stable')
    chosen[at[drawn[:count]]] = True
  if alone:
    raise ValueError(
      f'task {task.name!r}: expected at least 2 training examples of each class to hold out some, '
      f'got 1 of {shortened(alone, 10)}'
    )
  part = lambda mask: Split(split.inputs, split.rows[mask], split.labels[mask])
  return task._replace(train=part(~chosen), test=part(chosen))
