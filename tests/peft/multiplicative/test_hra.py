"""HRA by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import hra

LAYER = random_layer(9, 5)


@pytest.mark.parametrize('rank', [1, 4, 9])
def test_is_the_definition(rank):
  peft = hra('fc', rank)
  delta = shaken(LAYER.start(peft), 1)
  h = np.eye(9)
  for u in np.asarray(delta['fc'].u, np.float64).T:
    h = h @ (np.eye(9) - 2 * np.outer(u, u) / (u @ u))
  LAYER.check_moved(peft, delta, h.T @ LAYER.w)


@pytest.mark.parametrize(('rank', 'same'), [(8, True), (3, False)])
def test_an_even_rank_starts_at_the_frozen_weight(rank, same):
  peft = hra('fc', rank)
  assert (np.abs(LAYER.merged(peft, LAYER.start(peft)) - LAYER.w).max() < 1e-5) == same


def test_ranks_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    hra(rank=0)
  with pytest.raises(ValueError, match='fc: rank 10 is above its 9 inputs'):
    LAYER.start(hra('fc', 10))
