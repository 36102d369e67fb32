import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.buffer import empty, offer, sample

ITEM = {'x': jax.ShapeDtypeStruct((2, 3), jnp.uint8), 'y': jax.ShapeDtypeStruct((), jnp.int32)}


def items(numbers):
  """Items that tell their number in every leaf."""
  numbers = jnp.asarray(numbers)
  return {'x': jnp.broadcast_to(numbers[:, None, None], (*numbers.shape, 2, 3)).astype(jnp.uint8),
          'y': numbers.astype(jnp.int32)}  # fmt: skip


@functools.partial(jax.jit, static_argnames=('size', 'total', 'rows'))
def filled(key, *, size, total, rows):
  """A buffer after `total` items in batches with one invalid row each."""
  buffer = empty(size, ITEM)
  for i, start in enumerate(range(0, total, rows)):
    numbers = jnp.concatenate([jnp.arange(start, start + rows), jnp.array([99])])
    valid = (numbers < total) & (numbers != 99)
    buffer = offer(buffer, items(numbers), valid, jax.random.fold_in(key, i))
  return buffer


def test_fills_up_in_order_before_anything_is_dropped():
  buffer = filled(jax.random.key(0), size=11, total=9, rows=4)
  assert buffer.count == 9
  np.testing.assert_array_equal(buffer.items['y'][:9], np.arange(9))
  assert not np.asarray(buffer.items['y'][9:]).any()


@pytest.mark.parametrize('rows', [1, 4, 30])
def test_every_item_is_kept_with_the_same_probability(rows):
  """Chi-square over many fillings, for batches within and beyond the size."""
  runs, size, total = 4000, 5, 30
  keys = jax.random.split(jax.random.key(rows), runs)
  buffers = jax.vmap(lambda key: filled(key, size=size, total=total, rows=rows))(keys)
  kept = np.bincount(np.asarray(buffers.items['y']).ravel(), minlength=total)
  assert kept.sum() == runs * size
  expected = runs * size / total
  # Sampling without replacement varies less than Poisson, by 1 - size / total.
  chi2 = ((kept - expected) ** 2 / expected).sum() / (1 - size / total)
  assert chi2 < 58.3, kept  # The 0.999 quantile for 29 degrees of freedom.


def test_slots_hold_distinct_whole_items_and_none_that_was_invalid():
  keys = jax.random.split(jax.random.key(3), 200)
  buffers = jax.vmap(lambda key: filled(key, size=5, total=27, rows=4))(keys)
  y = np.asarray(buffers.items['y'])
  assert (y < 27).all()
  assert all(len(set(row)) == 5 for row in y)
  x = np.asarray(buffers.items['x'])
  np.testing.assert_array_equal(x, np.broadcast_to(y[..., None, None], x.shape))
  assert (np.asarray(buffers.count) == 27).all()


def test_agrees_with_reservoir_sampling_item_by_item():
  """The textbook loop with the same draws; the later of two items for a slot wins."""
  key, size = jax.random.key(5), 5
  buffer = filled(jax.random.key(0), size=size, total=8, rows=8)
  slots = list(np.asarray(buffer.items['y']))
  numbers, valid = np.arange(20, 40), np.arange(20) % 3 != 0
  order = int(buffer.count) + np.cumsum(valid) - 1
  draws = np.asarray(jax.random.randint(key, (20,), 0, jnp.maximum(jnp.asarray(order) + 1, 1)))
  for number, ok, draw in zip(numbers, valid, draws, strict=True):
    if ok and draw < size:
      slots[draw] = number
  found = offer(buffer, items(numbers), jnp.asarray(valid), key)
  np.testing.assert_array_equal(found.items['y'], slots)
  assert found.count == 8 + valid.sum()


def test_a_batch_without_valid_rows_changes_nothing():
  buffer = filled(jax.random.key(0), size=5, total=9, rows=4)
  after = offer(buffer, items(np.arange(50, 57)), jnp.zeros(7, bool), jax.random.key(1))
  chex.assert_trees_all_equal(after, buffer)


def test_nothing_valid_comes_from_an_empty_buffer():
  drawn, valid = sample(empty(5, ITEM), 7, jax.random.key(0))
  assert not np.asarray(valid).any()
  assert drawn['x'].shape == (7, 2, 3)


def test_draws_are_uniform_over_what_is_there():
  buffer = filled(jax.random.key(0), size=11, total=4, rows=4)
  drawn, valid = sample(buffer, 4000, jax.random.key(1))
  assert np.asarray(valid).all()
  counts = np.bincount(np.asarray(drawn['y']), minlength=11)
  assert not counts[4:].any()
  assert ((counts[:4] - 1000) ** 2 / 1000).sum() < 16.3  # 0.999 quantile, 3 degrees.


def test_a_buffer_without_room_is_refused():
  with pytest.raises(ValueError, match='size of at least 1, got 0'):
    empty(0, ITEM)


def test_distinct_draws_come_once_each_and_uniformly():
  buffer = filled(jax.random.key(0), size=11, total=7, rows=4)
  draw = jax.jit(jax.vmap(lambda key: sample(buffer, 4, key, distinct=True)))
  found, valid = draw(jax.random.split(jax.random.key(1), 2000))
  assert valid.all() and all(len(set(row)) == 4 for row in np.asarray(found['y']))
  shares = np.bincount(np.asarray(found['y']).ravel(), minlength=7) / 2000
  np.testing.assert_allclose(shares, 4 / 7, atol=0.05)


def test_of_fewer_items_than_wanted_each_comes_once():
  buffer = filled(jax.random.key(0), size=11, total=3, rows=4)
  found, valid = sample(buffer, 20, jax.random.key(1), distinct=True)
  assert valid.sum() == 3 and sorted(np.asarray(found['y'])[np.asarray(valid)]) == [0, 1, 2]
