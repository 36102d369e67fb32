"""PiSSA, against numpy's decomposition and Hugging Face's peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import pissa
from pecft_jax.peft.halves import split_kept


def test_the_factors_are_the_leading_part_of_the_decomposition(tiny):
  peft = pissa('attn/q$', rank=3, alpha=6)  # Scale 2.
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  path = 'block_1/attn/q'
  from pecft_jax.peft.weights import read

  w = np.asarray(read(tiny.params, path).main, np.float64)
  u, s, v = np.linalg.svd(w)
  leaf = delta[path]
  np.testing.assert_allclose(2 * leaf.a @ leaf.b, (u[:, :3] * s[:3]) @ v[:3], atol=1e-4)
  np.testing.assert_allclose(np.square(leaf.a).sum(0), s[:3] / 2, rtol=1e-4)  # sqrt(S / scale).


def test_the_function_is_the_same_at_init_and_changes_with_the_factors(tiny):
  peft = pissa('attn/(q|v)$', rank=2)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  apply = lambda delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  plain = tiny.model.apply(tiny.params, tiny.images).pooled
  np.testing.assert_allclose(apply(delta), plain, atol=1e-5)
  active, kept = split_kept(delta)
  from pecft_jax.peft import combine

  moved = combine(shaken(active, 1), kept)
  assert np.abs(np.asarray(apply(moved) - plain)).max() > 1e-3
  merged = peft.merge(moved, tiny.params)
  np.testing.assert_allclose(tiny.model.apply(merged, tiny.images).pooled, apply(moved), atol=1e-4)


def test_what_is_kept_gets_no_gradient(tiny):
  peft = pissa('attn/q$', rank=2)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  active, kept = split_kept(delta)
  assert len(jax.tree.leaves(active)) == len(jax.tree.leaves(kept))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(active))


def test_a_rank_above_the_weight_is_refused(tiny):
  with pytest.raises(ValueError, match='rank 99 is above the smaller side'):
    pissa('attn/q$', rank=99).init(jax.random.key(0), tiny.model.sites, tiny.params)
