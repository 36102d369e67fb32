import collections

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pecft_jax.data import (
  Split,
  compose,
  eval_batches,
  horizontal_flip,
  random_crop,
  steps_for,
  train_batches,
)
from pecft_jax.typing import Batch, Given

AUGMENT = compose(random_crop(1), horizontal_flip())
small = settings(max_examples=15, deadline=None)


def split(n=10):
  """Every second row of a source, labelled by the row's number."""
  rng = np.random.default_rng(n)
  images = rng.integers(0, 256, (2 * n, 4, 4, 3), np.uint8)
  rows = 1 + 2 * np.arange(n)
  return Split(images, rows, rows.astype(np.int32))


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    for field, left, right in zip(Batch._fields, a, b, strict=True):
      np.testing.assert_array_equal(left, right, err_msg=field)


def joined(batches):
  """The rows of several batches as one Batch."""
  fields = zip(*batches, strict=True)
  return Batch(*(None if field[0] is None else np.concatenate(field) for field in fields))


def stream(batches):
  """The valid examples one after the other, as one Batch."""
  whole = joined(batches)
  return Batch(*(None if field is None else field[whole.valid] for field in whole))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**40))
@small
def test_each_example_comes_exactly_epochs_times(n, batch_size, epochs, seed):
  batches = list(train_batches(split(n), batch_size=batch_size, epochs=epochs, seed=seed))
  assert len(batches) == steps_for(n, batch_size, epochs)
  assert all(len(b.y) == batch_size for b in batches)
  counts = collections.Counter(stream(batches).index.tolist())
  assert counts == dict.fromkeys(range(n), epochs)


def test_token_ids_come_as_they_are_and_are_never_augmented():
  ids = np.random.default_rng(0).integers(-1, 99, (20, 7)).astype(np.int32)
  texts = split()._replace(inputs=ids)
  got = stream(train_batches(texts, batch_size=4, epochs=2, seed=0))
  assert got.x.dtype == np.int32
  np.testing.assert_array_equal(got.x, ids[texts.rows[got.index]])
  np.testing.assert_array_equal(stream(eval_batches(texts, batch_size=4)).x, ids[texts.rows])
  with pytest.raises(ValueError, match=r'images \[n, H, W, C\] to augment, got inputs \(1, 7\)'):
    train_batches(texts, batch_size=4, epochs=1, seed=0, augment=AUGMENT)


def test_each_epoch_has_its_own_order():
  index = stream(train_batches(split(30), batch_size=30, epochs=3, seed=0)).index
  first, second, third = index.reshape(3, 30)
  assert sorted(first) == sorted(second) == list(range(30))
  assert len({tuple(first), tuple(second), tuple(third)}) == 3


def test_batches_belong_together():
  data = split()
  for batch in train_batches(data, batch_size=4, epochs=2, seed=0):
    np.testing.assert_array_equal(batch.x, data.inputs[data.rows[batch.index]])
    np.testing.assert_array_equal(batch.y, data.labels[batch.index])
    assert [v.dtype for v in batch[:4]] == [np.uint8, np.int32, bool, np.int32]


@given(st.integers(1, 9), st.integers(1, 9))
@small
def test_the_stream_does_not_depend_on_the_batch_size(ours, theirs):
  streams = [
    stream(train_batches(split(7), batch_size=size, epochs=2, seed=3, augment=AUGMENT))
    for size in (ours, theirs)
  ]
  assert_same(*([s] for s in streams))


@given(st.integers(1, 12), st.sampled_from([1, 2, 3]), st.integers(1, 3))
@small
def test_the_processes_share_out_the_global_batch(n, count, local):
  options = {'batch_size': count * local, 'epochs': 2, 'seed': 1, 'augment': AUGMENT}
  parts = [
    train_batches(split(n), **options, process_index=i, process_count=count) for i in range(count)
  ]
  union = [joined(each) for each in zip(*parts, strict=True)]
  assert_same(union, list(train_batches(split(n), **options)))


def test_seeds_change_order_and_views():
  first, again, other = (
    stream(train_batches(split(), batch_size=5, epochs=1, seed=seed, augment=AUGMENT))
    for seed in (0, 0, 1)
  )
  assert_same([first], [again])
  assert first.index.tolist() != other.index.tolist()


def test_views_change_from_epoch_to_epoch():
  batch = stream(train_batches(split(1), batch_size=1, epochs=8, seed=0, augment=AUGMENT))
  assert len({image.tobytes() for image in batch.x}) > 3


def test_steps_without_epochs_fill_every_row():
  batches = list(train_batches(split(3), batch_size=8, steps=5, seed=0))
  assert len(batches) == 5
  assert all(b.valid.all() for b in batches)


def test_steps_can_end_a_stream_early():
  options = {'batch_size': 4, 'epochs': 2, 'seed': 0}
  assert_same(
    list(train_batches(split(), **options, steps=3)), list(train_batches(split(), **options))[:3]
  )


@pytest.mark.parametrize('done', [0, 1, 3, 5])
def test_a_restored_iterator_goes_on_where_it_stopped(done):
  def fresh():
    return train_batches(split(), batch_size=4, epochs=2, seed=0, augment=AUGMENT)

  iterator = fresh()
  for _ in range(done):
    next(iterator)
  state = iterator.get_state()
  resumed = fresh()
  next(resumed)
  resumed.set_state(state)
  remaining = list(iterator)
  assert len(remaining) == 5 - done
  assert_same(list(resumed), remaining)


def test_orbax_checkpoints_the_iterator_as_it_is(tmp_path):
  def fresh():
    return train_batches(split(), batch_size=4, epochs=2, seed=0, augment=AUGMENT)

  iterator, restored = fresh(), fresh()
  next(iterator)
  next(iterator)
  ocp.save_checkpointables(tmp_path / 'step_2', {'data': iterator, 'state': {'w': np.ones(2)}})
  ocp.load_checkpointables(tmp_path / 'step_2', {'data': restored})
  assert restored.get_state() == {'next_index': 2}
  assert_same(list(restored), list(iterator))


def test_queries_come_with_their_examples():
  query = np.arange(20, dtype=np.float32).reshape(10, 2)
  for batch in train_batches(split(), batch_size=4, epochs=1, seed=0, query=query):
    assert isinstance(batch.x, Given)
    np.testing.assert_array_equal(batch.x.query, query[batch.index])
    assert batch.x.x.shape == (4, 4, 4, 3)
  (batch, *_) = eval_batches(split(), batch_size=4, query=query)
  np.testing.assert_array_equal(batch.x.query, query[:4])


@given(st.integers(1, 12), st.integers(1, 9))
@small
def test_evaluation_reads_each_example_once_in_order(n, batch_size):
  batches = list(eval_batches(split(n), batch_size=batch_size))
  assert {b.x.shape for b in batches} == {(batch_size, 4, 4, 3)}
  assert stream(batches).index.tolist() == list(range(n))


def test_evaluation_can_start_at_any_batch():
  whole = list(eval_batches(split(), batch_size=3))
  for start in range(5):
    assert_same(list(eval_batches(split(), batch_size=3, start=start)), whole[start:])


def test_evaluation_is_shared_out_too():
  parts = [eval_batches(split(5), batch_size=4, process_index=i, process_count=2) for i in (0, 1)]
  assert [[b.valid.tolist() for b in part] for part in parts] == [
    [[True, True], [True, False]],
    [[True, True], [False, False]],
  ]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'expected epochs or steps'),
    ({'epochs': 0}, 'epochs of at least 1, got 0'),
    ({'steps': 0}, 'steps of at least 1, got 0'),
    ({'epochs': 1, 'steps': 4}, 'fill 3 batches, got steps=4'),
    ({'epochs': 1, 'process_count': 3}, '3 processes divide evenly, got 4'),
    ({'epochs': 1, 'process_count': 2, 'process_index': 2}, r'process_index in 0..1, got 2'),
    ({'epochs': 1, 'query': np.zeros((9, 2))}, r'query \[10, D\], got \(9, 2\)'),
  ],
)
def test_impossible_streams_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    train_batches(split(), batch_size=4, seed=0, **options)


def test_impossible_evaluations_are_refused():
  with pytest.raises(ValueError, match=r'start in 0..3 batches, got 4'):
    eval_batches(split(), batch_size=4, start=4)
  with pytest.raises(ValueError, match='an empty one'):
    eval_batches(split()._replace(rows=np.zeros(0, np.int64)), batch_size=4)
