import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import stack_blocks, unstack_blocks, vit
from pecft_jax.typing import SITE_KINDS


def test_features_have_the_promised_shapes(tiny, params, images):
  features = tiny.apply(params, images)
  assert features.pooled.shape == (5, 20)
  assert features.tokens.shape == (5, 1 + 16, 20)
  np.testing.assert_array_equal(features.pooled, features.tokens[:, 0])


def test_every_kind_of_site_is_there_for_every_block(tiny):
  names = {(spec.site.kind, spec.site.path) for spec in tiny.sites}
  for i in range(3):
    for name in ('q', 'k', 'v', 'out'):
      assert ('linear', f'block_{i}/attn/{name}') in names
    assert {('attend', f'block_{i}/attn'), ('sublayer', f'block_{i}/mlp')} <= names
    assert ('tokens', f'block_{i}') in names
  assert {('linear', 'patch'), ('norm', 'norm'), ('tokens', 'encoder')} <= names
  assert {kind for kind, _ in names} == set(SITE_KINDS)


@pytest.mark.parametrize('rows', [1, 4, 17])
def test_last_block_may_compute_only_the_leading_rows(tiny, params, images, rows):
  whole = tiny.apply(params, images)
  part = tiny.apply(params, images, rows=rows)
  assert part.tokens.shape == (5, rows, 20)
  np.testing.assert_allclose(part.tokens, whole.tokens[:, :rows], atol=1e-6)


@pytest.mark.parametrize('rows', [None, 1])
def test_scan_equals_loop(tiny, params, images, sizes, rows):
  scanned = vit(**sizes, scan=True)
  got = scanned.apply(stack_blocks(params, 3), images, rows=rows).tokens
  np.testing.assert_allclose(got, tiny.apply(params, images, rows=rows).tokens, atol=2e-6)


def test_scan_has_the_sites_of_the_loop(tiny, sizes):
  assert vit(**sizes, scan=True).sites == tiny.sites


def test_unstacking_undoes_stacking(params):
  again = unstack_blocks(stack_blocks(params, 3), 3)
  chex.assert_trees_all_equal(params, again)


@pytest.mark.parametrize('scan', [False, True])
def test_remat_changes_no_gradient(tiny, params, images, sizes, scan):
  policy = jax.checkpoint_policies.dots_saveable
  saved = vit(**sizes, scan=scan, remat=policy)
  weights = stack_blocks(params, 3) if scan else params
  # Not a plain sum, which is constant after a layer normalisation.
  loss = lambda model: lambda p: jnp.cos(model.apply(p, images).pooled).sum()
  got = jax.grad(loss(saved))(weights)
  want = jax.grad(loss(tiny))(params)
  got = unstack_blocks(got, 3) if scan else got
  near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
  jax.tree.map(near, got, want)


def test_split_projections_equal_the_fused_one(tiny, params, images, sizes):
  def split(block):
    qkv = block['attn']['qkv']
    thirds = {n: jax.tree.map(lambda a, i=i: a[i], qkv) for i, n in enumerate('qkv')}
    return {**block, 'attn': {**thirds, 'out': block['attn']['out']}}

  weights = {k: split(v) if k.startswith('block') else v for k, v in params.items()}
  got = vit(**sizes, fused=False).apply(weights, images).tokens
  np.testing.assert_allclose(got, tiny.apply(params, images).tokens, atol=1e-6)


def test_bfloat16_computes_near_float32_and_pools_in_float32(tiny, params, images, sizes):
  features = vit(**sizes, dtype=jnp.bfloat16).apply(params, images)
  assert features.tokens.dtype == jnp.bfloat16
  assert features.pooled.dtype == jnp.float32
  # bfloat16 has 8 bits of mantissa, and the features are of order 1.
  np.testing.assert_allclose(features.pooled, tiny.apply(params, images).pooled, atol=0.1)


def test_an_image_of_another_size_is_refused(tiny, params):
  with pytest.raises(ValueError, match=r'expects images \[24, 24, 2\], got \[32, 32, 2\]'):
    tiny.apply(params, jnp.zeros((1, 32, 32, 2)))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'patch': 5}, 'patch must divide image_size, got 5 and 24'),
    ({'heads': 3}, 'width must be a multiple of heads, got 20 and 3'),
    ({'mean': (0.5,)}, r'expected 2 values for mean, got \(0.5,\)'),
    ({'std': 0.5}, 'std: expected a sequence, got 0.5'),
    ({'std': (0.5, 0.0)}, 'expected positive numbers for std'),
    ({'mean': (0.5, float('nan'))}, 'mean: expected a sequence, each of it a finite number'),
    ({'patch': 0}, 'expected a whole number in 1..2147483647 for patch, got 0'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, change, message):
  with pytest.raises(ValueError, match=message):
    vit(**{**sizes, **change})
