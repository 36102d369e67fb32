"""LoReFT and DiReFT, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import noise, wide

from pecft_jax.peft import DireftDelta, LoreftDelta, direft, loreft
from pecft_jax.peft.adapters.reft import orthonormal
from pecft_jax.typing import Site

SITE = Site('tokens', 'block_0')
H = noise(2, 3, 8)


def through(peft, leaf):
  return peft.intercept({'block_0': leaf}, SITE, lambda x, mask: x, H, None)


def test_loreft_replaces_a_subspace():
  leaf = LoreftDelta(noise(8, 2, seed=2), noise(8, 2, seed=3), noise(2, seed=4))
  basis = wide(leaf.rotation).copy()  # By Gram and Schmidt.
  basis[:, 0] /= np.linalg.norm(basis[:, 0])
  basis[:, 1] -= basis[:, 0] * (basis[:, 0] @ basis[:, 1])
  basis[:, 1] /= np.linalg.norm(basis[:, 1])
  h = wide(H)
  want = h + (h @ wide(leaf.source) + wide(leaf.bias) - h @ basis) @ basis.T
  got = wide(through(loreft(rank=2), leaf))
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(got @ basis, h @ wide(leaf.source) + wide(leaf.bias), atol=1e-5)
  rest = np.eye(8) - basis @ basis.T
  np.testing.assert_allclose(got @ rest, h @ rest, atol=1e-5)


def test_direft_adds_a_low_rank_map():
  leaf = DireftDelta(noise(8, 2, seed=2), noise(2, seed=3), noise(2, 8, seed=4))
  h = wide(H)
  want = h + (h @ wide(leaf.source) + wide(leaf.bias)) @ wide(leaf.up)
  np.testing.assert_allclose(through(direft(rank=2), leaf), want, atol=1e-5)


def test_orthonormal_columns_stay_as_they_are():
  columns = jnp.asarray(np.linalg.qr(wide(noise(8, 3)))[0] * [-1, 1, -1], jnp.float32)
  np.testing.assert_allclose(orthonormal(columns), columns, atol=1e-6)


@pytest.mark.parametrize('make', [loreft, direft])
def test_there_is_one_leaf_per_block(tiny, make):
  delta = make(rank=2).init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert sorted(delta) == ['block_0', 'block_1', 'block_2']
  assert sum(leaf.size for leaf in jax.tree.leaves(delta['block_1'])) == 2 * 2 * 24 + 2


@pytest.mark.parametrize('make', [loreft, direft])
def test_bad_ranks_are_refused(tiny, make):
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    make(rank=0)
  with pytest.raises(ValueError, match='block_0: rank 25 is above the width of its tokens, 24'):
    make(rank=25).init(jax.random.key(0), tiny.model.sites, tiny.params)
