"""KronA by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import krona
from pecft_jax.peft.lowrank.krona import factor_pair

LAYER = random_layer(12, 8)


@pytest.mark.parametrize(('factor', 'shapes'), [(None, [(3, 2), (4, 4)]), (4, [(4, 4), (3, 2)])])
def test_is_the_definition(factor, shapes):
  peft = krona('fc', factor, scale=0.5)
  delta = shaken(LAYER.start(peft), 1)
  a, b = (np.asarray(leaf, np.float64) for leaf in delta['fc'])
  assert [a.shape, b.shape] == shapes
  moved = LAYER.w + 0.5 * np.kron(a, b)
  LAYER.check_moved(peft, delta, moved)


@pytest.mark.parametrize(
  ('size', 'factor', 'pair'),
  [(768, None, (24, 32)), (127, None, (1, 127)), (128, 64, (64, 2)), (100, 8, (5, 20))],
)
def test_sizes_are_factored_near_their_root(size, factor, pair):
  assert factor_pair(size, factor) == pair


def test_a_factor_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match=r'fc: expected a factor .* \[12, 8\], got 3'):
    LAYER.start(krona('fc', 3))
