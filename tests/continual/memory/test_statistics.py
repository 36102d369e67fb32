import numpy as np
import pytest

from pecft_jax.continual.memory.statistics import class_sums, gram, one_hot

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


def test_gram_matches_numpy_and_is_symmetric():
  found = np.asarray(gram(FEATURES, VALID))
  np.testing.assert_allclose(found, FEATURES[VALID].T @ FEATURES[VALID], atol=1e-5)
  np.testing.assert_allclose(found, found.T)


@pytest.mark.parametrize('seed', range(10))
def test_gram_does_not_depend_on_order_or_batches(seed):
  rng = np.random.default_rng(seed)
  order = rng.permutation(11)
  cuts = np.sort(rng.integers(0, 11, 2))
  parts = np.split(order, cuts)
  total = sum(np.asarray(gram(FEATURES[p], VALID[p])) for p in parts if len(p))
  np.testing.assert_allclose(total, gram(FEATURES, VALID), rtol=1e-5, atol=1e-5)


def test_sums_of_half_precision_features_are_single():
  half = FEATURES.astype(np.float16)
  assert gram(half, VALID).dtype == np.float32
  assert class_sums(half, LABELS, VALID, 7)[0].dtype == np.float32
