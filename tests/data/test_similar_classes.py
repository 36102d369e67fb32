import itertools

import numpy as np
import pytest

from pecft_jax.data import similarity_orders
from pecft_jax.data.similar_classes import neighbour_similarity


def _embeddings(classes, width, seed=0):
  return np.random.default_rng(seed).normal(size=(classes, width))


def _mean_cosine(embeddings, order, tasks):
  """By the definition: over all pairs of classes of neighbouring tasks."""
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  groups = np.split(np.array(order), tasks)
  pairs = [
    unit[a] @ unit[b]
    for one, other in itertools.pairwise(groups)
    for a in one
    for b in other
  ]  # fmt: skip
  return np.mean(pairs)


def test_extremes_are_those_of_all_orders():
  embeddings = _embeddings(6, 4)
  found = similarity_orders(embeddings, 3)
  every = [_mean_cosine(embeddings, order, 3) for order in itertools.permutations(range(6))]
  hardest, median, easiest = found.similarity
  np.testing.assert_allclose(hardest, min(every), atol=1e-12)
  np.testing.assert_allclose(easiest, max(every), atol=1e-12)
  # The middle one of 201 random orders lies near the middle of all.
  assert np.quantile(every, 0.4) <= median <= np.quantile(every, 0.6)


@pytest.mark.parametrize(('classes', 'tasks'), [(12, 2), (20, 5), (15, 15)])
def test_each_order_has_every_label_once_and_the_similarity_that_is_told(classes, tasks):
  embeddings = _embeddings(classes, 7, seed=classes)
  found = similarity_orders(embeddings, tasks)
  for order, told in zip(found[:3], found.similarity, strict=True):
    assert sorted(order) == list(range(classes))
    np.testing.assert_allclose(_mean_cosine(embeddings, order, tasks), told, atol=1e-12)
  assert found.similarity[0] < found.similarity[1] < found.similarity[2]


def test_hard_tasks_hold_classes_that_are_alike_and_easy_ones_a_mixture():
  kinds = np.array([0, 1, 0, 1, 0, 1, 0, 1])
  embeddings = np.eye(2)[kinds] + 0.01 * _embeddings(8, 2)
  found = similarity_orders(embeddings, 2)
  assert {len(set(kinds[list(found.hardest[at : at + 4])])) for at in (0, 4)} == {1}
  assert {kinds[list(found.easiest[at : at + 4])].sum() for at in (0, 4)} == {2}


def test_no_swap_of_two_classes_leads_further():
  embeddings = _embeddings(24, 5, seed=2)
  found = similarity_orders(embeddings, 4)
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  similar = unit @ unit.T
  for order, sign in ((found.hardest, -1), (found.easiest, 1)):
    task_of = np.empty(24, int)
    task_of[list(order)] = np.repeat(np.arange(4), 6)
    best = sign * neighbour_similarity(similar, task_of, 4)
    for a, b in itertools.combinations(range(24), 2):
      swapped = task_of.copy()
      swapped[[a, b]] = swapped[[b, a]]
      assert sign * neighbour_similarity(similar, swapped, 4) <= best + 1e-9


def test_the_seed_alone_decides():
  embeddings = _embeddings(20, 3)
  assert similarity_orders(embeddings, 5) == similarity_orders(embeddings, 5)
  assert similarity_orders(embeddings, 5).median != similarity_orders(embeddings, 5, seed=1).median


@pytest.mark.parametrize(
  ('embeddings', 'tasks', 'message'),
  [
    (np.ones(4), 2, r'\[C, D\]'),
    (np.zeros((4, 2)), 2, 'finite embeddings'),
    (np.array([[1.0], [np.nan]]), 2, r'for classes \[1\]'),
    (np.ones((4, 2)), 3, 'divide the 4 classes'),
    (np.ones((4, 2)), 1, 'at least two tasks'),
  ],
)
def test_other_embeddings_and_tasks_are_refused(embeddings, tasks, message):
  with pytest.raises(ValueError, match=message):
    similarity_orders(embeddings, tasks)
