"""gqk/LAE at 1680e49 (2023-08-20): the authors' code of LAE, with adapters."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'lae': Preset(
    'lae',
    {'lae': {'decay': 0.9999, 'frozen_share': 0.6}, 'adaptformer': {'width': 5, 'scale': 1.0}},
    functools.partial(adam, schedule=constant), 2.8125e-3, epochs=5, batch_size=24,
    peft='adaptformer', views=parts, value_range=UNIT_RANGE, model='ViT-B_16',
    data='CIFAR-100, 10 tasks of 10 classes, order 1', source='gqk/LAE at 1680e49',
    where={
      'config/base/cifar100_order1.yaml': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'recipe', 'data', 'options.lae',
      ),
      'config/vit_adapter.yaml': ('peft', 'model', 'options.adaptformer.width'),
      'libml/model/misc/scaler.py': ('options.adaptformer.scale',),
      'libml/data/transform.py; main.py, MyDataModule': ('views', 'value_range'),
    },
    departs=(
      'adapters stand beside the MLP of all blocks, there beside attention of the first five',
      'the scale of an adapter is fixed and its activation ReLU, there trained from 1, and GELU',
    ),
  ),
}  # fmt: skip
