"""yaoyz96/low-rank-cl at d007ef5 (2026-05-18): the authors' code of EWC-LoRA, with others."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import Recipe, adam, grouped

_WHERE = {
  'dataloaders/data.py, iCIFAR100': ('views', 'value_range'),
  'methods/base.py, build_optimizer': ('recipe',),
}
_COMMON = {
  'epochs': 20,
  'batch_size': 128,
  'peft': 'lora',
  'views': parts,
  'value_range': UNIT_RANGE,
  'model': 'vit_base_patch16_224_in21k',
  'data': 'CIFAR-100, 10 tasks of 10 classes, seed 0, not shuffled',
  'source': 'yaoyz96/low-rank-cl at d007ef5',
}
_CONFIG = ('method', 'learning_rate', 'epochs', 'batch_size', 'data', 'model', 'options.lora.rank')
_ATTENTION = ('peft', 'options.lora.pattern', 'options.lora.alpha')
_BY_STEP = 'the rate follows its schedule by step, there by epoch'
_OF_KEYS = {'pattern': r'attn/(k|v)$', 'rank': 10, 'alpha': 10.0}


def _faster_head(learning_rate: float) -> Recipe:
  """Adam, with ten times the rate for the head."""
  return grouped(adam(learning_rate), {'^head': 10.0})


PRESETS = {
  'ewclora': Preset(
    'ewclora',
    {
      'ewclora': {'strength': 1e7, 'decay': 1.0, 'per_example': False, 'by_factors': True},
      'lora': _OF_KEYS,
    },
    _faster_head, 5e-4, **_COMMON,
    where={
      'configs/ewclora/cifar100.json': (
        *_CONFIG, 'options.ewclora.strength', 'options.ewclora.decay',
      ),
      'methods/ewclora.py, FisherComputer': ('options.ewclora.per_example',),
      'models/vit.py, Attention_LoRA': (*_ATTENTION, 'options.ewclora.by_factors'),
      **_WHERE,
    },
    departs=(_BY_STEP, 'the Fisher information is of images as they are, there of augmented ones'),
  ),
  'inclora': Preset(
    'olora', {'olora': {'orthogonality': 0.0, 'decay': 0.0}, 'lora': _OF_KEYS},
    _faster_head, 5e-4, **_COMMON,
    where={
      'configs/baseline/cifar100.json': _CONFIG,
      'methods/baseline.py': ('options.olora',),
      'models/vit.py, Attention_LoRA': _ATTENTION,
      **_WHERE,
    },
    departs=(
      _BY_STEP, 'products are summed over tasks, there factors; the source calls it SeqLoRA',
    ),
  ),
  'sdlora': Preset(
    'sdlora', {'sdlora': {'start': 0.8, 'handed': False}, 'lora': _OF_KEYS},
    functools.partial(adam), 8e-3, **_COMMON,
    where={
      'configs/sdlora/cifar100.json': _CONFIG,
      'models/vit_sdlora.py, Attention_LoRA': (*_ATTENTION, 'options.sdlora'),
      **_WHERE,
    },
    departs=(
      _BY_STEP,
      'past magnitudes start again at each task, there they go on from 0.8 where they were left',
    ),
  ),
}  # fmt: skip
