"""Arithmetic of deltas, against numpy in float64 and huggingface/peft."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft import (
  LoraDelta,
  concatenated,
  dropped,
  elected,
  pruned,
  recompressed,
  weighted,
)
from pecft_jax.typing import Kept

WEIGHTS = (0.7, -1.5, 0.25)


def rand(key, *shape):
  return jax.random.normal(jax.random.key(key), shape)


@functools.cache
def deltas(ranks=(2, 2, 2)):
  """Deltas at two sites of different sizes."""
  made = lambda n, r: {
    'fc': LoraDelta(rand(n, 7, r), rand(n + 10, r, 5)),
    'q': LoraDelta(rand(n + 20, 3, r), rand(n + 30, r, 11)),
  }
  return [made(n, r) for n, r in enumerate(ranks)]


def product(part):
  return np.asarray(part.a, np.float64) @ np.asarray(part.b, np.float64)


def test_a_weighted_sum_is_one_of_leaves():
  found = weighted(deltas(), WEIGHTS)
  want = sum(w * np.asarray(d['q'].b, np.float64) for w, d in zip(WEIGHTS, deltas(), strict=True))
  np.testing.assert_allclose(found['q'].b, want, atol=1e-6)


def test_what_is_kept_is_that_of_the_first():
  ones = [{'a': jnp.ones(2) * n, 'mask': Kept(jnp.arange(2) + n)} for n in range(2)]
  for found in (weighted(ones, [1, 1]), elected(ones, [1, 1]), pruned(ones[0], 0.5)):
    assert found['mask'].value.tolist() == [0, 1]


def test_products_add_up_when_ranks_do():
  found = concatenated(deltas((2, 3, 1)), WEIGHTS)
  assert found['fc'].a.shape == (7, 6)
  for site in ('fc', 'q'):
    want = sum(w * product(d[site]) for w, d in zip(WEIGHTS, deltas((2, 3, 1)), strict=True))
    np.testing.assert_allclose(product(found[site]), want, atol=1e-5)


@pytest.mark.parametrize('rank', [1, 2, 4, 6])
def test_a_lower_rank_is_that_of_the_largest_singular_values(rank):
  wide = concatenated(deltas(), WEIGHTS)
  slim = recompressed(wide, rank)
  for site, part in slim.items():
    u, s, v = np.linalg.svd(product(wide[site]), full_matrices=False)
    want = (u[:, :rank] * s[:rank]) @ v[:rank]
    np.testing.assert_allclose(product(part), want, atol=2e-5)
    assert part.a.shape[1] == rank


def test_entries_that_are_left_keep_the_mean():
  found = dropped(jax.random.key(0), {'a': jnp.ones((100, 100)), 'b': jnp.ones((100, 100))}, 0.2)
  np.testing.assert_allclose(np.unique(found['a']), [0, 5], atol=1e-6)
  np.testing.assert_allclose(found['a'].mean(), 1, atol=0.1)
  assert not np.array_equal(found['a'], found['b'])


def test_bfloat16_stays():
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), deltas()[0])
  for found in (weighted([half], [2.0]), recompressed(half, 1), pruned(half, 0.5)):
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {'bfloat16'}


@pytest.mark.parametrize('density', [1.0, 0.5, 0.21])
@pytest.mark.parametrize('by', ['total', 'frequency'])
def test_merges_are_those_of_hugging_face(density, by):
  torch = pytest.importorskip('torch')
  theirs = pytest.importorskip('peft.utils.merge_utils')
  tensors = [torch.tensor(np.asarray(d['fc'].a)) for d in deltas()]
  weights = torch.tensor(WEIGHTS)
  few = [pruned(each, density) for each in deltas()]
  want = theirs.ties(tensors, weights, density, by)
  np.testing.assert_allclose(elected(few, WEIGHTS, by)['fc'].a, want, atol=1e-6)
  want = theirs.magnitude_prune(tensors, weights, density)
  np.testing.assert_allclose(weighted(few, WEIGHTS)['fc'].a, want, atol=1e-6)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: weighted([], []), 'at least one'),
    (lambda: weighted(deltas(), [1.0]), 'got 3 and 1'),
    (lambda: weighted([deltas()[0], deltas((2, 3, 1))[1]], [1, 1]), "'fc/a' is"),
    (lambda: elected(deltas(), WEIGHTS, 'most'), "'total' or 'frequency'"),
    (lambda: pruned(deltas()[0], 0.0), 'got 0.0'),
    (lambda: dropped(jax.random.key(0), deltas()[0], 1.5), 'got 1.5'),
    (lambda: concatenated([{'fc': jnp.ones(2)}], [1.0]), 'a delta of lora'),
    (lambda: concatenated([deltas()[0], {'fc': deltas()[1]['fc']}], [1, 1]), 'other sites'),
    (lambda: recompressed(deltas()[0], 3), "from 1 to 2 at 'fc', got 3"),
  ],
)
def test_mistakes_are_told(call, words):
  with pytest.raises(ValueError, match=words):
    call()
