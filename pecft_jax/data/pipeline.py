"""Batches of constant shape, as grain iterators.

A stream is a sequence of positions: epoch after epoch of the split, shuffled
for each epoch. Batch s of size B holds positions s * B up to (s + 1) * B,
across epoch boundaries. Everything about a position (its example, its view)
is a pure function of the seed and the position, so an iterator's whole state
is the number of the next batch: `get_state` and `set_state` resume exactly,
and orbax checkpoints the iterators as they are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pecft_jax.data.augment import Augmentation
from pecft_jax.data.counter import fold_seed, permutation, uniforms
from pecft_jax.data.scenario import Split
from pecft_jax.typing import Batch, Below, Given

if TYPE_CHECKING:
  import grain


def steps_for(n: int, batch_size: int, epochs: int) -> int:
  """The number of batches that hold `epochs` passes over `n` examples.

  Args:
    n: examples of a split.
    batch_size: examples in each batch.
    epochs: passes over the split.

  >>> steps_for(100, 32, 2)
  7
  """
  return -(-n * epochs // batch_size)


def train_batches(
  split: Split,
  *,
  batch_size: int,
  seed: int,
  epochs: int | None = None,
  steps: int | None = None,
  augment: Augmentation | None = None,
  process_index: int = 0,
  process_count: int = 1,
  query: np.ndarray | None = None,
  below: Below | None = None,
  stored: int | None = None,
) -> 'grain.DatasetIterator[Batch]':
  """Shuffled batches for training.

  Args:
    split: the examples, n of them.
    batch_size: B of the global batch.
    seed: of the order and of the views.
    epochs: the stream ends after each example has come this many times; rows of
      the last batch beyond that are invalid.
    steps: number of batches; by default as many as the epochs fill. Without
      `epochs`, every row of every batch is valid.
    augment: applied to the images; token ids have none.
    process_index: of this process, which gets its contiguous part of each batch.
    process_count: must divide `batch_size`.
    query: float32 [n, D], the feature of the frozen backbone for each example; `x`
      then is a `Given`.
    below: what the lowest blocks of the frozen backbone make of each example, with tokens
      [n, T, D] that are read by rows; `x` then is a `Given`, too.
    stored: number of further examples that each epoch visits, which the method
      has in its memory: their rows have a `slot` in 0..stored - 1, all others -1,
      and an input and a label without meaning. None leaves slots out.

  Returns:
    An iterator over `Batch`es of numpy arrays, with B / process_count rows each.

  Raises:
    ValueError: for sizes below 1, too few examples for `steps`, or neither steps nor epochs.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(), tasks=5)
  >>> next(data.train_batches(scenario.tasks[0].train, batch_size=4, epochs=1, seed=0)).x.shape
  (4, 16, 16, 1)
  """
  n = len(split.rows) + (stored or 0)
  for what, value in (('epochs', epochs), ('steps', steps)):
    if value is not None and value < 1:
      raise ValueError(f'expected {what} of at least 1, got {value}')
  _check(split, batch_size, process_index, process_count, query)
  if augment is not None:
    first = split.inputs[split.rows[:1]]
    if first.ndim != 4:
      raise ValueError(f'expected images [n, H, W, C] to augment, got inputs {first.shape}')
  if epochs is not None:
    positions, available = n * epochs, steps_for(n, batch_size, epochs)
    if steps is not None and steps > available:
      raise ValueError(
        f'{epochs} epochs of {n} examples fill {available} batches, got steps={steps}'
      )
  elif steps is not None:
    positions, available = steps * batch_size, steps
  else:
    raise ValueError('expected epochs or steps, got neither')
  stream = _Stream(
    split=split,
    order=_shuffled(n, fold_seed(seed, 0)),
    positions=positions,
    steps=available if steps is None else steps,
    batch_size=batch_size,
    part=(process_index, process_count),
    view=None if augment is None else _view(augment, fold_seed(seed, 1)),
    query=query,
    below=below,
    slots=stored is not None,
  )
  return _iterate(stream)


def eval_batches(
  split: Split,
  *,
  batch_size: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  query: np.ndarray | None = None,
  below: Below | None = None,
) -> 'grain.DatasetIterator[Batch]':
  """The examples once, in order; the last batch is padded with invalid rows.

  Args:
    split: the examples, n of them.
    batch_size: B of the global batch.
    start: number of batches to skip, for resuming a pass.
    process_index: of this process, which gets its contiguous part of each batch.
    process_count: must divide `batch_size`.
    query: float32 [n, D], as in `train_batches`.
    below: as in `train_batches`.

  Raises:
    ValueError: for a start beyond the last batch.

  >>> from pecft_jax import data
  >>> scenario = data.class_incremental(*data.digits(), tasks=5)
  >>> next(data.eval_batches(scenario.tasks[0].test, batch_size=4)).y.shape
  (4,)
  """
  _check(split, batch_size, process_index, process_count, query)
  n = len(split.rows)
  stream = _Stream(
    split=split,
    order=lambda positions: positions,
    positions=n,
    steps=steps_for(n, batch_size, 1),
    batch_size=batch_size,
    part=(process_index, process_count),
    view=None,
    query=query,
    below=below,
  )
  if not 0 <= start <= stream.steps:
    raise ValueError(f'expected a start in 0..{stream.steps} batches, got {start}')
  iterator = _iterate(stream)
  iterator.set_state({'next_index': start})
  return iterator


@dataclasses.dataclass(frozen=True, repr=False)
class _Stream:
  """Random access to the batches of a stream: what grain reads from."""

  split: Split
  order: Callable[[np.ndarray], np.ndarray]  # positions -> rows of the split
  positions: int  # How many there are; beyond them is padding.
  steps: int
  batch_size: int
  part: tuple[int, int]  # Index and count of processes.
  view: Callable[[np.ndarray, np.ndarray], np.ndarray] | None  # (images, positions) -> images
  query: Any  # np.float32 [n, D] or None.
  below: Below | None
  slots: bool = False  # Whether rows beyond the split are examples of the method's memory.

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> Batch:
    process, count = self.part
    local = self.batch_size // count
    positions = step * self.batch_size + process * local + np.arange(local)
    valid: Any = positions < self.positions
    # Padding repeats row 0: real pixels, so that nothing computed from it is NaN.
    rows = np.zeros(local, np.int64)
    rows[valid] = self.order(positions[valid])
    slot: Any = None
    if self.slots:
      n = len(self.split.rows)
      slot = np.where(rows < n, -1, rows - n).astype(np.int32)
      rows[rows >= n] = 0
    x: Any = self.split.inputs[self.split.rows[rows]]
    if self.view is not None:
      x = self.view(x, positions)
    if self.query is not None or self.below is not None:
      query = None if self.query is None else self.query[rows]
      x = Given(x, query, below=self._below(rows))
    labels = self.split.labels[rows]
    y: Any = labels.astype(np.int32) if np.issubdtype(labels.dtype, np.integer) else labels
    index: Any = rows.astype(np.int32)
    return Batch(x, y, valid, index, slot)

  def _below(self, rows: np.ndarray) -> Below | None:
    if self.below is None:
      return None
    return dataclasses.replace(self.below, tokens=self.below.tokens[rows])


def _iterate(stream: _Stream) -> 'grain.DatasetIterator[Batch]':
  import grain

  source: Any = stream
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def _shuffled(n: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
  """Positions -> rows, by one permutation per epoch, made when it is needed."""
  epoch_order = functools.lru_cache(maxsize=4)(lambda epoch: permutation(seed, epoch, n))

  def order(positions):
    epochs, offsets = np.divmod(positions, n)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      rows[here] = epoch_order(epoch)[offsets[here]]
    return rows

  return order


def _view(augment: Augmentation, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  return lambda images, positions: augment.apply(
    images, uniforms(seed, positions, augment.uniforms)
  )


def _check(split: Split, batch_size: int, index: int, count: int, query: np.ndarray | None) -> None:
  if not len(split.rows):
    raise ValueError('expected a split with examples, got an empty one')
  if batch_size < 1 or count < 1 or batch_size % count:
    raise ValueError(
      f'expected a batch_size that {count} processes divide evenly, got {batch_size}'
    )
  if not 0 <= index < count:
    raise ValueError(f'expected a process_index in 0..{count - 1}, got {index}')
  if query is not None and (query.ndim != 2 or len(query) != len(split.rows)):
    raise ValueError(f'expected a query [{len(split.rows)}, D], got {query.shape}')
