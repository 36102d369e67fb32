"""A mesh that cuts attention heads is warned of."""

import warnings

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.devices.cut_heads import warn_of_cut_heads
from pecft_jax.devices.rules import fsdp, tensor_parallel
from pecft_jax.devices.sharding import Layout

IMAGES = dict(
  image_size=8, channels=1, patch=4, width=24, depth=2, heads=6, mean=(0.5,), std=(0.5,)
)  # fmt: skip
TEXTS = dict(vocabulary=8, width=32, depth=1, heads=4, kv_heads=2, hidden=16, length=4)


def warn(backbone, parts, rules):
  mesh = AbstractMesh((2, parts), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
  frozen = jax.eval_shape(backbone.init, jax.random.key(0))
  warn_of_cut_heads(Layout(mesh, rules), backbone.sites, frozen)


@pytest.mark.parametrize('form', [{}, {'scan': True}, {'fused': False}])
def test_heads_that_the_devices_do_not_divide_are_named(form):
  with pytest.warns(UserWarning, match="4 devices of axis 'model' do not divide the 6 .*attn/"):
    warn(vit(**IMAGES, **form), 4, tensor_parallel())


def test_shared_keys_count_too():
  with pytest.warns(UserWarning, match='the 4 attention heads and 2 of keys and values of'):
    warn(decoder(**TEXTS), 4, tensor_parallel())


@pytest.mark.parametrize(('parts', 'rules'), [(3, tensor_parallel()), (4, fsdp('model')), (4, ())])
def test_whole_heads_are_fine(parts, rules):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    warn(vit(**IMAGES), parts, rules)
