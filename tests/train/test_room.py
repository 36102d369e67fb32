"""Which entries fit into a number of bytes."""

from pecft_jax.train.room import Room


def test_what_does_not_fit_is_not_taken():
  room = Room(10, lambda name: None)
  assert room.take('a', 6)
  assert not room.take('b', 6)
  assert room.take('c', 4)
  assert ['a' in room, 'b' in room, 'c' in room] == [True, False, True]


def test_entries_of_earlier_evaluations_make_room():
  dropped = []
  room = Room(10, dropped.append)
  room.take('old', 5)
  room.take('needed', 5)
  taken = []
  for _ in range(3):
    room.turn()
    room.use('needed')
    taken.append(room.take('new', 4))
  assert taken == [False, False, True]
  assert dropped == ['old']
  assert 'new' in room
  assert not room.take('more', 2)


def test_an_entry_is_taken_once_and_may_be_removed():
  room = Room(10, lambda name: None)
  assert room.take('a', 6)
  assert room.take('a', 6)
  room.remove('a')
  room.remove('a')
  room.use('a')
  assert room.take('b', 10)
