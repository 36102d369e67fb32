"""P-tuning beside prompt tuning, and its network against numpy in float64."""

import jax
import numpy as np
import pytest
from layers import wide
from tiny_vit import shaken

from pecft_jax.peft import p_tuning, prompt_tuning
from pecft_jax.peft.tokens.p_tuning import encoded


def moved(tiny):
  delta = p_tuning(length=3, hidden=5).init(jax.random.key(0), tiny.model.sites, tiny.params)
  return shaken(delta, 1)


def test_the_network_has_three_layers(tiny):
  leaf = moved(tiny)['encoder']
  x = wide(leaf.embeddings)
  for i, layer in enumerate(leaf[1:]):
    x = x @ wide(layer.kernel) + wide(layer.bias)
    x = np.maximum(x, 0) if i < 2 else x
  np.testing.assert_allclose(encoded({'encoder': leaf})['encoder'].tokens, x, atol=1e-5)


def test_equals_prompt_tuning_with_the_encoded_prompt(tiny):
  delta = moved(tiny)
  apply = lambda peft, delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  own = apply(p_tuning(length=3, hidden=5), delta)
  np.testing.assert_array_equal(own, apply(prompt_tuning(length=3), encoded(delta)))


def test_the_count_is_the_documented_one(tiny):
  size = sum(leaf.size for leaf in jax.tree.leaves(moved(tiny)))
  assert size == 3 * 24 + 2 * 24 * 5 + 5**2 + 2 * 5 + 24


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='length must be at least 1, got 0'):
    p_tuning(length=0)
  with pytest.raises(ValueError, match='hidden must be at least 1, got 0'):
    p_tuning(hidden=0)
