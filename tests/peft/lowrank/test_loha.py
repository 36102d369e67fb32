"""LoHa by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import loha

LAYER = random_layer(9, 7)


# Rank 1 is applied as two factors, rank 3 as a whole matrix.
@pytest.mark.parametrize('rank', [1, 3])
def test_is_the_definition(rank):
  peft = loha('fc', rank, alpha=5.0)
  delta = shaken(LAYER.start(peft), 1)
  a1, b1, a2, b2 = (np.asarray(leaf, np.float64) for leaf in delta['fc'])
  moved = LAYER.w + 5 / rank * (a1 @ b1) * (a2 @ b2)
  LAYER.check_moved(peft, delta, moved)


def test_an_update_has_up_to_the_square_of_the_rank():
  peft = loha('fc', 2)
  update = LAYER.merged(peft, shaken(LAYER.start(peft), 1)) - LAYER.w
  assert np.linalg.matrix_rank(update, tol=1e-4) == 4


def test_alpha_is_the_rank_by_default():
  delta = shaken(LAYER.start(loha('fc', 3)), 1)
  plain, explicit = (LAYER.merged(loha('fc', 3, alpha), delta) for alpha in (None, 3.0))
  np.testing.assert_array_equal(plain, explicit)


def test_ranks_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    loha(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 8 is above the smaller side .* \[9, 7\]'):
    LAYER.start(loha('fc', 8))
