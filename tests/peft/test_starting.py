"""Transforms that start from a delta that there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import tiny_peft
from tiny_vit import shaken

from pecft_jax.about import tinies
from pecft_jax.peft import PEFTS, lora, starting_from


def given(tiny, peft, seed=0):
  return shaken(peft.init(jax.random.key(seed), tiny.model.sites, tiny.params), 1, 0.1)


@pytest.mark.parametrize('name', list(tinies(PEFTS)))
def test_every_transform_starts_from_its_own_delta(tiny, name):
  peft = tiny_peft(name)
  delta = given(tiny, peft)
  found = starting_from(delta, peft).init(jax.random.key(9), tiny.model.sites, tiny.params)
  assert jax.tree.structure(found) == jax.tree.structure(delta)
  jax.tree.map(np.testing.assert_array_equal, found, delta)


def test_what_it_started_from_counts_for_the_identity(tiny):
  peft = lora('fc1$', rank=2)
  one, same, other = (starting_from(given(tiny, peft, seed), peft) for seed in (0, 0, 1))
  assert one.settings == same.settings != other.settings


@pytest.mark.parametrize(
  ('peft', 'words'),
  [
    (lora('fc1$', rank=3), r'expected \[24, 3\] float32 at .*got \[24, 2\]'),
    (lora('(fc1|out)$', rank=2), 'got no such leaf'),
  ],
)
def test_a_delta_of_another_transform_is_refused(tiny, peft, words):
  delta = given(tiny, lora('fc1$', rank=2))
  with pytest.raises(ValueError, match=words):
    starting_from(delta, peft).init(jax.random.key(0), tiny.model.sites, tiny.params)


def test_another_precision_is_refused(tiny):
  peft = lora('fc1$', rank=2)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given(tiny, peft))
  with pytest.raises(ValueError, match=r'got .* bfloat16'):
    starting_from(half, peft).init(jax.random.key(0), tiny.model.sites, tiny.params)
