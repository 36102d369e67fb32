from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.moments import no_moments, with_rows

RNG = np.random.default_rng(0)
ROWS, M, C = 23, 6, 4
# As of ReLU features: what the rows have in common is large.
H = (50 + RNG.normal(size=(ROWS, M))).astype(np.float32)
Y = np.eye(C, dtype=np.float32)[RNG.integers(0, C, ROWS)]
VALID = np.arange(ROWS) % 4 != 3

add = jax.jit(with_rows)


FIELDS = 'count', 'mean', 'mean_y', 'gram', 'cross'
Exact = namedtuple('Exact', FIELDS)


def exact(h, y):
  """The moments in float64."""
  h, y = h.astype(np.float64), y.astype(np.float64)
  a, b = h - h.mean(0), y - y.mean(0)
  return Exact(len(h), h.mean(0), y.mean(0), a.T @ a, a.T @ b)


def assert_close(found, want):
  """To 1e-4: floats near 50 are 4e-6 apart, and the deviations of the rows sum up to about 20."""
  for name in FIELDS:
    one, other = getattr(found, name), getattr(want, name)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4, err_msg=name)


def in_parts(order, cuts, block=None):
  moments = no_moments(M, C, block=block)
  for part in np.split(order, np.sort(cuts)):
    if len(part):
      moments = add(moments, H[part], Y[part], VALID[part])
  return moments


@pytest.mark.parametrize('block', [None, 3, 4])
def test_moments_match_numpy_in_float64(block):
  assert_close(add(no_moments(M, C, block=block), H, Y, VALID), exact(H[VALID], Y[VALID]))


def test_blocks_change_no_digit():
  """To rounding: one matrix against blocks that divide it, and blocks that do not."""
  order = np.arange(ROWS)
  one = in_parts(order, [7, 12]).gram
  for block in (2, 4):
    some = in_parts(order, [7, 12], block)
    np.testing.assert_allclose(some.gram, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('seed', range(10))
def test_neither_order_nor_batches_matter(seed):
  rng = np.random.default_rng(seed)
  found = in_parts(rng.permutation(ROWS), rng.integers(0, ROWS, 3))
  assert_close(found, exact(H[VALID], Y[VALID]))


def test_classes_one_after_the_other_are_no_worse():
  assert_close(in_parts(np.argsort(Y.argmax(1)), np.arange(ROWS)), exact(H[VALID], Y[VALID]))


@pytest.mark.parametrize('before', [0, 5])
def test_a_batch_without_a_valid_row_changes_nothing(before):
  moments = no_moments(M, C)
  if before:
    moments = add(moments, H[:before], Y[:before], np.ones(before, bool))
  after = add(moments, H, Y, np.zeros(ROWS, bool))
  for one, other in zip(after, moments, strict=True):
    np.testing.assert_array_equal(one, other)


def test_the_gram_matrix_keeps_digits_that_a_plain_one_loses():
  """The entries are a millionth of those of the plain one."""
  h = (1000 + RNG.normal(size=(200, M))).astype(np.float32)
  y = np.zeros((200, C), np.float32)
  want = exact(h, y).gram
  found = no_moments(M, C)
  for part in np.split(np.arange(200), 8):
    found = add(found, h[part], y[part], np.ones(len(part), bool))
  plain = jnp.matmul(h.T, h, precision='highest') - 200 * np.outer(found.mean, found.mean)
  error = lambda gram: np.abs(np.asarray(gram, np.float64) - want).max() / np.abs(want).max()
  assert error(found.gram) < 1e-4
  assert error(plain) > 1e-2
