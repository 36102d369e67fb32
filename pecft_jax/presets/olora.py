"""cmnfriend/O-LoRA at 07117e1 (2024-06-15): the authors' code of O-LoRA, on texts."""

import functools

from pecft_jax.presets.record import Preset
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'olora': Preset(
    'olora',
    {
      'olora': {'orthogonality': 0.5, 'decay': 0.0},
      'lora': {'rank': 8, 'alpha': 32.0, 'dropout': 0.1},
    },
    functools.partial(adam, schedule=constant), 1e-3, epochs=1, batch_size=64, peft='lora',
    views=None, value_range=None, model='t5-large',
    data='order 1 of dbpedia, amazon, yahoo, agnews', source='cmnfriend/O-LoRA at 07117e1',
    where={
      'scripts/order_1.sh': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data', 'options.olora',
      ),
      'src/run_uie_lora.py': ('peft', 'options.lora', 'recipe'),
    },
    departs=('the batch is that of 8 GPUs with 8 examples each',),
  ),
}  # fmt: skip
