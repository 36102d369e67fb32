"""huiyiwang01/SEMA-CL at 5a45512 (2025-04-22): the authors' code of SEMA."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

PRESETS = {
  'sema': Preset(
    'sema',
    {
      'sema': {
        'growing': 3, 'threshold': 2.0, 'hidden': 128, 'descriptor_epochs': 20, 'read': 'residual',
      },
      'adaptformer': {'width': 16, 'scale': 1.0, 'read': 'residual'},
    },
    functools.partial(sgd_with_l2, weight_decay=5e-4), 5e-3, epochs=5, batch_size=32,
    peft='adaptformer', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='vit_base_patch16_224', data='CIFAR-100, 10 tasks of 10 classes, seed 1993',
    source='huiyiwang01/SEMA-CL at 5a45512',
    where={
      'exps/sema_cifar.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'data', 'options.sema.growing',
        'options.sema.threshold', 'options.sema.hidden', 'options.sema.descriptor_epochs',
        'options.adaptformer.width',
      ),
      'models/sema.py, update_optimizer_and_scheduler': ('recipe',),
      'backbone/sema_components.py, Adapter.forward': ('peft', 'options.adaptformer.scale'),
      'backbone/vit_sema.py, Block.forward': (
        'model', 'options.sema.read', 'options.adaptformer.read',
      ),
      'utils/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
    },
    departs=(
      'the rate follows its schedule by step, there by epoch',
      'all blocks decide at once; descriptors know all errors of their task, there the last 500',
    ),
  ),
}  # fmt: skip
