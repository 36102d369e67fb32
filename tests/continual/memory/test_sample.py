import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.sample import empty, offer, scattered

from ..tiny import equal

N, WIDTH = 7, 3
ITEM = jnp.zeros(WIDTH), jnp.zeros((), jnp.int32)
step = jax.jit(offer)


def examples(rows):
  """An item that tells its row, in each of its parts."""
  return np.outer(rows, np.ones(WIDTH)).astype(np.float32), rows.astype(np.int32)


def sampled(rows, size=N, batch=5, seed=None):
  """The sample of some rows, in batches padded with rows of other numbers."""
  rows = np.asarray(rows, np.int32)
  rows = rows if seed is None else np.random.default_rng(seed).permutation(rows)
  sample = empty(size, ITEM)
  for part in np.array_split(rows, np.arange(batch, len(rows), batch)):
    padded = np.append(part, 10_000 + np.arange(batch - len(part))).astype(np.int32)
    sample = step(sample, examples(padded), np.arange(batch) < len(part), padded)
  return sample


def rows_of(sample):
  """The rows in a sample; what is stored with a row must be its own."""
  features, labels = (np.asarray(part)[np.asarray(sample.filled)] for part in sample.items)
  np.testing.assert_array_equal(features, np.outer(labels, np.ones(WIDTH)))
  return labels.tolist()


def test_holds_everything_until_it_is_full():
  for count in range(N + 1):
    sample = sampled(range(count))
    assert sorted(rows_of(sample)) == list(range(count))
    assert not any(np.asarray(part)[count:].any() for part in sample.items)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('batch', [1, 4, 11, 60])
def test_no_order_and_no_batching_changes_it(seed, batch):
  equal(sampled(range(50), batch=batch, seed=seed), sampled(range(50)))


def test_is_uniform_over_rows():
  """Rows that follow one another, or one class after another in any short period, are as likely."""
  size, rows = 1000, 5000
  for start in (0, 12_345):
    inside = np.isin(np.arange(start, start + rows), rows_of(sampled(
      range(start, start + rows), size=size, batch=500)))  # fmt: skip
    assert inside.sum() == size
    for period in (2, 3, 10, 64):
      for at in range(period):
        share, count = inside[at::period].mean(), len(inside[at::period])
        # Five standard deviations of a share of 0.2.
        assert abs(share - 0.2) < 5 * 0.4 / count**0.5, (period, at)
    blocks = inside.reshape(10, -1).mean(1)
    assert abs(blocks - 0.2).max() < 5 * 0.4 / 500**0.5


def test_ranks_are_those_of_the_published_hash():
  # From the reference implementation of MurmurHash3's 32-bit finaliser.
  def fmix(h):
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16

  rows = [0, 1, 2, 49_999, 2**31 - 1]
  assert scattered(jnp.asarray(rows)).tolist() == [fmix(row) for row in rows]
  many = np.asarray(scattered(jnp.arange(100_000)))
  assert len(np.unique(many)) == 100_000


def test_a_size_below_one_is_refused():
  with pytest.raises(ValueError, match='size of at least 1, got 0'):
    empty(0, ITEM)
