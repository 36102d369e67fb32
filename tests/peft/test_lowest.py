import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax import peft
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.peft.lowest import asks_below, lowest_block
from pecft_jax.typing import Below

DEPTH = 3


@functools.cache
def model_of(family, scan=False):
  if family == 'decoder':
    return decoder(
      vocabulary=7, width=8, depth=DEPTH, heads=2, kv_heads=1, hidden=8, length=5, pad=0, scan=scan
    )
  return vit(
    image_size=4, channels=1, patch=2, width=8, depth=DEPTH, heads=2, mlp_ratio=1.0,
    mean=(0.5,), std=(0.5,), scan=scan,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('transform', 'lowest'),
  [
    (peft.nothing(), DEPTH),
    (peft.lora('block_1/attn/q|block_2/attn/v', rank=1), 1),
    (peft.lora('patch|block_2', rank=1), 0),
    (peft.select_weights('^norm'), DEPTH),
    (peft.partial(2), 1),
    (peft.fish(), 0),
    (peft.select_weights('block_2/.*bias'), 2),
    (peft.select_weights('block_2/|patch'), 0),
    (peft.at_layers(peft.adaptformer(width=2), [2]), 2),
    (peft.bank(peft.lora('block_2/attn/q', rank=1), 2), 2),
    (peft.chain(a=peft.lora('block_2', rank=1), b=peft.select_weights('block_1/')), 1),
    (peft.vpt_shallow(2), 0),
    (peft.at_layers(peft.prefix(length=2), [1, 2]), 1),
  ],
)
@pytest.mark.parametrize('scan', [False, True])
def test_the_lowest_block_is_that_of_the_lowest_site(transform, lowest, scan):
  assert lowest_block(model_of('vit', scan), transform) == lowest


def test_a_backbone_without_an_entry_is_entered_nowhere():
  backbone = model_of('vit')._replace(entry=None)
  assert lowest_block(backbone, peft.lora('block_2', rank=1)) == 0


def test_a_watch_is_asked_about_the_sites_below():
  on = lambda pattern: lambda site, args, out: out.sum() if pattern in site.path else None
  assert asks_below(on('block_0'), model_of('vit'), 1)
  assert not asks_below(on('block_1'), model_of('vit'), 1)
  assert asks_below(on('patch'), model_of('vit'), 1)


@pytest.mark.parametrize(('family', 'scan'), [('vit', False), ('vit', True), ('decoder', True)])
def test_blocks_from_an_entry_on_give_what_all_of_them_give(family, scan):
  backbone, transform = model_of(family, scan), peft.lora('block_2', rank=2)
  params = jax.jit(backbone.init)(jax.random.key(0))
  delta = transform.init(jax.random.key(1), backbone.sites, params)
  delta = jax.tree.map(lambda leaf: leaf + 0.1, delta)
  x = np.random.default_rng(0).integers(1, 7, (3, *backbone.inputs.shape))
  x = jnp.asarray(x) if family == 'decoder' else jnp.asarray(x, jnp.float32)

  @jax.jit
  def both(params, delta, x):
    below = Below(backbone.entry.below(params, x, 2), 2)
    run = functools.partial(backbone.apply, params, x, delta, peft=transform, rows=1)
    return run().pooled, run(below=below).pooled, backbone.apply(params, x, rows=1).pooled

  whole, entered, bare = both(params, delta, x)
  np.testing.assert_allclose(whole, entered, rtol=1e-6, atol=1e-6)
  assert np.abs(whole - bare).max() > 1e-3
