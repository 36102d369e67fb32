import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.statistics import class_sums, one_hot

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(11, 6)).astype(np.float32)
LABELS = RNG.integers(0, 4, 11).astype(np.int32)
VALID = np.arange(11) % 4 != 3


def test_class_sums_match_numpy():
  sums, counts = class_sums(FEATURES, LABELS, VALID, 7)
  for c in range(7):
    mine = VALID & (c == LABELS)
    np.testing.assert_allclose(sums[c], FEATURES[mine].sum(0), atol=1e-5)
    assert counts[c] == mine.sum()


def test_invalid_rows_have_no_label():
  found = one_hot(LABELS, VALID, 7)
  np.testing.assert_array_equal(found, np.eye(7)[LABELS] * VALID[:, None])


def test_sums_of_half_precision_features_are_single():
  half = FEATURES.astype(np.float16)
  assert class_sums(half, LABELS, VALID, 7)[0].dtype == np.float32


def test_rows_of_different_numbers_are_refused():
  with pytest.raises(AssertionError):
    class_sums(jnp.ones((5, 3)), jnp.zeros(4, jnp.int32), jnp.ones(5, bool), 2)


def test_sums_are_traced_once_for_batches_of_one_shape():
  sums = jax.jit(chex.assert_max_traces(lambda h, y, v: class_sums(h, y, v, 2), n=1))
  for scale in range(3):
    sums(jnp.ones((5, 3)) * scale, jnp.zeros(5, jnp.int32), jnp.ones(5, bool))
