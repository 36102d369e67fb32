"""A transform for each group of blocks."""

import jax
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.backbones import vit
from pecft_jax.paths import named_leaves
from pecft_jax.peft import (
  at_layers,
  chain,
  in_groups,
  ln_tuning,
  lora,
  nothing,
  prefix,
  s4,
  spindle,
)


@pytest.mark.parametrize(
  ('depth', 'groups', 'sizes'),
  [(12, 4, [2, 4, 4, 2]), (24, 4, [4, 8, 8, 4]), (4, 4, [1] * 4), (7, 4, [1, 3, 2, 1]),
   (12, 2, [6, 6]), (12, 1, [12]), (12, 3, [3, 6, 3])],
)  # fmt: skip
def test_a_spindle_is_thicker_between_its_ends(depth, groups, sizes):
  assert spindle(depth, groups) == sizes


def test_it_equals_a_chain_over_the_layers_of_each_group(tiny):
  peft = in_groups(lora(rank=2), prefix(length=2), sizes=[1, 2])
  start = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  assert sorted(start['group_1']) == ['block_0/attn/q', 'block_0/attn/v']
  assert sorted(start['group_2']) == ['block_1/attn', 'block_2/attn']
  delta = shaken(start, 1)
  other = chain(group_1=at_layers(lora(rank=2), [0]), group_2=at_layers(prefix(length=2), [1, 2]))
  apply = lambda model, params, peft: model.apply(params, tiny.images, delta, peft=peft).pooled
  want = apply(tiny.model, tiny.params, other)
  np.testing.assert_array_equal(apply(tiny.model, tiny.params, peft), want)
  got = apply(tiny.stacked, tiny.stacked_params, peft)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_weights_of_other_groups_stay_as_they_are(tiny):
  peft = in_groups(nothing(), ln_tuning(), nothing())
  delta = shaken(peft.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)
  merged = peft.merge(delta, tiny.params)
  pairs = zip(named_leaves(merged), jax.tree.leaves(tiny.params), strict=True)
  changed = {name.split('/')[0] for (name, new), old in pairs if new is not old}
  assert changed == {'block_1'}


def test_s4_has_four_groups():
  model = vit(image_size=4, channels=1, patch=2, width=8, depth=6, heads=2, mean=(0.5,), std=(0.5,))
  params = jax.eval_shape(model.init, jax.random.key(0))
  delta = jax.eval_shape(lambda params: s4().init(jax.random.key(0), model.sites, params), params)
  found = {name: (sorted(group), blocks(group)) for name, group in delta.items()}
  assert found == {
    'group_1': (['adapters', 'low_rank'], {'block_0'}),
    'group_2': (['adapters', 'prefix'], {'block_1', 'block_2'}),
    'group_3': (['adapters', 'biases', 'prefix'], {'block_3', 'block_4'}),
    'group_4': (['biases', 'low_rank', 'prefix'], {'block_5'}),
  }


def blocks(group):
  return {path.split('/')[0] for part in group.values() for path in part}


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: in_groups(), 'needs a transform for each group'),
    (
      lambda: in_groups(lora(), sizes=[1, 2]),
      r'sizes of 1 groups, one for .* got \[1, 2\]',
    ),
    (lambda: in_groups(lora(), lora(), sizes=[3, 0]), 'sizes must be at least 1, got 0'),
    (lambda: spindle(3), 'at least as many blocks as groups, got 3 and 4'),
  ],
)
def test_bad_groups_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_sizes_must_be_those_of_the_model(tiny):
  peft = in_groups(lora(), lora(), sizes=[1, 1])
  with pytest.raises(ValueError, match=r'add up to 3 blocks, got \[1, 1\]'):
    peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
