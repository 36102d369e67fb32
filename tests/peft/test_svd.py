"""Parts of singular value decompositions, against numpy's."""

import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft.svd import decomposed, leading_part, trailing_part

W = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)


def test_leading_and_trailing_parts_add_up_to_the_weight():
  u, s, v = np.linalg.svd(W.astype(np.float64), full_matrices=False)
  for part, rows in ((leading_part, slice(0, 2)), (trailing_part, slice(2, 5))):
    left, values, right = part('fc', jnp.asarray(W), rows.stop - rows.start)
    np.testing.assert_allclose(values, s[rows], rtol=1e-5)
    np.testing.assert_allclose((left * values) @ right, (u[:, rows] * s[rows]) @ v[rows], atol=1e-5)


def test_half_precision_is_decomposed_in_float32():
  assert {part.dtype for part in decomposed('fc', jnp.asarray(W, jnp.bfloat16))} == {
    jnp.dtype('float32')
  }


def test_a_rank_above_the_smaller_side_is_refused():
  with pytest.raises(ValueError, match=r'fc: rank 6 is above the smaller side .* \[9, 5\]'):
    leading_part('fc', jnp.asarray(W), 6)
