"""BOFT by itself."""

import numpy as np
import pytest
from one_layer import Layer, random_layer
from tiny_vit import shaken

from pecft_jax.peft import boft

D, OUT, BLOCK = 32, 5, 4
LAYER = random_layer(D, OUT)


def factor(i, numbers):
  """T_i as a matrix: which inputs each block rotates, written out."""
  t, group, half = np.zeros((D, D)), BLOCK << i, BLOCK // 2
  for place, m in enumerate(np.asarray(numbers, np.float64)):
    a = (m - m.T) / 2
    first = place * BLOCK // group * group  # Of the group.
    run = place * 2 % (group // half)  # Of the block's two runs of half a block in its group.
    near = [first + half * at + j for at in (run, run + 1) for j in range(half)]
    # Runs are dealt to the first and to the second half of a group in turn.
    dealt = [first + (k - first) // half % 2 * (group // 2) + (k - first) // half // 2 * half
             + (k - first) % half for k in near]  # fmt: skip
    t[np.ix_(dealt if i else near, dealt if i else near)] = (
      np.eye(BLOCK) - a) @ np.linalg.inv(np.eye(BLOCK) + a)  # fmt: skip
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
