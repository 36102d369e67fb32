import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax import backbones, data
from pecft_jax.train import class_features

MODEL = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
TRAIN, _ = data.digits(8)


def test_means_are_those_of_the_first_examples_of_each_class():
  found = class_features(MODEL, TRAIN, per_class=3, batch_size=7)
  for label in (0, 4, 9):
    images = TRAIN.inputs[np.flatnonzero(TRAIN.labels == label)[:3]]
    pixels = MODEL.backbone.inputs
    x = (images / 255.0 - np.array(pixels.mean)) / np.array(pixels.std)
    pooled = MODEL.backbone.apply(MODEL.params, jnp.asarray(x, jnp.float32)).pooled
    # Two orders of summation in float32, over features of size one.
    np.testing.assert_allclose(found[label], np.asarray(pooled).mean(0), atol=1e-5)


def test_a_class_without_examples_and_other_inputs_are_refused():
  lacking = data.arrays('mine', TRAIN.inputs[:5], TRAIN.labels[:5], class_names=list('0123456789'))
  with pytest.raises(ValueError, match="'mine' has no examples of"):
    class_features(MODEL, lacking)
  with pytest.raises(ValueError, match='expects'):
    class_features(MODEL, data.digits(16)[0])
