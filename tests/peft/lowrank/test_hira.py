"""HiRA, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import hira


def test_the_weight_is_scaled_entry_by_entry():
  peft = hira('fc', rank=2)
  leaf = started(peft)._replace(b=noise(2, D_OUT))
  changed = W * (1 + wide(leaf.a) @ wide(leaf.b))
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ changed + BIAS, atol=1e-5)
  np.testing.assert_allclose(W + peft.update({'fc': leaf}, 'fc', W), changed, atol=1e-5)


def test_the_update_has_a_rank_above_that_of_its_factors():
  peft = hira('fc', rank=2)
  leaf = started(peft)._replace(b=noise(2, D_OUT))
  assert np.linalg.matrix_rank(wide(peft.update({'fc': leaf}, 'fc', W)), tol=1e-4) == D_OUT


def test_one_factor_is_kaiming_uniform_and_the_other_zero():
  leaf = started(hira('fc', rank=2))
  assert 0 < np.abs(leaf.a).max() <= D_IN**-0.5
  np.testing.assert_array_equal(leaf.b, np.zeros((2, D_OUT)))


def test_a_rank_below_one_is_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    hira(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(hira('fc', rank=7))
