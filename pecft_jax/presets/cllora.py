"""JiangpengHe/CL-LoRA at df4e74e (2025-07-14): the authors' code of CL-LoRA."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

PRESETS = {
  'cllora': Preset(
    'cllora',
    {
      'cllora': {
        'distillation': 5.0, 'temperature': 2.0, 'orthogonality': 1e-4, 'reassigned': True,
        'detached': False,
      },
      'lora': {'pattern': r'attn/(q|v)$', 'rank': 8, 'alpha': 8.0},
    },
    functools.partial(sgd_with_l2, weight_decay=1e-4), 0.03, epochs=30, batch_size=64, peft='lora',
    head='cosine', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 20 tasks of 5 classes, seed 1993',
    source='JiangpengHe/CL-LoRA at df4e74e',
    where={
      'exps/cifar.json': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data', 'options.lora.pattern',
        'options.lora.rank',
      ),
      'models/cllora.py': ('recipe', 'options.cllora'),
      'backbone/vit_cllora.py, Adapter_lora': ('peft', 'options.lora.alpha'),
      'utils/inc_net.py, OurNet.generate_fc': ('head',),
      'utils/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
    },
    departs=(
      'the rate follows its schedule by step, there by epoch',
      'the distillation is a step of its own there, before that of the other terms',
      'shared down-projections are drawn uniformly, there of positive matrices, whose first '
      'direction is nearly constant',
      'numbers for keys, which scale nothing, take part in the orthogonality there',
    ),
  ),
}  # fmt: skip
