"""MiSS, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import miss


@pytest.mark.parametrize('rank', [2, 4, 10])  # 4 does not divide 10.
def test_rows_of_the_update_repeat(rank):
  peft = miss('fc', rank=rank)
  leaf = started(peft)._replace(block=noise(rank, D_OUT))
  changed = np.stack([wide(leaf.block)[i % rank] for i in range(D_IN)])
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ (W + changed) + BIAS, atol=1e-5)
  np.testing.assert_allclose(peft.update({'fc': leaf}, 'fc', W), changed, atol=1e-6)


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    miss(rank=0)
  with pytest.raises(ValueError, match='fc: rank 11 is above the width of its input, 10'):
    started(miss('fc', rank=11))
