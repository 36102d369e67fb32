"""Batches that do not fit the room they are put into."""

import jax
import jax.numpy as jnp
import pytest

from pecft_jax.continual.memory import buffer, herding, sample
from pecft_jax.continual.memory.slots import check_rows, empty_slots

ITEM = {'x': jax.ShapeDtypeStruct((3,), jnp.float32), 'y': jax.ShapeDtypeStruct((), jnp.int32)}
ROWS = jnp.arange(5)
RIGHT = {'x': jnp.ones((5, 3)), 'y': ROWS}
WRONG = {
  'an item that would be broadcast': {'x': jnp.ones((5, 1)), 'y': ROWS},
  'other rows': {'x': jnp.ones((4, 3)), 'y': jnp.arange(4)},
  'a leaf with other rows': {'x': jnp.ones((5, 3)), 'y': jnp.arange(1)},
  'another structure': {'x': jnp.ones((5, 3))},
}
PUT = {
  'buffer': lambda items: buffer.offer(buffer.empty(2, ITEM), items, ROWS > 1, jax.random.key(0)),
  'sample': lambda items: sample.offer(sample.empty(2, ITEM), items, ROWS > 1, ROWS),
  'exemplars': lambda items: herding.fetched(
    herding.no_exemplars(2, ITEM), jnp.arange(2), items, ROWS, ROWS
  ),
}


def test_a_batch_like_the_room_passes():
  check_rows(empty_slots(2, ITEM, 'room'), RIGHT, ROWS, ROWS > 1)


@pytest.mark.parametrize('case', WRONG)
@pytest.mark.parametrize('room', PUT)
def test_a_batch_of_other_shapes_is_refused(room, case):
  assert jax.eval_shape(PUT[room], RIGHT)
  with pytest.raises(AssertionError):
    jax.eval_shape(PUT[room], WRONG[case])


def test_a_mask_of_other_rows_is_refused():
  with pytest.raises(AssertionError):
    check_rows(empty_slots(2, ITEM, 'room'), RIGHT, ROWS, ROWS[:1])
