"""EVA against principal components in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft import calibrated, eva, split_kept, weight_sites
from pecft_jax.peft.lowrank.eva import spread

PATTERN = r'attn/(q|out)$|fc2'


@pytest.fixture(scope='module')
def inputs(tiny):
  """What arrives at each site, in float64: [rows, d_in] by path."""
  watch = lambda site, args, out: args[0] if site.kind == 'linear' else None
  taps = tiny.model.apply(tiny.params, tiny.images, watch=watch).taps
  rows = {at.removeprefix('linear:'): np.float64(x) for at, x in taps.items()}
  return {path: x.reshape(-1, x.shape[-1]) for path, x in rows.items()}


@pytest.fixture(scope='module')
def found(tiny):
  peft = eva(PATTERN, rank=3, rho=1.7)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  batches = [tiny.images[:4], tiny.images[4:]]
  return peft, calibrated(tiny.model, peft, delta, tiny.params, batches)


def decomposed(rows):
  _, s, v = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
  return s**2 / (s**2).sum(), v.T


def test_ranks_go_where_they_explain_most(found, inputs):
  _, delta = found
  shares = {path: decomposed(inputs[path])[0][:5] for path in delta}
  least = np.sort(np.concatenate(list(shares.values())))[::-1][3 * len(delta) - 1]
  for path, leaf in delta.items():
    assert leaf.a.shape[1] == 5  # Of 1.7 x 3.
    assert int(leaf.a.any(0).sum()) == (shares[path] >= least).sum(), path
  assert len({int(leaf.a.any(0).sum()) for leaf in delta.values()}) > 1


def test_columns_are_principal_directions_of_the_inputs(found, inputs):
  _, delta = found
  for path, leaf in delta.items():
    used = int(leaf.a.any(0).sum())
    want = decomposed(inputs[path])[1][:, :used]
    np.testing.assert_allclose(np.abs(want.T @ leaf.a[:, :used]), np.eye(used), atol=2e-3)
    assert not leaf.b.any()


def test_what_a_site_does_not_use_gets_no_gradient(found, tiny):
  peft, delta = found
  path = min(delta, key=lambda path: int(delta[path].a.any(0).sum()))
  used = int(delta[path].a.any(0).sum())
  moved = {
    at: leaf._replace(b=jnp.where(leaf.a.any(0)[:, None], 0.1, 0.0) * jnp.ones_like(leaf.b))
    for at, leaf in delta.items()
  }
  loss = lambda d: jnp.square(tiny.model.apply(tiny.params, tiny.images, d, peft=peft).pooled).sum()
  grads = jax.grad(loss)(moved)[path]
  assert not grads.a[:, used:].any() and not grads.b[used:].any()
  assert used == 0 or grads.b[:used].any()


def test_with_a_rho_of_one_all_sites_have_the_rank(tiny):
  peft = eva('attn/q$', rank=2, rho=1.0)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  after = calibrated(tiny.model, peft, delta, tiny.params, [tiny.images])
  assert all(leaf.a.any(0).all() for leaf in after.values())
  assert not jax.tree.leaves(split_kept(after)[1])


def test_equal_shares_go_to_the_first_sites():
  assert spread([jnp.array([0.5, 0.1]), jnp.array([0.5, 0.1])], 3).tolist() == [[1, 1], [1, 0]]


def test_what_has_no_directions_is_refused():
  with pytest.raises(ValueError, match=r'rho must be at least 1, got 0\.5'):
    eva(rho=0.5)
  params = {'fc': {'w': jnp.ones((3, 4))}}
  with pytest.raises(ValueError, match='fc: expected rho x rank of at most 3, its inputs, got 4'):
    eva('fc', rank=2).init(jax.random.key(0), weight_sites(params), params)
