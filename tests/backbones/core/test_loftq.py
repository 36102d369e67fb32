"""LoftQ against its two steps in float64."""

import jax
import numpy as np
import pytest

from pecft_jax.backbones import loftq, quantised, stack_blocks, vit
from pecft_jax.peft.weights import read
from pecft_jax.quantised import FORMS
from pecft_jax.typing import Pretrained

PATHS = ('block_0/attn/q', 'block_1/attn/q')


@pytest.fixture(scope='module')
def model():
  backbone = vit(
    image_size=4, channels=1, patch=2, width=16, depth=2, heads=2, mean=(0.5,), std=(0.5,)
  )
  return Pretrained(backbone, backbone.init(jax.random.key(0)))


def by_hand(w, form, rank, iterations):
  """`(Q, A B)` of a weight [d_in, d_out]."""
  low = np.zeros_like(w)
  for _ in range(iterations):
    q = np.float64(FORMS[form](np.float32(w - low)).dense())
    u, s, v = np.linalg.svd(w - q)
    low = (u[:, :rank] * s[:rank]) @ v[:rank]
  return q, low


@pytest.mark.parametrize(('form', 'iterations'), [('nf4', 1), ('nf4', 3), ('int8', 2)])
def test_both_steps_alternate(model, form, iterations):
  small, peft = loftq(model, form, 'attn/q$', 3, 9.0, iterations=iterations)
  delta = peft.init(jax.random.key(0), model.backbone.sites, small.params)
  for path in PATHS:
    q, low = by_hand(np.float64(read(model.params, path).main), form, 3, iterations)
    np.testing.assert_allclose(read(small.params, path).main, q, atol=1e-5)
    np.testing.assert_allclose(3 * delta[path].a @ delta[path].b, low, atol=1e-5)  # Scale 3.


def test_together_they_are_nearer_to_the_weights(model):
  small, peft = loftq(model, 'nf4', 'attn/q$', 4)
  delta = peft.init(jax.random.key(0), model.backbone.sites, small.params)
  x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
  for path in PATHS:
    w, q = (read(p, path).main for p in (model.params, quantised(model, 'nf4').params))
    near = read(small.params, path).main + peft.update(delta, path, w)
    assert np.linalg.norm(near - w) < 0.7 * np.linalg.norm(q - w)
  assert small.backbone.apply(small.params, x, delta, peft=peft).pooled.shape == (3, 16)


def test_layers_that_are_stacked_are_the_same(model):
  stacked = model._replace(params=stack_blocks(model.params, 2))
  found = [loftq(each, 'int8', 'attn/q$', 2, iterations=2) for each in (model, stacked)]
  one, two = (peft.init(jax.random.key(0), model.backbone.sites, m.params) for m, peft in found)
  for path in PATHS:
    np.testing.assert_allclose(one[path].a @ one[path].b, two[path].a @ two[path].b, atol=1e-6)


def test_what_is_not_quantised_is_refused(model):
  with pytest.raises(ValueError, match=r"\['patch'\] are in no block"):
    loftq(model, 'nf4', 'patch', 2)
  with pytest.raises(ValueError, match='are quantised: start from float'):
    loftq(quantised(model, 'nf4'), 'nf4')
  with pytest.raises(ValueError, match='rank 17 is above both sides'):
    loftq(model, 'nf4', rank=17)
