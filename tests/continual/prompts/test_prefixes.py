import jax
import numpy as np
import pytest

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual.prompts.prefixes import drawn, hundredth, layers_of, room_for, with_slot

from ..tiny import TOY


def blocks(depth):
  return vit(image_size=8, channels=1, patch=4, width=8, depth=depth, heads=2, mean=(0.5,),
             std=(0.5,))  # fmt: skip


def test_published_blocks_are_those_that_the_backbone_has_or_its_last():
  assert layers_of(blocks(6), None, (2, 3, 4)) == [2, 3, 4]
  assert layers_of(blocks(4), None, (2, 3, 4)) == [2, 3]
  assert layers_of(blocks(2), None, (2, 3, 4)) == [1]
  assert layers_of(blocks(2), (7,), (0, 1)) == [7]  # Refused where sites are looked for.
  with pytest.raises(ValueError, match='has no blocks'):
    layers_of(TOY._replace(sites=()), None, (0,))


def test_every_leaf_is_drawn_with_a_key_of_its_own():
  tree = {'a': np.zeros((3, 40)), 'b': np.ones((3, 40))}
  found = drawn(tree, jax.random.key(0), hundredth)
  assert np.abs(found['a'] - found['b']).max() > 1e-3
  for leaf in found.values():
    assert leaf.shape == (3, 40) and 0 <= leaf.min() < 0.001 and 0.009 < leaf.max() < 0.01


def test_a_slot_is_written_alone_and_passes_gradients_on():
  bank = room_for(4, {'a': np.ones(2, np.float32)})
  put = lambda new: with_slot(bank, 2, {'a': new})['a']
  found = put(np.array([5.0, 6.0], np.float32))
  assert found.tolist() == [[0, 0], [0, 0], [5, 6], [0, 0]]
  slope = jax.grad(lambda new: (put(new) ** 2).sum())(np.array([5.0, 6.0], np.float32))
  assert slope.tolist() == [10, 12]
