"""Factors of low-rank updates at init."""

import jax
import numpy as np
import pytest

from pecft_jax.peft import lora
from pecft_jax.peft.starts import STARTS

D_IN, D_OUT, RANK = 300, 200, 8


def drawn(start):
  return [np.asarray(f, np.float64) for f in STARTS[start](jax.random.key(0), D_IN, D_OUT, RANK)]


@pytest.mark.parametrize('start', STARTS)
def test_the_product_is_zero_and_not_both_factors_are(start):
  a, b = drawn(start)
  assert a.shape == (D_IN, RANK) and b.shape == (RANK, D_OUT)
  np.testing.assert_allclose(a @ b, 0, atol=1e-6)
  assert np.abs(a).max() + np.abs(b).max() > 0.05


def test_deviations_are_the_documented_ones():
  a, b = drawn('gaussian')
  assert np.std(a) == pytest.approx(1 / RANK, rel=0.05) and not b.any()
  a, b = drawn('uniform')
  assert np.abs(a).max() == pytest.approx(D_IN**-0.5, rel=0.01) and not b.any()
  a, b = drawn('zero_a')
  assert np.abs(b).max() == pytest.approx(RANK**-0.5, rel=0.01) and not a.any()


def test_orthogonal_factors_fill_half_of_the_rank_each():
  a, b = drawn('orthogonal')
  for factor in (a, b.T):
    assert np.linalg.matrix_rank(factor, tol=1e-4) == RANK // 2
    # A sum of r / 2 normal components of deviation 1 / 10.
    assert np.linalg.norm(factor, axis=1).mean() == pytest.approx(0.1 * (RANK / 2) ** 0.5, rel=0.1)


def test_an_odd_rank_has_no_orthogonal_halves():
  with pytest.raises(ValueError, match="start='orthogonal' needs an even rank, got 3"):
    lora(rank=3, start='orthogonal')
  with pytest.raises(ValueError, match='start: expected one of'):
    lora(start='normal')
