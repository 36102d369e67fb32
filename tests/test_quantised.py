import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax import peft
from pecft_jax.backbones import architecture, decoder, pretrained, quantised, vit
from pecft_jax.backbones.core.stacks import stack_blocks
from pecft_jax.paths import named_leaves, tree_bytes
from pecft_jax.quantised import NF4, dequantised, int8, nf4
from pecft_jax.typing import Pretrained

DRAWN = np.random.default_rng(0).normal(size=(3, 70, 50)).astype(np.float32)


def test_the_values_of_nf4_are_quantiles_of_the_normal_distribution():
  # By the published construction: 8 quantiles above zero, 7 below, and zero.
  inverse = statistics.NormalDist().inv_cdf
  above = [inverse(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
  below = [-inverse(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
  found = np.sort([*above, 0.0, *below]) / max(above)
  np.testing.assert_allclose(NF4, found, atol=1e-6)


def test_nf4_is_the_nearest_value_of_each_block():
  got = np.asarray(nf4(jnp.asarray(DRAWN)).dense())
  for w, dense in zip(DRAWN, got, strict=True):
    flat = np.pad(w.reshape(-1).astype(np.float64), (0, -w.size % 64)).reshape(-1, 64)
    largest = np.abs(flat).max(1)
    away = largest - largest.mean()
    step = np.abs(away).max() / 127  # Fewer than 256 blocks: one step for all.
    scales = np.round(away / step) * step + largest.mean()
    nearest = np.abs((flat / scales[:, None])[..., None] - np.array(NF4)).argmin(-1)
    want = (np.array(NF4)[nearest] * scales[:, None]).reshape(-1)[: w.size].reshape(w.shape)
    # A number between two values may be rounded either way.
    assert (np.abs(dense - want) < 1e-5).mean() > 0.999


def test_int8_is_within_half_a_step():
  got = np.asarray(int8(jnp.asarray(DRAWN)).dense())
  assert (np.abs(got - DRAWN) <= np.abs(DRAWN).max(1, keepdims=True) / 254 + 1e-6).all()


@pytest.fixture(scope='module')
def model():
  backbone = vit(
    image_size=4, channels=1, patch=2, width=16, depth=2, heads=2, mean=(0.5,), std=(0.5,)
  )
  return Pretrained(backbone, jax.jit(backbone.init)(jax.random.key(0)))


@pytest.mark.parametrize('form', ['bf16', 'int8', 'nf4'])
@pytest.mark.parametrize(
  'transform',
  [
    peft.chain(a=peft.dora('attn/q', rank=2), b=peft.adaptformer(width=2), c=peft.bitfit()),
    peft.lora('attn|mlp', rank=2),
    peft.chain(a=peft.pissa('fc1', rank=2), b=peft.ia3(), c=peft.prefix(length=2)),
  ],
  ids=['dora', 'lora', 'pissa'],
)
def test_gradients_are_those_beside_the_dense_weights(model, form, transform):
  small = quantised(model, form).params
  wide = dequantised(small, jnp.float32)
  delta = transform.init(jax.random.key(1), model.backbone.sites, small)
  delta = jax.tree.map(lambda a: a + 0.1 if a.dtype == jnp.float32 else a, delta)
  active, kept = peft.split_kept(delta)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 1)), jnp.float32)

  @jax.jit
  def run(active, params):
    def loss(active):
      both = peft.combine(active, kept)
      return jnp.square(model.backbone.apply(params, x, both, peft=transform).pooled).sum()

    return jax.value_and_grad(loss)(active)

  for got, want in zip(*map(jax.tree.leaves, (run(active, small), run(active, wide))), strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_stacked_layers_are_quantised_one_by_one(model):
  stacked = model._replace(params=stack_blocks(model.params, 2))
  one = dequantised(quantised(model, 'nf4').params, jnp.float32)
  two = dequantised(quantised(stacked, 'nf4').params, jnp.float32)
  for (_, a), (_, b) in zip(named_leaves(stack_blocks(one, 2)), named_leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_weights_take_fewer_bytes_and_the_identity_says_so():
  model = pretrained('vit_glyphs16')
  bits = {}
  for form in ('bf16', 'int8', 'nf4'):
    found = quantised(model, form)
    assert found.identity['frozen_weights'] == form
    assert 'backbone_sha256' not in found.identity
    kernel = found.params['block_0']['mlp']['fc1']['kernel']
    bits[form] = 8 * tree_bytes(kernel) / model.params['block_0']['mlp']['fc1']['kernel'].size
  assert bits['bf16'] == 16
  assert bits['int8'] < 8.5
  assert bits['nf4'] < 4.2


SMOLLM2 = dict(vocabulary=49152, width=576, depth=30, heads=9, kv_heads=3, hidden=1536, length=8)
SIZES = {
  'ViT-B/16': architecture('vit_base_patch16_224'),
  'SmolLM2-135M': decoder(**SMOLLM2),
  'Llama 3.2 1B': architecture('llama_3.2_1b', length=8),
}


@pytest.mark.parametrize('name', SIZES)
def test_the_bytes_of_the_guide_are_those_of_the_shapes(name):
  """In MiB: as they are, by form, and with a float for each block of 64 numbers."""
  backbone = SIZES[name]
  params = jax.eval_shape(backbone.init, jax.random.key(0))
  stored = lambda form: jax.eval_shape(
    lambda params: quantised(Pretrained(backbone, params), form).params, params
  )
  inside = sum(
    leaf.size
    for path, leaf in named_leaves(params)
    if path.startswith('block') and path.endswith('/kernel')
  )
  whole = tree_bytes(params)
  sizes = [whole, *(tree_bytes(stored(form)) for form in ('bf16', 'int8', 'nf4'))]
  sizes.insert(3, whole - 4 * inside + inside // 2 + 4 * inside // 64)
  guide = (pathlib.Path(__file__).parents[1] / 'experiments/guides/faq.md').read_text()
  assert f'| {name} | {" | ".join(f"{size / 2**20:.1f}" for size in sizes)} |' in guide


@pytest.mark.parametrize('form', ['bf16', 'int8', 'nf4'])
def test_buffers_have_the_bytes_of_the_shapes(model, form):
  shapes = jax.eval_shape(
    lambda params: quantised(model._replace(params=params), form).params, model.params
  )
  buffers = jax.tree.leaves(quantised(model, form).params)
  assert sum(leaf.on_device_size_in_bytes() for leaf in buffers) == tree_bytes(shapes)


def test_quantised_weights_are_not_changed(model):
  small = quantised(model, 'int8')
  lora = peft.lora('attn/q', rank=2)
  delta = lora.init(jax.random.key(1), model.backbone.sites, small.params)
  with pytest.raises(ValueError, match=r'quantised.*dequantised\(params, dtype\)'):
    peft.merged(lora, delta, small.params)
  assert peft.merged(lora, delta, dequantised(small.params, jnp.float32)).originals
  with pytest.raises(ValueError, match='quantised, and cannot be trained'):
    peft.select_weights('block_1').init(jax.random.key(1), model.backbone.sites, small.params)
  with pytest.raises(ValueError, match='are quantised: start from float'):
    quantised(small, 'nf4')
  with pytest.raises(ValueError, match='expected a form'):
    quantised(model, 'int4')
