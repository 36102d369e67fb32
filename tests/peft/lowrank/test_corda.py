"""CorDA against the decomposition of W C in float64."""

import jax
import numpy as np
import pytest

from pecft_jax.peft import calibrated, corda, milora, pissa

PATH = 'block_1/mlp/fc2'


@pytest.fixture(scope='module')
def inputs(tiny):
  watch = lambda site, args, out: args[:2] if site.path == PATH and site.kind == 'linear' else None
  x, w = tiny.model.apply(tiny.params, tiny.images, watch=watch).taps[f'linear:{PATH}']
  return np.float64(x).reshape(-1, x.shape[-1]), np.float64(w)


def start_of(tiny, peft):
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  batches = [tiny.images[:3], tiny.images[3:]]
  return calibrated(tiny.model, peft, delta, tiny.params, batches)


@pytest.mark.parametrize(
  ('mode', 'part'), [('instruction', slice(3)), ('knowledge', slice(-3, None))]
)
def test_factors_are_a_part_of_the_decomposition_by_the_inputs(tiny, inputs, mode, part):
  x, w = inputs
  c = x.T @ x / len(x)
  c = c / np.diag(c).mean() + 0.1 * np.eye(len(c))
  u, s, v = np.linalg.svd(c @ w, full_matrices=False)
  want = np.linalg.solve(c, u[:, part] * s[part]) @ v[part]
  leaf = start_of(tiny, corda('fc2', 3, 6.0, mode=mode, damping=0.1))[PATH]
  size = np.abs(want).max()
  np.testing.assert_allclose(2 * leaf.a @ leaf.b, want, atol=2e-3 * size)  # Scale 2.
  np.testing.assert_allclose(np.square(leaf.b).sum(1), s[part] / 2, rtol=2e-3)


@pytest.mark.parametrize('mode', ['instruction', 'knowledge'])
def test_the_function_is_the_same_at_init(tiny, mode):
  peft = corda('attn/q$|fc2', 2, mode=mode)
  delta = start_of(tiny, peft)
  plain = tiny.model.apply(tiny.params, tiny.images).pooled
  got = tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  np.testing.assert_allclose(got, plain, atol=1e-5)


@pytest.mark.parametrize(('mode', 'plain'), [('instruction', pissa), ('knowledge', milora)])
def test_without_a_calibration_it_is_that_of_the_weights(tiny, mode, plain):
  init = lambda peft: peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  for one, other in zip(
    *map(jax.tree.leaves, (init(corda(rank=2, mode=mode)), init(plain(rank=2)))), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_numbers_without_a_meaning_are_refused():
  with pytest.raises(ValueError, match=r'damping must be positive, got 0\.0'):
    corda(damping=0.0)
  with pytest.raises(ValueError, match='mode: expected one of'):
    corda(mode='both')
  with pytest.raises(ValueError, match='examples must be at least 1'):
    corda(examples=0)
