"""RandLoRA, against numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, run, started, wide

from pecft_jax.peft import RandloraDelta, randlora
from pecft_jax.peft.lowrank.randlora import random_bases


@pytest.mark.parametrize('wide_layer', [False, True])
def test_the_update_is_the_sum_of_rescaled_products(wide_layer):
  peft = randlora('fc', rank=4, alpha=2.0, seed=3)  # Two products of rank 4 for a rank of 6.
  w = jnp.asarray(W.T if wide_layer else W)
  leaf = RandloraDelta(noise(4, 2), noise(2, D_OUT, seed=2))
  small, large = map(wide, random_bases(3, 4, D_OUT, D_IN))
  rows, columns = wide(leaf.rows), wide(leaf.columns)
  changed = np.zeros((D_IN, D_OUT))
  for place in range(8):
    i, j = divmod(place, 2)  # A's products by rank, then basis.
    there, at = divmod(place, 4)  # B's by basis, then rank.
    changed += np.outer(large[:, there, at], rows[i, j] * small[i] * columns[j])
  changed = 0.5 * (changed.T if wide_layer else changed)
  np.testing.assert_allclose(peft.update({'fc': leaf}, 'fc', w), changed, atol=1e-5)
  if not wide_layer:
    np.testing.assert_allclose(run(peft, leaf), wide(X) @ (W + changed) + BIAS, atol=1e-4)


def test_the_update_has_full_rank():
  peft = randlora('fc', rank=2)
  leaf = RandloraDelta(noise(2, 3), noise(3, D_OUT))
  assert np.linalg.matrix_rank(wide(peft.update({'fc': leaf}, 'fc', W)), tol=1e-3) == D_OUT


def test_smaller_bases_are_parts_of_larger_ones():
  a, b = random_bases(0, 2, 6, 10)
  small_a, small_b = random_bases(0, 2, 4, 7)
  np.testing.assert_array_equal(small_a, a[:, :4])
  np.testing.assert_array_equal(small_b, b[:7, :2])
  assert (random_bases(1, 2, 6, 10)[0] != a).any()


def test_bases_have_entries_of_variance_one():
  for base in random_bases(0, 16, 200, 220):
    assert np.var(base) == pytest.approx(1, rel=0.05)


def test_what_is_trained_starts_as_in_the_published_code():
  leaf = started(randlora('fc', rank=4))
  np.testing.assert_array_equal(leaf.rows, np.zeros((4, 2)))
  np.testing.assert_allclose(leaf.columns, np.full((2, D_OUT), 1 / D_OUT))


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    randlora(rank=0)
  with pytest.raises(ValueError, match=r'fc: rank 7 is above the smaller side .* \[10, 6\]'):
    started(randlora('fc', rank=7))
