"""OFT by itself."""

import numpy as np
import pytest
from one_layer import random_layer
from tiny_vit import shaken

from pecft_jax.peft import oft

LAYER = random_layer(12, 5)


def skew(upper):
  q = np.zeros((3, 3))
  q[0, 1], q[0, 2], q[1, 2] = np.asarray(upper, np.float64)
  return q - q.T


def series(q):
  return np.eye(3) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def exact(q):
  return (np.eye(3) - q) @ np.linalg.inv(np.eye(3) + q)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('terms', 'rotation'), [(5, series), (None, exact)])
def test_is_the_definition(terms, rotation, shared):
  peft = oft('fc', 3, terms=terms, shared=shared)
  delta = shaken(LAYER.start(peft), 1)
  blocks = [rotation(skew(upper)) for upper in np.resize(delta['fc'].q, (4, 3))]
  moved = np.zeros_like(LAYER.w)
  for i, block in enumerate(blocks):
    moved[3 * i : 3 * i + 3] = block @ LAYER.w[3 * i : 3 * i + 3]
  LAYER.check_moved(peft, delta, moved)


def test_the_exact_form_keeps_angles_and_the_series_nearly():
  def gram(peft, size):
    delta = shaken(LAYER.start(peft), 1, size)
    moved = np.asarray(LAYER.merged(peft, delta))
    return moved.T @ moved

  plain = LAYER.w.T @ LAYER.w
  np.testing.assert_allclose(gram(oft('fc', 6, terms=None), 0.5), plain, atol=1e-4)
  np.testing.assert_allclose(gram(oft('fc', 6), 0.01), plain, atol=1e-4)
  assert np.abs(gram(oft('fc', 6), 0.5) - plain).max() > 0.1


def test_a_block_that_does_not_divide_the_inputs_is_refused():
  with pytest.raises(ValueError, match='fc: expected a block that divides its 12 inputs, got 5'):
    LAYER.start(oft('fc', 5))
  with pytest.raises(ValueError, match='terms must be at least 4, got 3'):
    oft(terms=3)
