"""Tokens below the lowest trained block, of the examples of a run, kept while it lasts.

They are no part of a checkpoint: a run that is resumed computes them again.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.train.lower import Lower
from pecft_jax.typing import Below


class Rows(NamedTuple):
  """Random access to some rows of an array, by their place among them."""

  array: np.ndarray  # [N, T, D]
  at: np.ndarray  # np.int64 [n]

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """The tokens [B, T, D] of rows [B]."""
    return self.array[self.at[rows]]


Fill = Callable[[int], Iterable[np.ndarray]]  # (rows that are there) -> those missing, in order.


@dataclasses.dataclass(eq=False)
class KeptTokens:
  """The arrays of a run, made and filled when they are first read.

  Attributes:
    lower: what is kept.
    tokens: `(frozen, x) -> [B, T, D]`, compiled.
    training_rows: the most examples of a task.
    test_rows: examples of each test set.
    folder: of the files that hold the arrays; None for memory.
  """

  lower: Lower
  tokens: Callable[..., Any]
  training_rows: int
  test_rows: list[int]
  folder: pathlib.Path | None = None
  _arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  _first: int = -1  # The first task of those whose training examples are there.
  _filled: int = 0
  _tests: set[int] = dataclasses.field(default_factory=set)

  def of_training(self, first: int, rows: int, fill: Fill) -> Below:
    """Tokens of the training examples of the tasks from the first of them on, n in all."""
    if first != self._first:
      self._first, self._filled = first, 0
    for each in fill(self._filled) if self._filled < rows else ():
      self._put('training', self.training_rows, self._filled, each)
      self._filled += len(each)
    return self._below(Rows(self._arrays['training'], np.arange(rows)))

  def of_tests(self, sets: Iterable[int], fill: Callable[[int], Iterable[np.ndarray]]) -> Below:
    """Tokens of test sets, one after the other, by their places."""
    starts, at = np.cumsum([0, *self.test_rows]), []
    for place in sets:
      done = int(starts[place])
      at.append(np.arange(done, starts[place + 1]))
      for each in fill(place) if place not in self._tests else ():
        self._put('tests', int(starts[-1]), done, each)
        done += len(each)
      self._tests.add(place)
    return self._below(Rows(self._arrays['tests'], np.concatenate(at)))

  def _below(self, rows: Any) -> Below:
    return Below(rows, self.lower.block)

  def _put(self, name: str, rows: int, start: int, new: np.ndarray) -> None:
    if name not in self._arrays:
      self._arrays[name] = self._array((rows, *new.shape[1:]), new.dtype)
    self._arrays[name][start : start + len(new)] = new

  def _array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if self.folder is None:
      return np.empty(shape, dtype)
    self.folder.mkdir(parents=True, exist_ok=True)
    # Without a name: the file goes when the process ends, however it ends.
    with tempfile.TemporaryFile(dir=self.folder) as file:
      return np.memmap(file, dtype, 'w+', shape=shape)
