"""LoKr by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import LokrFactors, lokr

LAYER = random_layer(30, 24)


def dense(factor):
  if isinstance(factor, LokrFactors):
    return np.asarray(factor.a, np.float64) @ np.asarray(factor.b, np.float64)
  return np.asarray(factor, np.float64)


@pytest.mark.parametrize(
  ('rank', 'options', 'low_rank'),
  [
    (2, {}, (False, True)),
    (2, {'decompose_both': True}, (True, True)),
    (3, {}, (False, False)),
    (2, {'factor': 2}, (False, True)),
    (9, {'factor': 15}, (False, False)),
  ],
)
def test_is_the_definition(rank, options, low_rank):
  peft = lokr('fc', rank, alpha=5.0, **options)
  delta = shaken(LAYER.start(peft), 1)
  assert tuple(isinstance(factor, LokrFactors) for factor in delta['fc']) == low_rank
  moved = LAYER.w + 5 / rank * np.kron(*map(dense, delta['fc']))
  LAYER.check_moved(peft, delta, moved)


def test_the_small_factor_starts_at_zero():
  whole, split = (LAYER.start(lokr('fc', 2, decompose_both=both))['fc'].c for both in (False, True))
  assert not whole.any() and not split.b.any() and split.a.any()


def test_a_rank_below_one_is_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    lokr(rank=0)
