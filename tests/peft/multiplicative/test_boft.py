"""BOFT by itself."""

import numpy as np
import pytest
from one_layer import Layer, random_layer
from tiny_vit import shaken

from pecft_jax.peft import boft

D, OUT, BLOCK = 32, 5, 4
LAYER = random_layer(D, OUT)


def factor(i, numbers):
  """T_i as a matrix: the k-th runs of both halves of each group are rotated together."""
  t, half = np.zeros((D, D)), BLOCK // 2
  for place, m in enumerate(np.asarray(numbers, np.float64)):
    group, k = divmod(place, 1 << i)
    first = (BLOCK << i) * group + half * k
    runs = first, first + (BLOCK << i) // 2
    both = np.concatenate([np.arange(run, run + half) for run in runs])
    a = (m - m.T) / 2
    t[np.ix_(both, both)] = (np.eye(BLOCK) - a) @ np.linalg.inv(np.eye(BLOCK) + a)
  return t


@pytest.mark.parametrize('factors', [1, 2, 3])
def test_is_the_definition(factors):
  peft = boft('fc', BLOCK, factors)
  delta = shaken(LAYER.start(peft), 1)
  rotation = np.eye(D)
  for i, numbers in enumerate(delta['fc'].r):
    rotation = factor(i, numbers) @ rotation
  moved = rotation @ LAYER.w * np.asarray(delta['fc'].s)
  LAYER.check_moved(peft, delta, moved)


def test_factors_bring_inputs_together_that_blocks_leave_apart():
  def reach(factors):
    """How many inputs the first row of the rotation mixes."""
    layer, peft = Layer(np.eye(D), np.zeros(D), None), boft('fc', BLOCK, factors)
    rotation = layer.merged(peft, shaken(layer.start(peft), 1))
    return np.count_nonzero(np.abs(rotation[0]) > 1e-6)

  assert [reach(factors) for factors in (1, 2, 3, 4)] == [4, 8, 16, 32]


def test_works_without_a_bias():
  peft = boft('fc', BLOCK)
  delta = shaken(LAYER.start(peft), 1)
  with_bias, without = (LAYER.through(peft, delta, bias=bias) for bias in (True, False))
  np.testing.assert_allclose(without, with_bias - LAYER.b, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='to divide its 32 inputs, got block=4, factors=5'):
    LAYER.start(boft('fc', 4, 5))
  with pytest.raises(ValueError, match='need a block of even size, got block=3'):
    boft('fc', 3, 2)
