"""A data set that can be read at any row, and selections of its rows.

Axis letters: N rows of the data set, n rows asked for.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pecft_jax.arguments import checked


class RandomAccess(Protocol):
  """Examples that can be read at any rows; a numpy array is one."""

  def __len__(self) -> int:
    """N, how many there are."""
    ...

  def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
    """Returns images uint8 [n, H, W, C] or token ids int32 [n, T], in the order of the rows.

    Args:
      rows: integers [n], in any order, some of them perhaps twice.
    """
    ...


class Source(NamedTuple):
  """One split of a data set.

  Attributes:
    name: of the data set, for reports.
    inputs: uint8 [N, H, W, C] or int32 [N, T]: a numpy array, or what reads on demand.
    labels: np.int64 [N], indices into `class_names`.
    class_names: the classes in the order of their labels.
    domains: np.int64 [N], indices into `domain_names`; None where unknown.
    domain_names: empty where `domains` is None.
  """

  name: str
  inputs: RandomAccess
  labels: np.ndarray
  class_names: tuple[str, ...]
  domains: np.ndarray | None = None
  domain_names: tuple[str, ...] = ()

  def __repr__(self) -> str:
    """Sizes, without arrays."""
    names = f'classes={len(self.class_names)}'
    if self.domain_names:
      names += f', domains={len(self.domain_names)}'
    return f'Source({self.name!r}, {len(self.labels)} examples, {names})'


@dataclasses.dataclass(frozen=True, repr=False)
class _Rows:
  """Random access to some rows of `inputs`; nothing is read before it is asked for."""

  inputs: RandomAccess
  rows: np.ndarray  # [N]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    return self.inputs[self.rows[rows]]


def is_in_memory(inputs: RandomAccess) -> bool:
  """Whether inputs are an array in memory, or rows of one, so that reading all of them is quick."""
  while isinstance(inputs, _Rows):
    inputs = inputs.inputs
  return isinstance(inputs, np.ndarray) and not isinstance(inputs, np.memmap)


def input_shape(source: Source) -> tuple[int, ...]:
  """The shape of one example, [H, W, C]; reads the first row."""
  return tuple(source.inputs[np.zeros(1, np.int64)].shape[1:])


def channels_first(shape: Sequence[int]) -> bool:
  """Whether an image [H, W, C] looks like one of [C, H, W]."""
  return shape[0] in {1, 3, 4} and min(shape[1:]) > 4


def check_inputs(source: Source, shape: Sequence[int]) -> None:
  """Checks the shape of the examples of a source.

  Args:
    source: whose first example is read.
    shape: [H, W, C] expected of it.

  Raises:
    ValueError: for another shape.

  >>> from pecft_jax import data
  >>> train, test = data.digits()
  >>> data.check_inputs(train, (16, 16, 1))  # Fits: nothing is raised.
  """
  expected, got = tuple(shape), input_shape(source)
  if got == expected:
    return
  message = f'{source.name!r}: expected images of shape {expected}, got {got}'
  if got == (expected[-1], *expected[:-1]) or (len(got) == 3 and channels_first(got)):
    message += '; their channels are first: transpose(0, 2, 3, 1) them'
  elif len(got) == len(expected) == 3 and expected[0] == expected[1]:
    channels = '' if got[2] == expected[2] else f', channels={expected[2]}'
    message += f'; convert them with resize(source, {expected[0]}{channels})'
  raise ValueError(message)


def select_rows(source: Source, rows: np.ndarray) -> Source:
  """The given rows, in the given order, of every field; images are read on demand."""
  return source._replace(
    inputs=_Rows(source.inputs, rows),
    labels=source.labels[rows],
    domains=None if source.domains is None else source.domains[rows],
  )


@checked
def first_per_class(source: Source, n: int, *, by_domain: bool = False) -> Source:
  """The first `n` rows of each class, in the order of the file.

  A class with fewer rows keeps all it has.

  Args:
    source: any.
    n: rows of each class, at least 1.
    by_domain: the first of each class in each domain, where the source has any.

  Raises:
    ValueError: for fewer than one row per class.

  >>> from pecft_jax import data
  >>> train, test = data.digits()
  >>> len(data.first_per_class(train, 2).labels)
  20
  """
  if n < 1:
    raise ValueError(f'expected at least 1 row per class, got {n}')
  domains = 0 if source.domains is None or not by_domain else source.domains
  groups = source.labels + len(source.class_names) * domains
  by_group = np.argsort(groups, kind='stable')
  groups = groups[by_group]
  # Number of rows of the same group before each row.
  rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
  return select_rows(source, np.sort(by_group[rank < n]))


@checked
def only_classes(source: Source, classes: Sequence[int]) -> Source:
  """The rows of some classes, renumbered in the given order.

  Args:
    source: any.
    classes: labels, each at most once; `classes[i]` becomes label i.

  Raises:
    ValueError: for classes that are repeated or out of range.

  >>> from pecft_jax import data
  >>> train, test = data.digits()
  >>> data.only_classes(train, [3, 7]).class_names
  ('3', '7')
  """
  count = len(source.class_names)
  classes = [int(c) for c in classes]
  if len(set(classes)) < len(classes) or not all(0 <= c < count for c in classes) or not classes:
    raise ValueError(f'expected distinct classes in 0..{count - 1}, got {classes}')
  renumbered = np.full(count, -1, np.int64)
  renumbered[classes] = np.arange(len(classes))
  kept = select_rows(source, np.flatnonzero(renumbered[source.labels] >= 0))
  return kept._replace(
    labels=renumbered[kept.labels], class_names=tuple(source.class_names[c] for c in classes)
  )


def in_memory(source: Source) -> Source:
  """Reads every image once, into one array; worth it where decoding or resizing is slow.

  Args:
    source: any that fits into memory.

  >>> from pecft_jax import data
  >>> train, test = data.digits()
  >>> data.in_memory(data.first_per_class(train, 1)).labels.shape
  (10,)
  """
  return source._replace(inputs=source.inputs[np.arange(len(source.inputs))])
