"""OLoRA, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import orthonormal_lora


def test_the_factors_are_the_leading_part_of_the_qr_decomposition():
  leaf = started(orthonormal_lora('fc', rank=2, alpha=4.0))
  q, r = np.linalg.qr(wide(W).T)
  np.testing.assert_allclose(leaf.a @ leaf.b, r[:2].T @ q[:, :2].T, atol=1e-5)
  np.testing.assert_allclose(leaf.b @ leaf.b.T, np.eye(2), atol=1e-6)


def test_trained_factors_are_added_to_the_rest():
  peft = orthonormal_lora('fc', rank=2, alpha=4.0)
  leaf = started(peft)._replace(b=noise(2, D_OUT))
  q, r = np.linalg.qr(wide(W).T)
  whole = W + 2 * (wide(leaf.a) @ wide(leaf.b) - r[:2].T @ q[:, :2].T)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ whole + BIAS, atol=1e-5)
  np.testing.assert_allclose(W + peft.update({'fc': leaf}, 'fc', W), whole, atol=1e-5)


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    orthonormal_lora(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(orthonormal_lora('fc', rank=7))
