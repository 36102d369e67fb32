"""Chains, layers, banks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import (
  at_layers,
  bank,
  bitfit,
  bottleneck,
  chain,
  dora,
  full,
  ia3,
  linear_probe,
  lora,
  merge_error,
  mix,
  prefix,
  prompt,
  select_weights,
  ssf,
  take,
  vera,
  vpt_deep,
)


def pooled(tiny, peft, delta):
  return tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled


def started(tiny, peft):
  return shaken(peft.init(jax.random.key(3), tiny.model.sites, tiny.params), 4, 0.1)


def test_chains_are_associative(tiny):
  a, b, c = lora(rank=2), prompt(length=3), bottleneck('mlp$', 5)
  left = chain(ab=chain(a=a, b=b), c=c)
  right = chain(a=a, bc=chain(b=b, c=c))
  d = started(tiny, chain(a=a, b=b, c=c))
  x = pooled(tiny, left, {'ab': {'a': d['a'], 'b': d['b']}, 'c': d['c']})
  y = pooled(tiny, right, {'a': d['a'], 'bc': {'b': d['b'], 'c': d['c']}})
  np.testing.assert_array_equal(x, y)
  np.testing.assert_array_equal(x, pooled(tiny, chain(a=a, b=b, c=c), d))


def test_the_first_of_a_chain_is_innermost(tiny):
  scaled = ssf('fc1$|ln1$')
  inner, outer = chain(scale=scaled, add=lora('fc1$')), chain(add=lora('fc1$'), scale=scaled)
  d = started(tiny, inner)
  only = pooled(tiny, scaled, d['scale'])
  assert np.abs(pooled(tiny, inner, d) - pooled(tiny, outer, d)).max() > 1e-4
  assert np.abs(pooled(tiny, inner, d) - only).max() > 1e-4


CHAINS = {
  'two loras': lambda: chain(a=lora(rank=2), b=lora('attn|mlp', rank=3)),
  'scale of lora': lambda: chain(a=lora(), b=ssf()),
  'lora of scale': lambda: chain(a=ssf(), b=lora()),
  'lora of scaled input': lambda: chain(a=lora('fc2'), b=ia3()),
  'dora first': lambda: chain(a=dora(), b=lora()),
  'scale of selected': lambda: chain(a=ssf(), b=bitfit()),
  'selected before, within a chain': lambda: chain(a=chain(s=ssf(), l=lora()), b=chain(f=full())),
  'bank': lambda: bank(lora(rank=2), 3),
}


@pytest.mark.parametrize('name', CHAINS)
def test_chains_merge_exactly(tiny, name):
  peft = CHAINS[name]()
  error = merge_error(tiny.model.apply, peft, started(tiny, peft), tiny.params, tiny.images)
  assert error < 2e-5


def test_a_chain_with_tokens_does_not_merge():
  assert chain(a=lora(), b=prefix()).merge is None
  assert at_layers(vpt_deep(), [0]).merge is None


def test_only_selective_transforms_count_as_selective():
  assert full().selective and chain(a=full(), b=bitfit()).selective and bank(full(), 2).selective
  assert at_layers(full(), [0]).selective
  others = (lora(), prefix(), linear_probe(), chain(a=full(), b=lora()))
  assert not any(part.selective for part in others)


def test_a_chain_needs_a_part():
  with pytest.raises(ValueError, match='needs at least one named transform'):
    chain()


def test_a_missing_layer_is_refused_with_those_there_are(tiny):
  with pytest.raises(ValueError, match=r'no blocks \[3\]; blocks: \[0, 1, 2\]'):
    at_layers(lora(), [0, 3]).init(jax.random.key(0), tiny.model.sites, tiny.params)


def test_layers_nest(tiny):
  peft = at_layers(at_layers(select_weights('bias$'), [1, 2]), [0, 1, 2])
  delta = peft.init(jax.random.key(0), tiny.stacked.sites, tiny.stacked_params)
  assert {name.split('/')[0] for name in delta} == {'block_1', 'block_2'}


@pytest.mark.parametrize(
  ('peft', 'kind'),
  [
    (lora('query'), 'linear'),
    (dora('query'), 'linear'),
    (vera('query'), 'linear'),
    (ia3('query'), 'linear'),
    (ssf('query'), 'linear'),
    (bottleneck('query', 3), 'sublayer'),
    (prefix('query'), 'attend'),
    (prompt('query'), 'tokens'),
  ],
)
def test_an_unmatched_pattern_lists_the_sites(tiny, peft, kind):
  with pytest.raises(ValueError, match=rf"no '{kind}' site matches 'query'; sites: \['"):
    peft.init(jax.random.key(0), tiny.model.sites, tiny.params)


def test_all_slots_of_a_bank_act(tiny):
  peft = bank(lora(rank=2), 2)
  d = started(tiny, peft)
  by_hand = chain(a=lora(rank=2), b=lora(rank=2))
  x = pooled(tiny, by_hand, {'a': take(d, 0), 'b': take(d, 1)})
  np.testing.assert_allclose(pooled(tiny, peft, d), x, atol=1e-6)


def test_examples_pick_slots_under_vmap(tiny):
  one, several = lora(rank=2), bank(lora(rank=2), 3)
  d = started(tiny, several)
  slots = jnp.array([2, 0, 1, 1, 2, 0, 0])

  def apply(delta, image):
    return tiny.model.apply(tiny.params, image[None], delta, peft=one).pooled[0]

  y = jax.jit(jax.vmap(apply))(take(d, slots), tiny.images)
  for i, slot in enumerate(slots):
    np.testing.assert_allclose(y[i], pooled(tiny, one, take(d, slot))[i], atol=2e-5)


def test_mixing_is_the_weighted_sum_of_slots(tiny):
  d = started(tiny, bank(lora(rank=2), 3))
  mixed = mix(d, jnp.array([0.0, 1.0, 0.0]))
  chex.assert_trees_all_close(mixed, take(d, 1), atol=1e-6)


def test_a_bank_needs_a_slot():
  with pytest.raises(ValueError, match='at least one slot, got size=0'):
    bank(lora(), 0)
