import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.herding import (
  Exemplars,
  blocks,
  fetched,
  herded,
  moved,
  no_exemplars,
)

SIZE, CLASSES, WIDTH = 11, 7, 3


def seen(*classes):
  return jnp.asarray(np.isin(np.arange(CLASSES), classes))


def candidates(counts, seed=0, room=40):
  """A sample that holds all examples of some classes, and features and labels in its order."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(list(counts), list(counts.values()))).astype(np.int32)
  features = rng.normal(size=(len(labels), WIDTH)).astype(np.float32)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  empty = sampling.empty(room, (jax.ShapeDtypeStruct((WIDTH,), jnp.float32), number, number))
  rows = np.arange(len(labels), dtype=np.int32)
  return sampling.offer(empty, (features, labels, rows), np.ones(len(rows), bool), rows)


def by_hand(features, count):
  """Algorithm 4 of the paper in float64."""
  mean, chosen = features.mean(0), []
  for k in range(1, count + 1):
    sums = features[chosen].sum(0) if chosen else np.zeros(features.shape[1])
    away = ((mean - (features + sums) / k) ** 2).sum(1)
    away[chosen] = np.inf
    chosen.append(int(away.argmin()))
  return chosen


def test_the_buffer_is_shared_evenly_by_the_classes_in_order():
  found = blocks(SIZE, seen(1, 2, 5))
  assert found.length == 3
  np.testing.assert_array_equal(found.owner, [1, 1, 1, 2, 2, 2, 5, 5, 5, -1, -1])
  np.testing.assert_array_equal(found.place, [0, 1, 2] * 3 + [0, 1])
  assert [int(found.start[c]) for c in (1, 2, 5)] == [0, 3, 6]
  none = blocks(SIZE, seen())
  assert none.length == 0 and (np.asarray(none.owner) == -1).all()


@pytest.mark.parametrize('seed', range(3))
def test_herding_takes_the_examples_that_the_paper_does_in_its_order(seed):
  some = candidates({4: 9, 6: 12, 0: 5}, seed)
  features, labels = (np.asarray(a) for a in some.items[:2])
  filled = np.asarray(some.filled)
  means = np.zeros((CLASSES, WIDTH))
  for c in (0, 4, 6):
    means[c] = features[filled & (labels == c)].astype(np.float64).mean(0)
  own = blocks(SIZE, seen(0, 2, 4, 6))  # Two slots each; class 2 was there before.
  chosen = np.asarray(herded(some, jnp.asarray(means, jnp.float32), own, seen(0, 4, 6)))
  for c, slots in ((0, [0, 1]), (4, [4, 5]), (6, [6, 7])):
    rows = np.flatnonzero(filled & (labels == c))
    want = rows[by_hand(features[rows].astype(np.float64), 2)]
    np.testing.assert_array_equal(chosen[slots], want)
  assert (chosen[[2, 3, 8, 9, 10]] == -1).all()


def test_a_class_with_few_examples_has_each_of_them_once():
  some = candidates({3: 4})
  own = blocks(SIZE, seen(3))
  chosen = np.asarray(herded(some, jnp.zeros((CLASSES, WIDTH)), own, seen(3)))
  assert sorted(chosen[:4]) == [0, 1, 2, 3] and (chosen[4:] == -1).all()


def test_shorter_blocks_keep_the_best():
  items = {'x': jnp.arange(SIZE * 2).reshape(SIZE, 2)}
  old = blocks(SIZE, seen(1, 4))  # Five each.
  label = jnp.where(old.owner >= 0, old.owner, -1)
  new = blocks(SIZE, seen(0, 1, 4))  # Three each.
  found = moved(Exemplars(items, label), old, new, seen(1, 4))
  np.testing.assert_array_equal(found.label, [-1, -1, -1, 1, 1, 1, 4, 4, 4, -1, -1])
  np.testing.assert_array_equal(found.items['x'][3:9], items['x'][np.array([0, 1, 2, 5, 6, 7])])


def test_a_second_pass_fetches_what_was_chosen_and_nothing_else():
  start = no_exemplars(SIZE, {'x': jax.ShapeDtypeStruct((2,), jnp.uint8)})
  rows = jnp.array([-1, 8, 3, -1, 0, 9, -1, -1, -1, -1, -1], jnp.int32)
  x = np.arange(20, dtype=np.uint8).reshape(10, 2)
  labels = np.arange(10) % 3
  found = start
  for at in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]):
    # Rows that are not valid have the index -1, whatever they hold.
    index = np.where(np.array(at) >= at[0], at, -1)
    found = fetched(found, rows, {'x': x[at]}, labels[at], index)
  for slot, row in enumerate(np.asarray(rows)):
    want = x[row] if row >= 0 else np.zeros(2)
    np.testing.assert_array_equal(found.items['x'][slot], want)
    assert int(found.label[slot]) == (labels[row] if row >= 0 else -1)


def test_a_buffer_without_room_is_refused():
  with pytest.raises(ValueError, match='size of at least 1'):
    no_exemplars(0, {'x': jax.ShapeDtypeStruct((2,), jnp.uint8)})


def test_means_of_another_width_are_refused_and_not_broadcast():
  means = jnp.zeros((CLASSES, 1))
  with pytest.raises(AssertionError):
    herded(candidates({4: 9}), means, blocks(SIZE, seen(4)), seen(4))
