"""Cards of ViTs in timm's naming have the sizes of timm's models."""

import jax
import pytest

from pecft_jax.backbones import architecture, cards
from pecft_jax.paths import tree_size

timm = pytest.importorskip('timm')
torch = pytest.importorskip('torch')

NAMES = [name for name in cards() if name.startswith('vit_') and name.endswith('_224')]


@pytest.mark.parametrize('name', NAMES)
def test_a_card_has_as_many_parameters_as_timms_model(name):
  with torch.device('meta'):
    theirs = timm.create_model(name, num_classes=0)
  ours = architecture(name)
  shapes = jax.eval_shape(ours.init, jax.eval_shape(lambda: jax.random.key(0)))
  assert tree_size(shapes) == sum(each.numel() for each in theirs.parameters())
  assert ours.depth == len(theirs.blocks)
  assert ours.width == theirs.embed_dim
  config = theirs.default_cfg
  assert ours.inputs.shape == (*config['input_size'][1:], config['input_size'][0])
