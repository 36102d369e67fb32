"""RoSA against squared gradients and sums of matrices in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import by_hand, passed
from tiny_vit import shaken

from pecft_jax.peft import combine, rosa, split_kept

SITE = 'block_0/attn/q'
PEFT = rosa('attn/q$', rank=2, alpha=3.0, density=0.1)


@pytest.fixture(scope='module')
def found():
  return passed(PEFT)


def test_the_statistics_are_the_squared_gradients_of_batches_added_up(found):
  want = sum(np.square(kernel.mean(0)) for kernel, _ in by_hand())
  np.testing.assert_allclose(found[1][SITE], want, rtol=1e-4, atol=1e-7 * want.max())


def test_the_largest_entries_of_each_site_have_a_place(found):
  before, _, after = found
  scores = sum(np.square(kernel.mean(0)) for kernel, _ in by_hand()).reshape(-1)
  want = np.sort(np.argsort(-scores)[: round(0.1 * 64)])
  np.testing.assert_array_equal(after[SITE].index.value, want)
  np.testing.assert_array_equal(after[SITE].a, before[SITE].a)
  assert not after[SITE].b.any() and not after[SITE].values.any()


def test_the_update_is_a_low_rank_product_and_a_sparse_matrix(found):
  active, kept = split_kept(found[2])
  leaf = combine(shaken(active, 3), kept)[SITE]
  sparse = np.zeros(64)
  sparse[np.asarray(leaf.index.value)] = np.float64(leaf.values)
  want = 1.5 * np.float64(leaf.a) @ np.float64(leaf.b) + sparse.reshape(8, 8)
  np.testing.assert_allclose(PEFT.update({SITE: leaf}, SITE, jnp.ones((8, 8))), want, atol=1e-5)


def test_what_has_no_entries_is_refused():
  for density in (0.0, 1.5):
    with pytest.raises(ValueError, match=r'a density in \(0, 1\]'):
      rosa(density=density)
  with pytest.raises(ValueError, match='rank must be at least 1'):
    rosa(rank=0)
