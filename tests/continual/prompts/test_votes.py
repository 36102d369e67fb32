import numpy as np

from pecft_jax.continual.prompts.votes import diversified, nearest, vote


def test_the_prompts_that_most_examples_select_win():
  rng = np.random.default_rng(0)
  near = rng.normal(size=(9, 5)).astype(np.float32)
  votes = np.bincount(np.argsort(-near, 1)[:, :3].ravel(), minlength=5)
  assert vote(near, 3).tolist() == np.argsort(-votes, kind='stable')[:3].tolist()


def test_the_smallest_products_of_distance_and_frequency_come_first():
  rng = np.random.default_rng(1)
  near = rng.uniform(-1, 1, (9, 6)).astype(np.float32)
  frequency = np.array([3, 0, 7, 1, 0, 2], np.float32)
  products = (1 - near.astype(np.float64)) * frequency / frequency.sum()
  # Those of the two that were never selected are zero: the nearer of them comes first.
  want = [sorted(range(6), key=lambda m: (products[b, m], -near[b, m])) for b in range(9)]
  assert nearest(diversified(near, frequency), 6).tolist() == want
  assert {1, 4} == set(np.asarray(want)[:, 0])


def test_without_past_selections_the_order_is_that_of_the_keys():
  near = np.random.default_rng(2).uniform(-1, 1, (5, 6)).astype(np.float32)
  assert np.array_equal(nearest(diversified(near, np.zeros(6)), 4), nearest(near, 4))
