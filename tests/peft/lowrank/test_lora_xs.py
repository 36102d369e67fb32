"""LoRA-XS, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, W, X, noise, run, started, wide

from pecft_jax.peft import lora_xs


def test_the_frozen_factors_are_the_leading_part_of_the_weight():
  leaf = started(lora_xs('fc', rank=3))
  u, s, v = np.linalg.svd(wide(W), full_matrices=False)
  np.testing.assert_allclose(leaf.a.value @ leaf.b.value, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)
  np.testing.assert_allclose(leaf.a.value.T @ leaf.a.value, np.eye(3), atol=1e-5)
  np.testing.assert_array_equal(leaf.core, np.zeros((3, 3)))


def test_the_core_stands_between_the_factors():
  peft = lora_xs('fc', rank=3, alpha=1.5)
  leaf = started(peft)._replace(core=noise(3, 3))
  changed = 0.5 * wide(leaf.a.value) @ wide(leaf.core) @ wide(leaf.b.value)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ (W + changed) + BIAS, atol=1e-5)
  np.testing.assert_allclose(peft.update({'fc': leaf}, 'fc', W), changed, atol=1e-5)


def test_a_core_of_the_identity_scales_the_leading_part():
  peft = lora_xs('fc', rank=6, alpha=6.0)
  leaf = started(peft)._replace(core=np.eye(6, dtype=np.float32))
  np.testing.assert_allclose(run(peft, leaf), 2 * wide(X) @ W + BIAS, atol=1e-4)


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    lora_xs(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(lora_xs('fc', rank=7))
