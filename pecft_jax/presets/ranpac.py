"""RanPAC/RanPAC at 012927f (2024-03-08): the authors' code of RanPAC."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

_COMMON: dict[str, Any] = {
  'epochs': 20,
  'batch_size': 48,
  'head': 'cosine',
  'views': parts_from_a_twentieth,
  'value_range': UNIT_RANGE,
  'source': 'RanPAC/RanPAC at 012927f',
}
_BY_STEP = 'the rate follows its schedule by step, there by epoch'


def _where(data: str, classes: str) -> dict[str, tuple[str, ...]]:
  return {
    f'args/{data}_publish.csv, row of ID 7': (
      'method', 'epochs', 'batch_size', 'learning_rate', 'peft', 'model', 'data', 'options.ranpac',
    ),
    'RanPAC.py, incremental_train': ('recipe',),
    'inc_net.py, CosineLinear': ('head',),
    f'utils/data.py, build_transform and {classes}': ('views', 'value_range'),
  }  # fmt: skip


PRESETS = {
  'ranpac': Preset(
    'ranpac',
    {
      'ranpac': {'projection': 10_000},
      'adaptformer': {'width': 64, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'},
    },
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, peft='adaptformer',
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 10 tasks of 10 classes', **_COMMON,
    where={
      **_where('cifar224', 'iCIFAR224'),
      'inc_net.py, get_convnet': ('options.adaptformer.width', 'options.adaptformer.scale'),
      'petl/vision_transformer_adapter.py, Block': (
        'options.adaptformer.dropout', 'options.adaptformer.read',
      ),
    },
    departs=(_BY_STEP,),
  ),
  'ranpac_imagenet_r': Preset(
    'ranpac', {'ranpac': {'projection': 10_000}},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, peft='ssf',
    model='vit_base_patch16_224', data='ImageNet-R, 10 tasks of 20 classes', **_COMMON,
    where=_where('imagenetr', 'iImageNetR'), departs=(_BY_STEP,),
  ),
}  # fmt: skip
