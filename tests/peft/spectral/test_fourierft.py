"""FourierFT by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import fourierft
from pecft_jax.peft.spectral.fourierft import places

D, OUT = 9, 7
LAYER = random_layer(D, OUT)


def test_is_the_definition():
  peft = fourierft('fc', 10, 30.0, seed=5)
  delta = shaken(LAYER.start(peft), 1)
  moved, rows, columns = LAYER.w.copy(), np.arange(D)[:, None], np.arange(OUT)
  for place, c in zip(places(D * OUT, 10, 5), np.asarray(delta['fc'].spectrum), strict=True):
    angle = place // D * columns / OUT + place % D * rows / D
    moved += 30 / (D * OUT) * c * np.cos(2 * np.pi * angle)
  LAYER.check_moved(peft, delta, moved)


def test_places_are_distinct_and_the_first_of_more():
  found = places(100, 100, 3)
  np.testing.assert_array_equal(np.sort(found), np.arange(100))
  np.testing.assert_array_equal(places(100, 7, 3), found[:7])
  assert (places(100, 7, 4) != found[:7]).any()


def test_starts_at_the_frozen_weight_without_spread():
  peft = fourierft('fc', 10, spread=0.0)
  np.testing.assert_allclose(LAYER.merged(peft, LAYER.start(peft)), LAYER.w, rtol=1e-7)


def test_numbers_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r'fc: expected at most .* \[9, 7\] .* got 64'):
    LAYER.start(fourierft('fc', 64))
  with pytest.raises(ValueError, match='seed must be below'):
    fourierft(seed=1 << 32)
