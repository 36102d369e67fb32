import numpy as np

from pecft_jax.continual.prompts.votes import vote


def test_the_prompts_that_most_examples_select_win():
  rng = np.random.default_rng(0)
  near = rng.normal(size=(9, 5)).astype(np.float32)
  votes = np.bincount(np.argsort(-near, 1)[:, :3].ravel(), minlength=5)
  assert vote(near, 3).tolist() == np.argsort(-votes, kind='stable')[:3].tolist()
