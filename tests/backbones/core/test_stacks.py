"""Two stacks of blocks in one backbone: transforms on one of them, looped and scanned."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import stack_blocks, unstack_blocks
from pecft_jax.backbones.core.layers import linear
from pecft_jax.backbones.core.sites import find_sites
from pecft_jax.backbones.core.stacks import run_blocks
from pecft_jax.backbones.core.taps import put_on, tap_of
from pecft_jax.inputs import Images
from pecft_jax.peft import at_layers, bitfit, chain, full, lora, merged, partial, vpt_deep
from pecft_jax.typing import Backbone, Features, Site

WIDTH = 6
DEPTHS = {'image': 3, 'text': 2}


def towers(*, scan=False):
  """Two towers over the same tokens; their means are multiplied."""
  shape = (4, WIDTH, 1)

  def run_block(params, tap, at, x, mask, rows):
    def block(x, mask):
      layer = lambda name, x: tap(
        Site('linear', f'{at}/{name}'), linear, x, params[name]['kernel'], params[name]['bias']
      )
      return x + layer('out', jnp.tanh(layer('fc', x) + x.mean(1, keepdims=True)))

    return tap(Site('tokens', at), block, x, mask)

  def init(key):
    def dense(key):
      kernel, bias = jax.random.split(key)
      return {
        'kernel': jax.random.normal(kernel, (WIDTH, WIDTH)) / 2,
        'bias': jax.random.normal(bias, (WIDTH,)),
      }

    params = {}
    for stack, depth in DEPTHS.items():
      keys = jax.random.split(jax.random.fold_in(key, depth), 2 * depth)
      params[stack] = {
        f'block_{i}': {'fc': dense(keys[2 * i]), 'out': dense(keys[2 * i + 1])}
        for i in range(depth)
      }
      params = stack_blocks(params, depth, stack) if scan else params
    return params

  def apply(params, inputs, delta=None, *, peft=None, key=None, rows=None, watch=None):
    delta, params = put_on(peft, delta, params, key)
    taps = {}

    def tower(stack):
      def run(x, mask):
        return run_blocks(
          run_block, params, delta, x, mask, peft=peft, depth=DEPTHS[stack], stack=stack,
          watch=watch, taps=taps,
        )  # fmt: skip

      tap = tap_of(peft, delta, watch, taps, stack=stack)
      return tap(Site('tokens', stack), run, inputs[..., 0], None)

    image, text = tower('image'), tower('text')
    return Features(image.mean(1) * text.mean(1), image, taps)

  sites = towers().sites if scan else find_sites(apply, init, shape)
  spec = Images(shape, (0.5,), (0.5,))
  return Backbone('towers', init, apply, sites, spec, WIDTH, sum(DEPTHS.values()))


LOOP, SCAN = towers(), towers(scan=True)
PARAMS = jax.jit(LOOP.init)(jax.random.key(0))
STACKED = stack_blocks(stack_blocks(PARAMS, 3, 'image'), 2, 'text')
IMAGES = jax.random.normal(jax.random.key(1), (5, 4, WIDTH, 1))


def delta_of(transform):
  delta = transform.init(jax.random.key(2), LOOP.sites, PARAMS)
  return jax.tree.map(lambda a: a + 0.1, delta)


def test_sites_are_named_by_stack_and_layer():
  sites = {spec.site.path: spec.site for spec in LOOP.sites}
  assert sites['text/block_1/fc'] == Site('linear', 'text/block_1/fc', stack='text', layer=1)
  assert sites['image'] == Site('tokens', 'image', stack='image')
  assert len(sites) == 2 + 3 * sum(DEPTHS.values())


def test_stacking_is_undone():
  again = unstack_blocks(unstack_blocks(STACKED, 2, 'text'), 3, 'image')
  chex.assert_trees_all_equal(again, PARAMS)
  chex.assert_trees_all_equal(jax.jit(SCAN.init)(jax.random.key(0)), STACKED)


CASES = {
  'lora in one stack': (
    at_layers(lora('fc$', 2), [0, 1], 'text'),
    ['text/block_0', 'text/block_1'],
  ),
  'lora in both': (at_layers(lora('out$', 2), [1]), ['image/block_1', 'text/block_1']),
  'last block': (partial(1, 'image'), ['image/block_2']),
  'last blocks': (partial(1), ['image/block_2', 'text/block_1']),
  'prompts': (vpt_deep(3, 'image'), ['image/block_0', 'image/block_1', 'image/block_2']),
  'everything': (full(), [f'{s}/block_{i}' for s, depth in DEPTHS.items() for i in range(depth)]),
}


@pytest.mark.parametrize('case', CASES)
def test_a_transform_acts_on_its_stack_alone_looped_or_scanned(case):
  transform, blocks = CASES[case]
  delta = delta_of(transform)
  assert sorted({'/'.join(path.split('/')[:2]) for path in delta}) == blocks
  watch = lambda site, args, out: out.sum() if site.path.endswith('fc') else None
  run = lambda model, params: model.apply(params, IMAGES, delta, peft=transform, watch=watch)
  want, got = run(LOOP, PARAMS), run(SCAN, STACKED)
  assert float(jnp.abs(want.pooled - LOOP.apply(PARAMS, IMAGES).pooled).max()) > 1e-3
  np.testing.assert_allclose(got.pooled, want.pooled, rtol=1e-4, atol=1e-5)
  assert set(got.taps) == set(want.taps) and len(want.taps) == sum(DEPTHS.values())
  for name, value in want.taps.items():
    np.testing.assert_allclose(got.taps[name], value, rtol=1e-4, atol=1e-4)


def test_weights_of_a_stack_are_merged_in_every_storage():
  transform = chain(text=at_layers(lora('fc$', 2), [1], 'text'), biases=bitfit())
  delta = delta_of(transform)
  want = LOOP.apply(PARAMS, IMAGES, delta, peft=transform).pooled
  for model, params in ((LOOP, PARAMS), (SCAN, STACKED)):
    got = model.apply(merged(transform, delta, params).params, IMAGES).pooled
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('transform', 'message'),
  [
    (at_layers(lora('fc$'), [2]), r"no blocks \[2\] in stack 'text'; blocks: \[0, 1\]"),
    (at_layers(lora('fc$'), [0], 'audio'), r"no blocks in a stack 'audio'; stacks: \['image', "),
    (partial(3, 'text'), 'cannot train the last 3 blocks'),
    (partial(1, ''), r"no blocks in a stack ''"),
  ],
)
def test_a_block_or_stack_that_is_not_there_is_refused(transform, message):
  with pytest.raises(ValueError, match=message):
    transform.init(jax.random.key(0), LOOP.sites, PARAMS)
