"""Transforms that add keys, in one chain with those that make heads wider."""

import jax
import numpy as np
import pytest
from tinies import tiny_peft
from tiny_runs import tiny_vit

from pecft_jax.peft import chain


def features(names, delta=None):
  """Features with a chain of transforms, and its delta, which is drawn if it is not given."""
  model, peft = tiny_vit(), chain(**{name: tiny_peft(name) for name in names})
  params = model.init(jax.random.key(0))
  if delta is None:
    delta = peft.init(jax.random.key(1), model.sites, params)
    leaves, form = jax.tree.flatten(delta)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    shaken = [
      leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    delta = jax.tree.unflatten(form, shaken)
  x = jax.random.normal(jax.random.key(3), (3, *model.inputs.shape))
  return model.apply(params, x, delta, peft=peft).pooled, delta


@pytest.mark.parametrize('wider', ['gated_prefix', 'unipelt'])
def test_a_prefix_may_stand_before_or_after_one(wider):
  first, delta = features([wider, 'prefix'])
  last, _ = features(['prefix', wider], delta)
  np.testing.assert_allclose(first, last, atol=2e-6)
  without, _ = features([wider], {wider: delta[wider]})
  assert np.abs(first - without).max() > 1e-2


@pytest.mark.parametrize('wider', ['gated_prefix', 'unipelt'])
def test_what_reads_queries_must_not_stand_before_one(wider):
  features([wider, 'llama_adapter'])
  with pytest.raises(ValueError, match='put that part before llama_adapter'):
    features(['llama_adapter', wider])


@pytest.mark.parametrize('names', [('gated_prefix', 'unipelt'), ('unipelt', 'gated_prefix')])
def test_two_that_read_queries_and_make_them_wider_do_not_go_together(names):
  with pytest.raises(ValueError, match=f'{names[0]}: .* leave one of them out'):
    features(names)
