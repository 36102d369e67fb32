"""MiLoRA, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import milora


def test_the_factors_are_the_trailing_part_of_the_weight():
  leaf = started(milora('fc', rank=2, alpha=4.0))  # Scale 2.
  u, s, v = np.linalg.svd(wide(W), full_matrices=False)
  np.testing.assert_allclose(2 * leaf.a @ leaf.b, (u[:, -2:] * s[-2:]) @ v[-2:], atol=1e-5)
  np.testing.assert_allclose(np.square(leaf.a).sum(0), s[-2:] / 2, rtol=1e-4)


def test_trained_factors_are_added_to_the_principal_part():
  peft = milora('fc', rank=2)
  leaf = started(peft)._replace(b=noise(2, D_OUT))
  u, s, v = np.linalg.svd(wide(W), full_matrices=False)
  whole = (u[:, :-2] * s[:-2]) @ v[:-2] + wide(leaf.a) @ wide(leaf.b)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ whole + BIAS, atol=1e-5)
  np.testing.assert_allclose(W + peft.update({'fc': leaf}, 'fc', W), whole, atol=1e-5)


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    milora(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(milora('fc', rank=7))
