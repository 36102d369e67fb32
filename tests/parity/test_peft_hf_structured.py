"""Transforms that are neither LoRA nor a scaling, with the same tensors in huggingface/peft."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import (
  BoftDelta,
  C3aDelta,
  FourierftDelta,
  HraDelta,
  LohaDelta,
  LokrDelta,
  LokrFactors,
  OftDelta,
  boft,
  c3a,
  fourierft,
  hra,
  loha,
  lokr,
  oft,
  weight_sites,
)
from pecft_jax.typing import Site

torch = pytest.importorskip('torch')
hf = pytest.importorskip('peft')

D_IN, D_OUT = 48, 32
X = np.random.default_rng(0).normal(size=(4, 5, D_IN)).astype(np.float32)


def adapted(config, noise):
  """Their layer in float32 with noise on every adapter weight, and these by name."""
  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT))
  layer = hf.get_peft_model(model, config).eval().get_base_model()[0]
  found = {}
  for name, p in layer.named_parameters():
    if p.requires_grad:
      p.data += noise * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
      found[name.partition('.')[0]] = p
  return layer, found


def t(p):
  return jnp.asarray(p.detach().numpy()).T


def plain(p):
  return jnp.asarray(p.detach().numpy())


def loha_leaf(p):
  return LohaDelta(*(t(p[f'hada_{name}']) for name in ('w1_b', 'w1_a', 'w2_b', 'w2_a')))


def lokr_leaf(p):
  def factor(name):
    if name in p:
      return t(p[name])
    return LokrFactors(t(p[f'{name}_b']), t(p[f'{name}_a']))

  return LokrDelta(factor('lokr_w1'), factor('lokr_w2'))


def boft_leaf(p):
  return BoftDelta(plain(p['boft_R']), plain(p['boft_s'])[:, 0])


def config(kind, **options):
  return getattr(hf, f'{kind}Config')(target_modules=['0'], **options)


CASES = {
  'loha': (config('LoHa', r=3, alpha=5), loha('fc', 3, 5.0), loha_leaf),
  'loha of a high rank': (config('LoHa', r=8, alpha=5), loha('fc', 8, 5.0), loha_leaf),
  'lokr': (config('LoKr', r=2, alpha=5), lokr('fc', 2, 5.0), lokr_leaf),
  'lokr, both': (
    config('LoKr', r=2, alpha=5, decompose_both=True),
    lokr('fc', 2, 5.0, decompose_both=True),
    lokr_leaf,
  ),
  'lokr of whole factors': (config('LoKr', r=20, alpha=5), lokr('fc', 20, 5.0), lokr_leaf),
  'lokr by a factor': (
    config('LoKr', r=2, alpha=5, decompose_factor=5),
    lokr('fc', 2, 5.0, factor=5),
    lokr_leaf,
  ),
  'lokr by a divisor': (
    config('LoKr', r=2, alpha=5, decompose_factor=16),
    lokr('fc', 2, 5.0, factor=16),
    lokr_leaf,
  ),
  'oft': (config('OFT', oft_block_size=8), oft('fc', 8), lambda p: OftDelta(plain(p['oft_R']))),
  'oft, four terms': (
    config('OFT', oft_block_size=8, num_cayley_neumann_terms=4),
    oft('fc', 8, terms=4),
    lambda p: OftDelta(plain(p['oft_R'])),
  ),
  'oft, exact and shared': (
    config('OFT', oft_block_size=8, use_cayley_neumann=False, block_share=True),
    oft('fc', 8, terms=None, shared=True),
    lambda p: OftDelta(plain(p['oft_R'])),
  ),
  'boft': (config('BOFT', boft_block_size=4), boft('fc', 4), boft_leaf),
  'boft of 3 factors': (
    config('BOFT', boft_block_size=4, boft_n_butterfly_factor=3),
    boft('fc', 4, 3),
    boft_leaf,
  ),
  'hra': (config('HRA', r=6), hra('fc', 6), lambda p: HraDelta(plain(p['hra_u']))),
  'hra of an odd rank': (config('HRA', r=3), hra('fc', 3), lambda p: HraDelta(plain(p['hra_u']))),
  'c3a': (config('C3A', block_size=8), c3a('fc', 8), lambda p: C3aDelta(plain(p['c3a_kernel']))),
  'fourierft': (
    config('FourierFT', n_frequency=100, random_loc_seed=5),
    fourierft('fc', 100, seed=5),
    lambda p: FourierftDelta(plain(p['fourierft_spectrum'])),
  ),
}  # fmt: skip


@pytest.fixture
def several_factors(monkeypatch):
  """Their BOFT with several factors, which it has on a GPU alone: only this part is replaced."""
  from peft.tuners.boft import layer

  def block_diagonal(blocks):
    return torch.stack([torch.block_diag(*each) for each in blocks])

  monkeypatch.setattr(layer, 'get_fbd_cuda', lambda: True)
  monkeypatch.setattr(layer, 'FastBlockDiag', types.SimpleNamespace(apply=block_diagonal))


@pytest.mark.parametrize('case', CASES)
def test_same_outputs_and_gradients(case, several_factors):
  config, peft, leaf = CASES[case]
  layer, found = adapted(config, 0.2)
  delta = leaf(found)
  w, b = t(layer.base_layer.weight), plain(layer.base_layer.bias)
  apply = lambda leaf: peft.intercept({'fc': leaf}, Site('linear', 'fc'), linear, X, w, b)

  expected = layer(torch.tensor(X))
  frozen = layer.base_layer(torch.tensor(X))
  assert (expected - frozen).abs().max() > 0.01
  np.testing.assert_allclose(apply(delta), expected.detach(), atol=1e-5, rtol=1e-5)

  (expected**2).mean().backward()
  grads = jax.grad(lambda leaf: (apply(leaf) ** 2).mean())(delta)
  of_theirs = leaf({name: p.grad for name, p in found.items()})
  for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(of_theirs), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-4)
  assert max(np.abs(grad).max() for grad in jax.tree.leaves(grads)) > 1e-4


@pytest.mark.parametrize('case', CASES)
def test_same_shapes_and_spread_at_init(case, several_factors):
  config, peft, leaf = CASES[case]
  params = {'fc': {'kernel': jnp.zeros((D_IN, D_OUT))}}
  ours = peft.init(jax.random.key(0), weight_sites(params), params)['fc']
  theirs = leaf(adapted(config, 0)[1])
  for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert got.shape == want.shape
    root = lambda a: float(jnp.sqrt(jnp.square(a).mean()))
    assert root(got) == pytest.approx(root(want), rel=0.4)
