"""HAIV-Lab/SSIAT at 3f1f00d (2025-08-10): the authors' code of SSIAT."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

PRESETS = {
  'ssiat': Preset(
    'ssiat',
    {
      'ssiat': {
        'spread': 4.0, 'epochs': 5, 'samples': 256, 'decay': 0.1, 'shrinkage': 1e-3,
      },
      'adaptformer': {'width': 64, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'},
    },
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, epochs=20, batch_size=48,
    peft='adaptformer', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 5 tasks of 20 classes, seed 1993',
    source='HAIV-Lab/SSIAT at 3f1f00d',
    where={
      'exps_jsons/adapter_cifar224.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'model', 'data', 'options.ssiat.epochs',
        'options.adaptformer.width',
      ),
      'models/SSITA_adapter.py, incremental_train': ('options.ssiat.spread',),
      'models/SSITA_adapter.py, _train': ('recipe',),
      'models/base.py, _stage2_compact_classifier': (
        'options.ssiat.samples', 'options.ssiat.decay',
      ),
      'models/base.py, _compute_class_mean': ('options.ssiat.shrinkage',),
      'network/vision_transformer_adapter.py, Block': (
        'peft', 'options.adaptformer.dropout', 'options.adaptformer.read',
      ),
      'utils/inc_net.py, get_convnet': ('options.adaptformer.scale',),
      'data/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
    },
    departs=(
      'tasks after the first have as many epochs as it, there 10',
      'the rate follows its schedule by step, there by epoch',
      'means move by features of the same image before and after, there of different images',
    ),
  ),
}  # fmt: skip
