"""cmnfriend/O-LoRA at 07117e1 (2024-06-15): the authors' code of O-LoRA, on texts."""

import functools

from pecft_jax.presets.record import Preset
from pecft_jax.recipes import adam, constant

PRESETS = {
  'olora': Preset(
    'olora',
    {
      'olora': {'orthogonality': 0.5, 'decay': 0.0},
      'lora': {'rank': 8, 'alpha': 32.0, 'dropout': 0.1},
    },
    functools.partial(adam, schedule=constant), 1e-3, epochs=1, batch_size=64, peft='lora',
    views='none: texts', value_range='token ids', model='t5-large', data='orders 1 to 3 of 4 texts',
    where='cmnfriend/O-LoRA at 07117e1: 8 GPUs x 8', recalled=(),
  ),
}  # fmt: skip
