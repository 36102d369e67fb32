"""Batches of a run, on its devices."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pecft_jax.data import Split, eval_batches, fold_seed, train_batches
from pecft_jax.train.context import Loop
from pecft_jax.typing import Batch, Below
from pecft_jax.workdir.position import Position


def in_order(
  loop: Loop,
  splits: Sequence[Split],
  start: int = 0,
  *,
  size: int | None = None,
  below: Below | None = None,
) -> Iterator[Batch]:
  """Batches of examples as they are, on their devices.

  Args:
    loop: the run.
    splits: the examples of all experiments side by side: one split that they share, or one of
      each, of equal sizes, whose batches are stacked.
    start: number of batches to skip.
    size: of a batch; that of evaluations by default.
    below: tokens of the examples, if they are kept.
  """
  size = loop.experiment.training.eval_batch_size if size is None else size
  index, count = loop.part
  streams = [
    eval_batches(
      split, batch_size=size, start=start, process_index=index, process_count=count, below=below
    )
    for split in splits
  ]
  for batches in zip(*streams, strict=True):
    yield _stacked(loop, batches, shared=len(splits) == 1)


def training_batches(
  loop: Loop, position: Position, splits: Sequence[Split], epochs: int, stored: int = 0
) -> Iterator[Batch]:
  """Shuffled batches from the position on, on their devices; updates the stream's state in it.

  Args:
    loop: the run.
    position: where it is.
    splits: as in `in_order`.
    epochs: passes over them.
    stored: the number of stored examples in each of them.
  """
  streams = _streams(loop, splits, position.task, epochs, stored)
  if position.data is not None:
    for stream in streams:
      stream.set_state(position.data)
  for batches in zip(*streams, strict=True):
    position.data = streams[0].get_state()
    yield _stacked(loop, batches, shared=not loop.steps.seed_axes)


def _streams(loop: Loop, splits: Sequence[Split], t: int, epochs: int, stored: int) -> list[Any]:
  """Training batches of a task, an iterator for each experiment."""
  training = loop.experiment.training
  cached = training.cache_queries and loop.steps.query is not None
  queries = [_queries(loop, split) if cached else None for split in splits]
  below = below_training(loop, splits, t)
  index, count = loop.part
  many = len(loop.experiments)
  given = zip(splits, queries, strict=True) if len(splits) > 1 else [(splits[0], queries[0])] * many
  return [
    train_batches(
      split,
      batch_size=training.batch_size,
      epochs=epochs,
      seed=fold_seed(experiment.seed, t),
      augment=training.augment,
      query=query,
      below=below,
      stored=stored if loop.method.joined is not None else None,
      process_index=index,
      process_count=count,
    )
    for experiment, (split, query) in zip(loop.experiments, given, strict=True)
  ]


def _stacked(loop: Loop, batches: tuple[Batch, ...], *, shared: bool) -> Batch:
  """One batch on its devices, or the batches of all experiments, stacked."""
  if shared:
    return on_devices(batches[0], loop.steps.batch_sharding, loop.part)
  rows = jax.tree.map(lambda *rows: np.stack(rows), *batches)
  return on_devices(rows, loop.steps.train_batch_sharding, loop.part, 1)


def _queries(loop: Loop, split: Split) -> np.ndarray:
  """Frozen queries [n, D] of a split, computed once per example."""
  assert loop.steps.query is not None
  queries = [np.asarray(loop.steps.query(loop.frozen, b.x)) for b in in_order(loop, [split])]
  return np.concatenate(queries)[: len(split.rows)]


def below_training(loop: Loop, splits: Sequence[Split], t: int) -> Below | None:
  """Kept tokens of the training data of task t; None where they are not kept."""
  kept = loop.tokens
  if kept is None or not kept.lower.training:
    return None
  (split,) = splits  # Of several experiments, only those that share their data keep some.

  def fill(there: int) -> Iterator[np.ndarray]:
    missing = split._replace(rows=split.rows[there:], labels=split.labels[there:])
    # In batches of the size that they are read in, bits are those of a step that runs all blocks.
    return _tokens(loop, missing, loop.experiment.training.batch_size)

  return kept.of_training(0 if loop.method.cumulative else t, len(split.rows), fill)


def below_tests(loop: Loop, sets: Mapping[int, Split]) -> Below | None:
  """Kept tokens of test sets by place, one after the other; None where they are not kept."""
  kept = loop.tokens
  if kept is None or not kept.lower.tests:
    return None
  size = loop.experiment.training.eval_batch_size
  return kept.of_tests(sets, lambda place: _tokens(loop, sets[place], size))


def _tokens(loop: Loop, split: Split, size: int) -> Iterator[np.ndarray]:
  """What the lowest blocks make of the examples of a split, batch by batch."""
  assert loop.tokens is not None
  left = len(split.rows)
  for batch in in_order(loop, [split], size=size):
    yield np.asarray(loop.tokens.tokens(loop.frozen, batch.x))[:left]
    left -= size


def on_devices(batch: Batch, sharding: Any, part: tuple[int, int] = (0, 1), axis: int = 0) -> Batch:
  """A batch of this process's rows, as one global batch over all devices.

  Args:
    batch: numpy arrays with B / count rows each.
    sharding: of the global arrays.
    part: index of this process's contiguous part of the rows, and their count.
    axis: of the rows.
  """
  index, count = part

  def put(array: Any) -> jax.Array:
    array = np.asarray(array)
    shape = list(array.shape)
    first = index * shape[axis]
    shape[axis] *= count

    def shard(where: Any) -> np.ndarray:
      low, high, _ = where[axis].indices(shape[axis])
      return array[(*where[:axis], slice(low - first, high - first), *where[axis + 1 :])]

    return jax.make_array_from_callback(tuple(shape), sharding, shard)

  return jax.tree.map(put, batch)
