"""Linen modules that know nothing of sites."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.paths import named_leaves
from pecft_jax.peft import bitfit, chain, dora, full, ia3, lora, prefix, ssf
from pecft_jax.peft.linen_bridge import linen_apply, linen_sites


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic=True):
    x = nn.Dropout(0.5, deterministic=deterministic)(nn.gelu(nn.Dense(7)(x)))
    return nn.Dense(5, use_bias=False, dtype=jnp.float32)(x)


class Attention(nn.Module):
  """Written without setup of its own names, as foreign code is."""

  def setup(self):
    self.q, self.k, self.v = nn.Dense(6), nn.Dense(6), nn.Dense(6)
    self.norm = nn.LayerNorm(epsilon=1e-4)
    self.mlp = nn.remat(Mlp)()

  def __call__(self, x):
    x = self.norm(x)
    weights = nn.softmax(self.q(x) @ self.k(x).swapaxes(-1, -2))
    return self.mlp(weights @ self.v(x))


MODEL = Attention()
X = jax.random.normal(jax.random.key(0), (2, 3, 4))
PARAMS = shaken(MODEL.init(jax.random.key(1), X)['params'], 2)
SITES = linen_sites(MODEL, PARAMS, X)


def test_dense_layers_and_norms_are_sites():
  assert {(s.site.kind, s.site.path) for s in SITES} == {
    ('linear', 'q'), ('linear', 'k'), ('linear', 'v'), ('norm', 'norm'),
    ('linear', 'mlp/Dense_0'), ('linear', 'mlp/Dense_1'),
  }  # fmt: skip
  spec = next(s for s in SITES if s.site.path == 'mlp/Dense_0')
  assert [a.shape for a in spec.args] == [(2, 3, 6), (6, 7), (7,)] and spec.out.shape == (2, 3, 7)


@pytest.mark.parametrize(
  'peft',
  [
    lora('^q$|mlp', rank=2),
    dora('^v$|mlp', rank=2),
    ia3('^(k|v)$', 'Dense_1'),
    ssf('^norm|^q|Dense_0'),
    bitfit(),
    chain(a=full(), b=lora('Dense', rank=2)),
  ],
  ids=['lora', 'dora', 'ia3', 'ssf', 'bitfit', 'chain'],
)
def test_sites_equal_merged_weights(peft):
  delta = shaken(peft.init(jax.random.key(3), SITES, PARAMS), 4)

  def loss(delta, params, x):
    y = linen_apply(MODEL, peft)(params, delta, x)
    return (y**2).sum(), y

  grads, y = jax.jit(jax.grad(loss, has_aux=True))(delta, PARAMS, X)
  expected = MODEL.apply({'params': peft.merge(delta, PARAMS)}, X)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  assert np.abs(expected - MODEL.apply({'params': PARAMS}, X)).max() > 1e-2
  for leaf, grad in named_leaves(grads):
    of_key = leaf == 'k/bias' or leaf.endswith('/k/bias')  # Softmax does not see it.
    assert np.isfinite(grad).all() and (np.abs(grad).max() > 1e-4) != of_key, leaf


def test_starts_bit_by_bit_as_the_module():
  peft = lora('q|mlp', rank=2)
  delta = peft.init(jax.random.key(3), SITES, PARAMS)
  expected = MODEL.apply({'params': PARAMS}, X)
  np.testing.assert_array_equal(linen_apply(MODEL, peft)(PARAMS, delta, X), expected)


def test_a_lone_layer_is_a_site():
  layer, peft = nn.Dense(3), lora('', rank=2)
  params = layer.init(jax.random.key(0), X)['params']
  sites = linen_sites(layer, params, X)
  assert [s.site.path for s in sites] == ['']
  delta = shaken(peft.init(jax.random.key(1), sites, params), 2)
  expected = layer.apply({'params': peft.merge(delta, params)}, X)
  np.testing.assert_allclose(linen_apply(layer, peft)(params, delta, X), expected, atol=1e-5)


def test_arguments_of_the_module_come_through():
  params = Mlp().init(jax.random.key(0), X)['params']
  apply = linen_apply(Mlp(), lora('Dense', rank=2))
  delta = lora('Dense', rank=2).init(jax.random.key(0), linen_sites(Mlp(), params, X), params)
  rngs = {'dropout': jax.random.key(1)}
  expected = Mlp().apply({'params': params}, X, deterministic=False, rngs=rngs)
  got = apply(params, delta, X, deterministic=False, rngs=rngs)
  np.testing.assert_array_equal(got, expected)


def test_collections_beside_the_parameters_come_through():
  class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))

  variables = Normalised().init(jax.random.key(0), X)
  extra = {'variables': {'batch_stats': variables['batch_stats']}}
  sites = linen_sites(Normalised(), variables['params'], X, **extra)
  delta = lora('Dense', rank=2).init(jax.random.key(0), sites, variables['params'])
  got = linen_apply(Normalised(), lora('Dense', rank=2))(variables['params'], delta, X, **extra)
  np.testing.assert_array_equal(got, Normalised().apply(variables, X))


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.scan(
      lambda module, x, _: (module(x), None),
      variable_axes={'params': 0}, split_rngs={'params': True}, length=3,
    )  # fmt: skip
    return layer(nn.Dense(4, name='layers'), x, None)[0]


def test_scanned_layers_are_refused():
  params = Scanned().init(jax.random.key(0), X)['params']
  message = r"'layers' is scanned or vmapped: expected a kernel of 2 axes, got \[3, 4, 4\]"
  with pytest.raises(ValueError, match=message):
    linen_sites(Scanned(), params, X)
  with pytest.raises(ValueError, match=message):
    linen_apply(Scanned(), lora())(params, {}, X)


def test_kinds_that_cannot_be_seen_from_outside_find_no_site():
  with pytest.raises(ValueError, match=r"no 'attend' site matches 'attn\$'; sites: \[\]"):
    prefix().init(jax.random.key(0), SITES, PARAMS)
