"""liangyanshuo/InfLoRA at e08b00e (2025-03-13): the authors' code of InfLoRA."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import adam
from pecft_jax.schedules import quarter_cosine

PRESETS = {
  'inflora': Preset(
    'inflora', {'inflora': {'threshold': 0.95}},
    functools.partial(adam, schedule=quarter_cosine), 5e-4, epochs=20, batch_size=128,
    views=parts, value_range=UNIT_RANGE, model='vit_base_patch16_224_in21k',
    data='CIFAR-100, 10 tasks of 10 classes, seeds 0 to 4, not shuffled',
    source='liangyanshuo/InfLoRA at e08b00e',
    where={
      'configs/cifar100_inflora.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'data', 'options.inflora',
      ),
      'methods/inflora.py; utils/schedulers.py, CosineSchedule': ('recipe',),
      'utils/data.py, iCIFAR100': ('views', 'value_range'),
      'models/sinet_inflora.py': ('model',),
    },
    departs=('the rate follows its schedule by step, there by epoch',),
  ),
}  # fmt: skip
