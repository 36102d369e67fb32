"""HHHLF/LoDA_ICML2026 at 92f8ba8 (2026-06-09): the authors' code of LoDA."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

PRESETS = {
  'loda': Preset(
    'loda',
    {
      'loda': {
        'general': 0.25, 'isolated': 0.5, 'balance': 3.0, 'radius': 0.3, 'twice': True,
      },
      'lora': {'pattern': r'attn/(q|k|v)$', 'rank': 32, 'alpha': 32.0},
    },
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.005, epochs=20, batch_size=48,
    peft='lora', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 10 tasks of 10 classes, seed 1993',
    source='HHHLF/LoDA_ICML2026 at 92f8ba8',
    where={
      'exps/dlora/cifar10.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'data', 'options.lora.rank',
        'options.loda.balance', 'options.loda.radius',
      ),
      'methods/dlora.py, Learner': ('recipe', 'options.loda.twice'),
      'models/decomposed_lora.py, Attention_LoRA': (
        'peft', 'options.lora.pattern', 'options.lora.alpha', 'options.loda.general',
        'options.loda.isolated',
      ),
      'models/network.py, MANet': ('model',),
      'utils/data.py, build_transform': ('views', 'value_range'),
    },
    departs=(
      'both halves of a batch are one update, there two',
      'the factors of each linear map are moved by a gradient of norm 1, there those of queries, '
      'keys and values together',
      'the rate follows its schedule by step, there by epoch',
      'moments are of images as they are, there of augmented ones',
      'the head of a task is one of all classes, there one of its own',
    ),
  ),
}  # fmt: skip
