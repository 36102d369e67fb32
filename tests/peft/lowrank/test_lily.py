"""Lily, against numpy in float64 and huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import BIAS, D_IN, D_OUT, W, X, noise, wide
from tiny_vit import shaken

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import LilyDelta, LilyShared, lily, weight_sites
from pecft_jax.typing import Kept, Site

SITE = Site('linear', 'block_1/fc')
SHARED = LilyShared(noise(2, D_IN, 4), noise(3, 4, D_OUT, seed=2))
DELTA = {
  'lily': {'fc': SHARED},
  SITE.path: LilyDelta(noise(4, 3, seed=3), Kept(jnp.asarray(1, jnp.int32))),
}
every_over = pytest.mark.parametrize('over', ['token', 'batch'])


def through(delta, over, x=X, scale=2.0):
  peft = lily('fc', 4, 3, scale=scale, over=over)
  return peft.intercept(delta, SITE, linear, x, W, BIAS)


@every_over
def test_experts_are_mixed_by_the_router(over):
  h = wide(X) @ wide(SHARED.a[1])
  scores = np.exp(h @ wide(DELTA[SITE.path].router))
  mixture = scores / scores.sum(-1, keepdims=True)
  if over == 'batch':
    mixture = np.broadcast_to(mixture.mean((0, 1)), mixture.shape)
  update = np.einsum('bte,btr,ero->bto', mixture, h, wide(SHARED.b))
  np.testing.assert_allclose(through(DELTA, over), X @ W + BIAS + 2 * update, atol=1e-4)


def test_layers_share_experts_and_some_the_first_factor(tiny):
  peft = lily(rank=2, experts=3, stride=2)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert {name: own.a.shape for name, own in delta['lily'].items()} == {
    'attn/q': (2, 24, 2), 'attn/v': (2, 24, 2)
  }  # fmt: skip
  groups = [int(delta[f'block_{i}/attn/v'].group.value) for i in range(3)]
  assert groups == [0, 0, 1]
  shared = delta['lily']['attn/q']
  assert np.abs(shared.a[0] - shared.a[1]).max() > 0.1 and not shared.b.any()


def test_a_shared_factor_learns_from_all_its_layers(tiny):
  peft = lily(rank=2, stride=3)
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)

  def loss(a, path):
    shared = {**delta['lily'], 'attn/v': delta['lily']['attn/v']._replace(a=a)}
    own = {**delta, 'lily': shared}
    alone = {name: own[name] for name in own if name in ('lily', path) or path is None}
    out = tiny.model.apply(tiny.params, tiny.images, alone, peft=peft).pooled
    return jnp.square(out - 1).mean()

  a = delta['lily']['attn/v'].a
  grads = [
    np.abs(jax.grad(loss)(a, path)).max()
    for path in (None, *(f'block_{i}/attn/v' for i in range(3)))
  ]
  assert min(grads) > 1e-4


def test_weights_of_one_name_have_one_shape():
  params = {f'block_{i}': {'fc': {'kernel': jnp.ones((3, 2 + i))}} for i in range(2)}
  with pytest.raises(ValueError, match=r'fc: expected weights of one shape .*\(3, 3\)\]'):
    lily('fc', 2).init(jax.random.key(0), weight_sites(params), params)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='experts must be at least 2, got 1'):
    lily(experts=1)
  with pytest.raises(ValueError, match='stride must be at least 1, got 0'):
    lily(stride=0)
  with pytest.raises(ValueError, match=r"over: expected one of \['token', 'batch'\]"):
    lily(over='example')


@every_over
def test_outputs_and_gradients_are_those_of_peft(over):
  torch = pytest.importorskip('torch')
  hf = pytest.importorskip('peft')
  model = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT))
  config = hf.LilyConfig(r=4, num_B=3, scaling=2.0, target_modules=['0'])
  layer = hf.get_peft_model(model, config).get_base_model()[0]
  parts = {name: getattr(layer, f'lily_{name}')['default'].weight for name in ('A', 'B', 'router')}
  with torch.no_grad():
    layer.base_layer.weight[:] = torch.tensor(W.T.copy())
    layer.base_layer.bias[:] = torch.tensor(BIAS)
    for name, own in {
      'A': SHARED.a[1].T, 'B': SHARED.b.reshape(12, -1), 'router': DELTA[SITE.path].router.T
    }.items():  # fmt: skip
      parts[name][:] = torch.tensor(np.array(own))
  x = torch.tensor(X)
  # One token is a batch of its own.
  tokens = [x] if over == 'batch' else [x[b : b + 1, t : t + 1] for b, t in np.ndindex(2, 3)]
  outs = [layer(each) for each in tokens]
  want = torch.cat([out.reshape(-1, D_OUT) for out in outs]).reshape(2, 3, D_OUT)
  np.testing.assert_allclose(through(DELTA, over), want.detach().numpy(), atol=1e-4)
  want.square().sum().backward()

  def loss(shared, router):
    own = DELTA[SITE.path]._replace(router=router)
    delta = {'lily': {'fc': shared}, SITE.path: own}
    return jnp.square(through(delta, over)).sum()

  shared, router = jax.grad(loss, (0, 1))(SHARED, DELTA[SITE.path].router)
  assert not shared.a[0].any()
  for name, own in {'A': shared.a[1].T, 'B': shared.b.reshape(12, -1), 'router': router.T}.items():
    theirs = parts[name].grad.numpy()
    np.testing.assert_allclose(own, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
