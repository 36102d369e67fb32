"""GengDavid/SLCA at 169d4e6 (2024-08-17): the authors' code of SLCA."""

import functools

from pecft_jax.presets.record import CIFAR_RANGE, Preset, slow_backbone
from pecft_jax.presets.views import parts_and_brightness
from pecft_jax.schedules import milestones

PRESETS = {
  'slca': Preset(
    'slca', {'slca': {'epochs': 5, 'samples': 256, 'temperature': 0.1}},
    functools.partial(
      slow_backbone, factor=0.01, weight_decay=5e-4, schedule=milestones((18 / 20,))
    ), 0.01, epochs=20, batch_size=128, views=parts_and_brightness, value_range=CIFAR_RANGE,
    model='vit-b-p16', data='CIFAR-100, 10 tasks of 10 classes', peft='full',
    source='GengDavid/SLCA at 169d4e6',
    where={
      'exps/slca/slca_cifar.json': (
        'method', 'epochs', 'model', 'data', 'options.slca.epochs', 'options.slca.temperature',
      ),
      'models/slca.py, the values at its head': ('learning_rate', 'batch_size'),
      'models/slca.py, _stage1_training': ('recipe', 'peft'),
      'models/slca.py, _stage2_compact_classifier': ('options.slca.samples',),
      'utils/data.py, iCIFAR100_224': ('views', 'value_range'),
    },
  ),
}  # fmt: skip
