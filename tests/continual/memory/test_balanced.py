"""The greedy sampler, against the algorithm of the paper, one example after another."""

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.memory.balanced import offer
from pecft_jax.continual.memory.herding import no_exemplars

OFFER = jax.jit(offer, static_argnums=5)
ITEM = jax.ShapeDtypeStruct((), jnp.int32)


def counts_of_the_paper(labels, size):
  """Algorithm 1: examples of each class; which of a class go does not change how many stay."""
  counts = {}
  for y in labels:
    if y not in counts or counts[y] < size / len(counts):
      if sum(counts.values()) >= size:
        largest = max(sorted(counts), key=counts.get)
        counts[largest] -= 1
      counts[y] = counts.get(y, 0) + 1
  return counts


def stored(labels, size, rows=5, seed=0):
  """A buffer after a stream in batches; items are the positions in the stream."""
  buffer = no_exemplars(size, ITEM)
  padded = np.concatenate([labels, np.zeros(-len(labels) % rows, int)]).astype(np.int32)
  valid = np.arange(len(padded)) < len(labels)
  for i in range(0, len(padded), rows):
    at = slice(i, i + rows)
    items = jnp.arange(i, i + rows, dtype=jnp.int32)
    key = jax.random.fold_in(jax.random.key(seed), i)
    buffer = OFFER(buffer, items, padded[at], valid[at], key, 7)
  return np.asarray(buffer.items), np.asarray(buffer.label)


def test_classes_have_as_many_slots_as_in_the_paper():
  rng = np.random.default_rng(0)
  for size, order in ((9, 'by task'), (9, 'mixed'), (11, 'by task'), (7, 'mixed')):
    labels = rng.integers(0, 7, 93)
    labels = np.sort(labels) if order == 'by task' else labels
    _, kept = stored(labels, size)
    found = {c: int((kept == c).sum()) for c in range(7) if (kept == c).any()}
    assert found == counts_of_the_paper(labels.tolist(), size), (size, order)


def test_items_stay_with_their_label_and_none_is_there_twice():
  labels = np.random.default_rng(1).integers(0, 7, 63)
  items, kept = stored(labels, 10)
  np.testing.assert_array_equal(labels[items], kept)
  assert len(set(items.tolist())) == 10


def test_few_examples_leave_slots_empty():
  items, kept = stored(np.array([3, 3, 1]), 9)
  assert sorted(kept.tolist()) == [-1] * 6 + [1, 3, 3]
  assert set(items[kept >= 0].tolist()) == {0, 1, 2}


def test_an_example_of_the_largest_class_goes_at_random():
  """Of nine of class 0, each is the one that a class that comes later displaces."""
  gone = set()
  for seed in range(60):
    items, _ = stored(np.array([0] * 9 + [1]), 9, seed=seed)
    gone |= set(range(9)) - set(items.tolist())
  assert gone == set(range(9))
