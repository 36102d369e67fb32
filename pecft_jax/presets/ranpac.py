"""RanPAC/RanPAC at 012927f (2024-03-08): the authors' code of RanPAC."""

import functools

from pecft_jax.presets.record import Preset, sgd_with_l2

_COMMON = {
  'epochs': 20,
  'batch_size': 48,
  'views': 'random resized crop and horizontal flips',
  'value_range': '[0, 1]',
  'where': 'RanPAC/RanPAC at 012927f',
  'recalled': ('views', 'value_range', 'recipe'),
}

PRESETS = {
  'ranpac': Preset(
    'ranpac', {'ranpac': {'projection': 10_000}, 'adaptformer': {'width': 64, 'scale': 0.1}},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, peft='adaptformer',
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 10 tasks of 10 classes', **_COMMON,
  ),
  'ranpac_imagenet_r': Preset(
    'ranpac', {'ranpac': {'projection': 10_000}},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, peft='ssf',
    model='vit_base_patch16_224', data='ImageNet-R, 10 tasks of 20 classes', **_COMMON,
  ),
}  # fmt: skip
