"""jpmorganchase/ovor at 4f59b75: the authors' code of OnePrompt and OVOR."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import adam
from pecft_jax.schedules import quarter_cosine

_PREFIX = {'pattern': r'block_[0-4]/attn$', 'length': 20}
_COMMON: dict[str, Any] = {
  'recipe': functools.partial(adam, schedule=quarter_cosine),
  'learning_rate': 1e-3,
  'batch_size': 128,
  'views': parts,
  'value_range': UNIT_RANGE,
  'model': 'vit_base_patch16_224',
  'data': 'ImageNet-R, 10 tasks of 20 classes',
  'source': 'jpmorganchase/ovor at 4f59b75',
  'peft': 'prefix',
}
_WHERE = {
  'configs/common.yaml': ('batch_size', 'learning_rate', 'recipe'),
  'configs/imnet-r_prompt.yaml': ('data',),
  'models/zoo.py, OnePrompt': ('peft', 'options.prefix'),
  'models/zoo.py, ViTZoo': ('model',),
  'dataloaders/dataset.py, get_transform': ('views', 'value_range'),
}
_DEPARTS = (
  'the rate follows its schedule by step, there by epoch',
  'prefixes have 20 keys in all five blocks, there 5 in the first two; they start from normal '
  'numbers, there uniform in 0..1',
)

PRESETS = {
  'oneprompt': Preset(
    'masked_finetune', {'prefix': _PREFIX}, epochs=50,
    where={**_WHERE, 'experiments/imagenet-r.sh': ('method', 'epochs')},
    departs=_DEPARTS,
    **_COMMON,
  ),
  'ovor': Preset(
    'masked_finetune',
    {
      'prefix': _PREFIX,
      'ovor': {
        'epochs': 10, 'strength': 0.1, 'inside': -15.0, 'outside': -3.0, 'outliers': 800,
        'boundary': 50, 'draws': 600, 'spread': 0.1, 'neighbour': 50, 'batch': 128,
        'at_origin': True,
      },
    },
    epochs=40, wrap=('ovor',),
    where={
      **_WHERE,
      'configs/common.yaml': (
        'batch_size', 'learning_rate', 'recipe', 'options.ovor.strength', 'options.ovor.inside',
        'options.ovor.outside', 'options.ovor.spread',
      ),
      'experiments/imagenet-r.sh': ('method', 'epochs', 'wrap', 'options.ovor.epochs'),
      'learners/ood.py, NPOS': (
        'options.ovor.outliers', 'options.ovor.boundary', 'options.ovor.draws',
        'options.ovor.neighbour', 'options.ovor.batch', 'options.ovor.at_origin',
      ),
    },
    departs=(
      *_DEPARTS,
      'outliers are found once, there in each epoch; the head is tuned with a schedule of its own',
    ),
    **_COMMON,
  ),
}  # fmt: skip
