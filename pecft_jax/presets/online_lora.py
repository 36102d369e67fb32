"""Christina200/Online-LoRA-official at 96e7de0 (2025-08-26): the authors' code of Online-LoRA."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts_from_a_twentieth
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'online_lora': Preset(
    'online_lora',
    {
      'online_lora': {
        'strength': 2000.0, 'size': 256, 'replay': 4.0, 'window': 5, 'mean_threshold': 6.0,
        'variance_threshold': 0.1, 'by_factors': True, 'zeroed': True, 'hardest_only': True,
      },
      'lora': {'pattern': r'attn/(q|v)$', 'rank': 4, 'alpha': 4.0},
    },
    functools.partial(adam, schedule=constant), 1e-4, epochs=1, batch_size=64, peft='lora',
    views=parts_from_a_twentieth, value_range=UNIT_RANGE, model='vit_base_patch16_224',
    data='CIFAR-100, 10 tasks of 10 classes, seed 42, not shuffled',
    source='Christina200/Online-LoRA-official at 96e7de0',
    where={
      'Disjoint/configs/cifar100_online_lora.py': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data', 'options.lora.rank',
        'options.online_lora.strength', 'options.online_lora.size', 'options.online_lora.window',
        'options.online_lora.mean_threshold', 'options.online_lora.variance_threshold',
      ),
      'Disjoint/engine.py': (
        'options.online_lora.replay', 'options.online_lora.hardest_only',
      ),
      'Disjoint/main.py': ('recipe',),
      'Disjoint/lora.py': (
        'peft', 'options.lora.pattern', 'options.lora.alpha', 'options.online_lora.by_factors',
        'options.online_lora.zeroed',
      ),
      'Disjoint/datasets.py, build_transform': ('views', 'value_range'),
    },
    departs=(
      'the hardest 256 examples are stored, there the 4 hardest batches of 64',
      'the importance is that of one example, there of one batch whose logits are taken as one row',
      'the softmax is over the classes seen, there over all of the sequence',
      'a window counts once it is full, there from the first step',
      'the optimizer starts afresh in each task, there never',
    ),
  ),
}  # fmt: skip
