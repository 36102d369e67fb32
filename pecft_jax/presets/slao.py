"""arXiv:2512.23017 at v1 (2025-12-28): the paper of SLAO, on texts."""

import functools

from pecft_jax.presets.record import UNVERIFIED, Preset
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'slao': Preset(
    'slao', {'slao': {'power': 0.5}, 'lora': {'pattern': r'attn/(q|v)$', 'rank': 8}},
    functools.partial(adam, schedule=constant), 1e-4, epochs=1, batch_size=8, peft='lora',
    views=None, value_range=None, model='Llama-2-7B-chat',
    data='order 1 of dbpedia, amazon, yahoo, agnews', source='arXiv:2512.23017 at v1',
    where={
      'section on merging': ('method', 'options.slao'),
      UNVERIFIED: (
        'learning_rate', 'epochs', 'batch_size', 'model', 'data', 'recipe', 'peft', 'options.lora',
      ),
    },
    departs=('the batch is that of 8 steps with an example each', 'a head is trained here'),
  ),
}  # fmt: skip
