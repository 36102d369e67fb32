"""A sequence of tasks over one data set, as plain records.

Axis letters: n examples of a split, C classes of the scenario.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.data.source import RandomAccess, is_in_memory
from pecft_jax.typing import Capacity

_BLOCK = 1 << 12  # Examples that are digested at once.
_SAMPLE = 64  # Examples of a split that is not in memory.


class Split(NamedTuple):
  """The examples of one task, for training or for testing."""

  inputs: Any  # Random access, shared by all splits of a source.
  rows: np.ndarray  # np.int64 [n], rows of `inputs`.
  labels: np.ndarray  # np.int32 [n], position of the class in the class order; or targets [n, ...].

  def __repr__(self) -> str:
    """Sizes, without arrays."""
    return f'Split({len(self.rows)} of {len(self.inputs)} examples)'


class TaskData(NamedTuple):
  """One task."""

  name: str
  classes: tuple[int, ...]  # Positions in the class order.
  train: Split
  test: Split

  def __repr__(self) -> str:
    """Sizes, without arrays."""
    return (
      f'TaskData({self.name!r}, classes={len(self.classes)}, train={len(self.train.rows)}, '
      f'test={len(self.test.rows)})'
    )


class Probe(NamedTuple):
  """A test set outside the tasks: what the model could do before, or should transfer to."""

  name: str
  split: Split


class Scenario(NamedTuple):
  """A sequence of tasks.

  Attributes:
    name: for reports.
    kind: 'class' (one prediction among all classes seen), 'task' (the task is
      known at test time) or 'domain' (each task has all classes).
    class_order: label in the data of each position.
    class_names: in the class order.
    tasks: in the order in which they are learned.
    digest: sha256 of everything that makes the split: the kind, the class
      order, and each task's rows and labels. Equal digests over the same data
      mean the same benchmark.
    boundaries: whether methods are told where a task begins and ends; without
      them the sequence is one stream, and phases around training run at its ends.
    probes: test sets that belong to no task, evaluated after each task.
  """

  name: str
  kind: str
  class_order: tuple[int, ...]
  class_names: tuple[str, ...]
  tasks: tuple[TaskData, ...]
  digest: str
  boundaries: bool = True
  probes: tuple[Probe, ...] = ()

  def __repr__(self) -> str:
    """The facts in a line, without arrays."""
    probes = f', probes={len(self.probes)}' if self.probes else ''
    return (
      f'Scenario({self.name!r}, kind={self.kind!r}, tasks={len(self.tasks)}, '
      f'classes={len(self.class_order)}{probes})'
    )

  @property
  def capacity(self) -> Capacity:
    """The sizes that a method needs to learn all tasks."""
    return Capacity(len(self.tasks), len(self.class_order))


def task_masks(scenario: Scenario, t: int) -> tuple[np.ndarray, np.ndarray]:
  """The classes of task `t`, and those of it and all tasks before: bool [C] each.

  Args:
    scenario: the sequence of tasks.
    t: index of a task, counted from 0.

  Raises:
    ValueError: for a task that the scenario does not have.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(), tasks=5)
  >>> classes, seen = data.task_masks(scenario, 1)
  >>> int(classes.sum()), int(seen.sum())
  (2, 4)
  """
  if not 0 <= t < len(scenario.tasks):
    raise ValueError(f'expected a task in 0..{len(scenario.tasks) - 1}, got {t}')
  classes, seen = np.zeros((2, len(scenario.class_order)), bool)
  classes[list(scenario.tasks[t].classes)] = True
  for task in scenario.tasks[: t + 1]:
    seen[list(task.classes)] = True
  return classes, seen


def joined(splits: Sequence[Split]) -> Split:
  """Joins several splits into one: for joint training, or evaluation over all tasks so far.

  Args:
    splits: of one source, at least one.

  Raises:
    ValueError: for no split, or splits of several sources.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(), tasks=5)
  >>> data.joined([task.train for task in scenario.tasks]).labels.shape
  (1442,)
  """
  if not splits:
    raise ValueError('expected at least one split to join, got none')
  if any(split.inputs is not splits[0].inputs for split in splits):
    raise ValueError('expected splits of one source, got splits of several')
  return Split(
    inputs=splits[0].inputs,
    rows=np.concatenate([split.rows for split in splits]),
    labels=np.concatenate([split.labels for split in splits]),
  )


def one_after_another(splits: Sequence[Split]) -> Split:
  """`joined`, also of splits of several sources, whose examples have one shape.

  Args:
    splits: at least one.
  """
  if all(split.inputs is splits[0].inputs for split in splits):
    return joined(splits)
  starts = np.cumsum([0, *(len(split.inputs) for split in splits)])
  return Split(
    inputs=_Several(tuple(split.inputs for split in splits), starts),
    rows=np.concatenate([split.rows + at for split, at in zip(splits, starts, strict=False)]),
    labels=np.concatenate([split.labels for split in splits]),
  )


@dataclasses.dataclass(frozen=True, repr=False)
class _Several:
  """Random access to the rows of several inputs, one after another."""

  parts: tuple[RandomAccess, ...]
  starts: np.ndarray  # Of each part, and the number of all rows.

  def __len__(self) -> int:
    return int(self.starts[-1])

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    part = np.searchsorted(self.starts, rows, side='right') - 1
    found: list[Any] = [None] * len(rows)
    for k in np.unique(part):
      at = np.flatnonzero(part == k)
      for i, example in zip(at, self.parts[k][rows[at] - self.starts[k]], strict=True):
        found[i] = example
    return np.stack(found)


def data_sha256(scenario: Scenario) -> str:
  """The sha256 over the inputs of all test sets and training sets, and of all probes.

  Of inputs in memory every byte counts. Of others, which would have to be read and decoded, the
  number of examples counts and the inputs of 64 of each split, evenly spaced with the first and
  the last. Rows and labels are in `Scenario.digest`, all of them.

  Args:
    scenario: any.

  Returns:
    A hex digest. It depends on what the examples are, not on how their rows are stored.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(8), tasks=5)
  >>> data_sha256(scenario) == data_sha256(scenario)
  True
  """
  digest = hashlib.sha256()
  splits = [split for task in scenario.tasks for split in (task.train, task.test)]
  for split in [*splits, *(probe.split for probe in scenario.probes)]:
    whole = is_in_memory(split.inputs)
    rows = split.rows if whole else split.rows[_spaced(len(split.rows))]
    digest.update(f'{len(split.rows)} examples, {"all" if whole else "some"}\n'.encode())
    for start in range(0, len(rows), _BLOCK):
      examples = np.ascontiguousarray(split.inputs[rows[start : start + _BLOCK]])
      digest.update(f'{examples.dtype.str} {examples.shape}\n'.encode())
      digest.update(examples.data)
  return digest.hexdigest()


def _spaced(n: int) -> np.ndarray:
  """Places of some of n examples, evenly spaced: int64 [at most 64]."""
  return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).round().astype(np.int64))


def split_digest(kind: str, order: Sequence[int], tasks: Sequence[TaskData]) -> str:
  """The sha256 over the kind, the class order and each task's rows and labels."""
  digest = hashlib.sha256(kind.encode())

  def add(values: Any) -> None:
    # Fixed width and byte order, with the length first, so that different lists have different
    # bytes.
    digest.update(np.array([len(values), *values], '<i8').tobytes())

  def add_labels(labels: np.ndarray) -> None:
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
      return add(labels)
    digest.update(f'{labels.dtype.str} {labels.shape}'.encode())
    digest.update(np.ascontiguousarray(labels).tobytes())

  add(order)
  for task in tasks:
    add(task.classes)
    for split in (task.train, task.test):
      add(split.rows)
      add_labels(split.labels)
  return digest.hexdigest()
