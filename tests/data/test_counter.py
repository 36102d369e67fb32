import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pecft_jax.data.counter import bits, fold_seed, permutation, uniforms


def test_bits_are_those_of_splitmix64():
  # Plain integers, one at a time; the first counter's mix is the generator's definition.
  mask = 2**64 - 1

  def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)

  step = 0x9E3779B97F4A7C15
  for seed in (0, 1, 2**63 + 5, -1):
    state = mix((seed + step) & mask)
    expected = [mix((state + step * (i + 1)) & mask) for i in range(5)]
    assert bits(seed, np.arange(5)).tolist() == expected
  # The published first output for seed 0.
  assert int(bits(0)) == 0xE220A8397B1DCDAF


@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_uniforms_depend_on_the_position_alone(seed, start, count):
  whole = uniforms(seed, np.arange(80), 3)
  np.testing.assert_array_equal(
    uniforms(seed, np.arange(start, start + count), 3), whole[start : start + count]
  )


@pytest.mark.parametrize('seed', range(3))
def test_uniforms_are_uniform_and_uncorrelated(seed):
  n = 20000
  u = uniforms(seed, np.arange(n), 3)
  assert u.dtype == np.float32
  assert u.min() >= 0 and u.max() < 1
  for column in u.T:
    counts = np.bincount((column * 20).astype(int), minlength=20)
    # The one-in-a-million point of chi-squared with 19 degrees of freedom.
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 64.0
  correlations = np.corrcoef(np.concatenate([u[1:], u[:-1]], axis=1).T) - np.eye(6)
  assert np.abs(correlations).max() < 0.035


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_permutations_hold_every_number_once(seed, epoch, n):
  assert sorted(permutation(seed, epoch, n).tolist()) == list(range(n))


def test_permutations_put_every_number_anywhere():
  where = np.array([permutation(0, epoch, 5) for epoch in range(2000)])
  counts = np.array([np.bincount(column, minlength=5) for column in where.T])
  assert np.abs(counts - 400).max() < 80


def test_folded_seeds_differ():
  seeds = {fold_seed(s, a, b) for s in range(4) for a in range(4) for b in range(4)}
  assert len(seeds) == 64
  assert all(0 <= s < 2**63 for s in seeds)
  assert fold_seed(3) != fold_seed(3, 0)
