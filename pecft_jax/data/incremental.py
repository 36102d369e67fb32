"""Scenarios from a train and a test source: class-, task- and domain-incremental.

The three kinds of van de Ven and Tolias, 2019 (arXiv:1904.07734).
"""

from collections.abc import Sequence

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.order import class_order
from pecft_jax.data.scenario import Scenario, Split, TaskData, split_digest
from pecft_jax.data.source import Source
from pecft_jax.paths import shortened


@checked
def class_incremental(
  train: Source,
  test: Source,
  *,
  tasks: int | None = None,
  increments: Sequence[int] | None = None,
  classes_per_task: Sequence[Sequence[int]] | None = None,
  order: str | Sequence[int] = 'natural',
  name: str | None = None,
) -> Scenario:
  """Splits the classes into tasks; exactly one of the three ways must be given.

  Args:
    train: training data.
    test: test data of the same classes.
    tasks: number of tasks, of equally many classes.
    increments: number of classes of each task, as in `(50, 10, 10, 10, 10, 10)`.
    classes_per_task: the labels of each task; gives the class order as well.
    order: see `class_order`. The data must hold no other labels.
    name: for reports.

  Raises:
    ValueError: unless exactly one way is given, for sizes that do not add up to the classes, or for
      sources with other or different classes.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(), tasks=5)
  >>> scenario.tasks[1].classes
  (2, 3)
  """
  ordered = _order_and_sizes(len(train.class_names), tasks, increments, classes_per_task, order)
  return _split_classes('class', train, test, ordered, name)


@checked
def task_incremental(
  train: Source,
  test: Source,
  *,
  tasks: int | None = None,
  increments: Sequence[int] | None = None,
  classes_per_task: Sequence[Sequence[int]] | None = None,
  order: str | Sequence[int] = 'natural',
  name: str | None = None,
) -> Scenario:
  """As `class_incremental`, with the task known at test time.

  Args:
    train: training data.
    test: test data of the same classes.
    tasks: number of tasks, of equally many classes.
    increments: number of classes of each task.
    classes_per_task: the labels of each task.
    order: see `class_order`.
    name: for reports.

  Raises:
    ValueError: unless exactly one way is given, for sizes that do not add up to the classes, or for
      sources with other or different classes.

  >>> from pecft_jax import data
  >>> scenario = data.task_incremental(*data.digits(), increments=(4, 6))
  >>> len(scenario.tasks)
  2
  """
  ordered = _order_and_sizes(len(train.class_names), tasks, increments, classes_per_task, order)
  return _split_classes('task', train, test, ordered, name)


@checked
def domain_incremental(
  train: Source,
  test: Source,
  *,
  order: str | Sequence[int | str] = 'natural',
  name: str | None = None,
) -> Scenario:
  """One task per domain; each has all classes, in their natural order.

  Args:
    train: training data, with domains.
    test: test data of the same classes and domains.
    order: of the domains, as for `class_order`; also by their names.
    name: for reports.

  Raises:
    ValueError: if a source has no domains, or the two differ.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 0, 1]
  >>> source = data.arrays('shapes', images, labels, domains=[0, 0, 1, 1],
  ...                      domain_names=['photo', 'sketch'])
  >>> scenario = data.domain_incremental(source, source, order='sketch,photo')
  >>> [task.name for task in scenario.tasks]
  ['sketch', 'photo']
  """
  _check_same(train, test)
  for part, source in (('train', train), ('test', test)):
    if source.domains is None:
      raise ValueError(f'{source.name!r}: the {part} source has no domains')
  names = train.domain_names
  if isinstance(order, str) and set(order.split(',')) <= set(names):
    order = order.split(',')
  if not isinstance(order, str):
    order = [names.index(d) if d in names else d for d in order]
  domains = class_order(order, len(names))
  _check_covered(train, test, 'domains', domains)
  classes = tuple(range(len(train.class_names)))
  tasks = tuple(
    TaskData(
      name=names[domain],
      classes=classes,
      train=_take(train, train.domains == domain, train.labels),
      test=_take(test, test.domains == domain, test.labels),
    )
    for domain in domains
  )
  return _scenario('domain', train, classes, tasks, name)


def _order_and_sizes(
  classes: int,
  tasks: int | None,
  increments: Sequence[int] | None,
  classes_per_task: Sequence[Sequence[int]] | None,
  order: str | Sequence[int],
) -> tuple[tuple[int, ...], list[int]]:
  """The class order, and the number of classes of each task."""
  given = sum(way is not None for way in (tasks, increments, classes_per_task))
  if given != 1:
    raise ValueError(f'expected exactly one of tasks, increments and classes_per_task, got {given}')
  if classes_per_task is not None:
    if not isinstance(order, str) or order != 'natural':
      raise ValueError(f'classes_per_task gives the class order, got also order={order!r}')
    increments = [len(labels) for labels in classes_per_task]
    order = [label for labels in classes_per_task for label in labels]
  labels = class_order(order, classes)
  if tasks is not None:
    sizes = _equal_parts(len(labels), tasks)
  else:
    sizes = [int(size) for size in increments or ()]
  if sum(sizes) != len(labels) or min(sizes, default=0) < 1:
    raise ValueError(
      f'expected increments of at least 1 that sum to {len(labels)} classes, '
      f'got {sizes}, which sum to {sum(sizes)}'
    )
  return labels, sizes


def _equal_parts(classes: int, tasks: int) -> list[int]:
  if tasks < 1 or classes % tasks:
    raise ValueError(
      f'{tasks} tasks do not divide {classes} classes; '
      'give the number of classes of each task as increments'
    )
  return [classes // tasks] * tasks


def _split_classes(
  kind: str,
  train: Source,
  test: Source,
  ordered: tuple[tuple[int, ...], list[int]],
  name: str | None,
) -> Scenario:
  labels, sizes = ordered
  _check_same(train, test)
  _check_covered(train, test, 'labels', labels)
  position = np.full(len(train.class_names), -1, np.int64)
  position[list(labels)] = np.arange(len(labels))
  train_at, test_at = position[train.labels], position[test.labels]
  tasks, start = [], 0
  for t, size in enumerate(sizes):
    end = start + size
    tasks.append(
      TaskData(
        name=f'task_{t}',
        classes=tuple(range(start, end)),
        train=_take(train, (start <= train_at) & (train_at < end), train_at),
        test=_take(test, (start <= test_at) & (test_at < end), test_at),
      )
    )
    start = end
  return _scenario(kind, train, labels, tuple(tasks), name)


def _take(source: Source, mask: np.ndarray, positions: np.ndarray) -> Split:
  rows = np.flatnonzero(mask)
  return Split(source.inputs, rows, positions[rows].astype(np.int32))


def _check_same(train: Source, test: Source) -> None:
  for what in ('class_names', 'domain_names'):
    ours, theirs = getattr(train, what), getattr(test, what)
    if ours != theirs:
      only = sorted(set(ours) ^ set(theirs))[:5]
      raise ValueError(
        f'expected the same {what} in train and test, got {len(ours)} and {len(theirs)}; '
        + (f'not in both: {only}' if only else 'their order differs')
      )


def _check_covered(train: Source, test: Source, what: str, order: tuple[int, ...]) -> None:
  for part, source in (('train', train), ('test', test)):
    outside = np.setdiff1d(getattr(source, what), order).tolist()
    if outside:
      kind = 'class' if what == 'labels' else 'domain'
      hint = '; drop them with only_classes(source, ...)' if kind == 'class' else ''
      raise ValueError(
        f'the {part} source holds {what} outside the {kind} order: {outside[:10]}{hint}'
      )


def _scenario(
  kind: str, train: Source, order: tuple[int, ...], tasks: tuple[TaskData, ...], name: str | None
) -> Scenario:
  for task in tasks:
    for part, split in (('train', task.train), ('test', task.test)):
      if not len(split.rows):
        raise ValueError(f'task {task.name!r} is empty: no {part} rows for its classes')
  trained = np.unique(np.concatenate([task.train.labels for task in tasks]))
  if untrained := [train.class_names[order[i]] for i in np.setdiff1d(range(len(order)), trained)]:
    raise ValueError(
      f'{len(untrained)} of {len(order)} classes have no training rows: '
      f'{shortened(untrained, 10)}; leave them out with only_classes(source, ...) of train and '
      'test, or with an order or classes_per_task without them (labels that start at 1 make a '
      'class 0)'
    )
  return Scenario(
    name=name or f'{train.name}/{kind}-incremental-{len(tasks)}',
    kind=kind,
    class_order=order,
    class_names=tuple(train.class_names[label] for label in order),
    tasks=tasks,
    digest=split_digest(kind, order, tasks),
  )
