"""GT-RIPL/CODA-Prompt at 6417d4f (2023-09-25): CODA-Prompt's authors, with their DualPrompt."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import adam
from pecft_jax.schedules import quarter_cosine

_COMMON: dict[str, Any] = {
  'recipe': functools.partial(adam, schedule=quarter_cosine),
  'learning_rate': 1e-3,
  'epochs': 20,
  'batch_size': 128,
  'views': parts,
  'value_range': UNIT_RANGE,
  'model': 'vit_base_patch16_224',
  'data': 'CIFAR-100, 10 tasks of 10 classes, seeds 0 to 4',
  'source': 'GT-RIPL/CODA-Prompt at 6417d4f',
}
_WHERE = {
  'configs/cifar-100_prompt.yaml': ('epochs', 'batch_size', 'learning_rate', 'data'),
  'learners/prompt.py, init_optimizer; utils/schedulers.py': ('recipe',),
  'dataloaders/utils.py, get_transform': ('views', 'value_range'),
  'models/zoo.py, ViTZoo': ('model',),
}
_BY_STEP = 'the rate follows its schedule by step, there by epoch'

PRESETS = {
  'dualprompt': Preset(
    'dualprompt',
    {
      'dualprompt': {
        'general': 3, 'expert': 10, 'general_layers': [0, 1], 'expert_layers': [2, 3, 4],
        'pull': 128.0, 'transfer': False,
      },
    },
    where={
      **_WHERE,
      'experiments/cifar-100.sh': (
        'method', 'options.dualprompt.general', 'options.dualprompt.expert',
      ),
      'models/zoo.py, DualPrompt': (
        'options.dualprompt.general_layers', 'options.dualprompt.expert_layers',
        'options.dualprompt.pull', 'options.dualprompt.transfer',
      ),
    },
    departs=(
      _BY_STEP,
      'lengths count keys, there keys and values together: 6 and 20',
      'the pull is a mean over the batch, there a sum: 128 times as much',
      'a task has one key, there one for each block; prompts and keys start in 0..0.01, there 0..1',
      'experts of tasks not seen yet are never selected, there by their untrained keys',
    ),
    **_COMMON,
  ),
  'coda_prompt': Preset(
    'coda_prompt',
    {
      'coda_prompt': {
        'pool': 100, 'length': 4, 'layers': [0, 1, 2, 3, 4], 'orthogonality': 0.0,
      },
    },
    where={
      **_WHERE,
      'experiments/cifar-100.sh': (
        'method', 'options.coda_prompt.pool', 'options.coda_prompt.length',
        'options.coda_prompt.orthogonality',
      ),
      'models/zoo.py, CodaPrompt': ('options.coda_prompt.layers',),
    },
    departs=(_BY_STEP, 'the length counts keys, there keys and values together: 8'),
    **_COMMON,
  ),
}  # fmt: skip
