"""siddheshsp0/Continual-Learning-Papers-implementation at e48c7ec: C-ADA, as others read it."""

import functools

from pecft_jax.presets.record import CIFAR_RANGE, Preset
from pecft_jax.presets.views import flips
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'cada': Preset(
    'cada',
    {
      'cada': {'orthogonality': 0.1, 'side': 'up', 'masked': False},
      'adaptformer': {'width': 64, 'scale': 1.0},
    },
    functools.partial(adam, schedule=constant), 1e-3, epochs=20, batch_size=64,
    views=flips, value_range=CIFAR_RANGE, model='vit_base_patch16_224',
    data='CIFAR-100, 10 tasks of 10 classes in order', peft='adaptformer',
    source='siddheshsp0/Continual-Learning-Papers-implementation at e48c7ec',
    where={
      'baselines/beyond_prompt/config.yaml': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'model', 'data',
        'options.cada.orthogonality', 'options.adaptformer.width',
      ),
      'baselines/beyond_prompt/train.py': (
        'recipe', 'views', 'value_range', 'options.cada.masked',
      ),
      'baselines/beyond_prompt/model.py': (
        'peft', 'options.cada.side', 'options.adaptformer.scale',
      ),
    },
    departs=(
      'a slice per task as in the paper, whose authors published no code; there one adapter of '
      'all tasks, behind the block, whose W_up W_up^T is drawn to the identity',
      'scales and shifts are beside all layers, and trained on the first task; there behind the '
      'last norm, and trained on all',
    ),
  ),
}  # fmt: skip
