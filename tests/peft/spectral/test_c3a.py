"""C3A by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import c3a

D, OUT = 18, 12
LAYER = random_layer(D, OUT)


@pytest.mark.parametrize('block', [1, 3, 6])  # Of odd size, too: these have no highest frequency.
def test_is_the_definition(block):
  peft = c3a('fc', block)
  delta = shaken(LAYER.start(peft), 1)
  kernel, moved = np.asarray(delta['fc'].kernel, np.float64), LAYER.w.copy()
  for row in range(D):
    for column in range(OUT):
      shift = (row % block - column % block) % block
      moved[row, column] += kernel[column // block, row // block, shift] / D
  LAYER.check_moved(peft, delta, moved)


def test_starts_at_the_frozen_weight_without_spread():
  peft = c3a('fc', 3, spread=0.0)
  np.testing.assert_allclose(LAYER.merged(peft, LAYER.start(peft)), LAYER.w, rtol=1e-7)
  kernel = np.asarray(LAYER.start(c3a('fc', 1))['fc'].kernel)
  assert 0.9 < np.abs(kernel).max() / np.sqrt(6 / (D + OUT)) <= 1


def test_a_block_that_does_not_divide_both_sides_is_refused():
  with pytest.raises(ValueError, match=r'fc: expected a block .* \[18, 12\], got 9'):
    LAYER.start(c3a('fc', 9))
