"""thu-ml/HiDe-Prompt at 0ed4333: the authors' code of HiDe-Prompt and HiDe-LoRA."""

import functools
from typing import Any

from pecft_jax.presets.record import CIFAR_RANGE, UNIT_RANGE, Preset
from pecft_jax.presets.views import parts_and_brightness, parts_from_a_twentieth
from pecft_jax.recipes import Recipe, adam, grouped
from pecft_jax.schedules import Schedule, cosine, milestones
from pecft_jax.settings import recorded


@recorded
def slow_head(learning_rate: float, *, schedule: Schedule) -> Recipe:
  """Adam with a tenth of the rate for the head.

  >>> slow_head(0.01, schedule=cosine).settings['learning_rate']
  0.01
  """
  return grouped(adam(learning_rate, schedule=schedule, clip=1.0), {'^head': 0.1})


_COMMON: dict[str, Any] = {
  'learning_rate': 0.0028125,
  'batch_size': 192,
  'model': 'vit_base_patch16_224',
  'source': 'thu-ml/HiDe-Prompt at 0ed4333',
}
_DEPARTS = (
  'the rate is written out: there 0.03, times 24 / 256; it follows its schedule by step, there by '
  'epoch',
  'a class has one Gaussian, there 10 centres with variances, without those of single examples',
  'an epoch of alignment visits a batch for each class seen, there for each old class',
  'the head that finds the task reads frozen features, there through two trained layers; its rate '
  'is 5e-4, there 5e-4 times 24 / 256, and its batches of alignment have 120 draws, there 24',
)
_PROMPTS = (*_DEPARTS, 'prefixes start from normal numbers, there uniform in -1..1')

PRESETS = {
  'hide_prompt': Preset(
    'hide_prompt',
    {
      'hide_prompt': {
        'length': 5, 'blend': 0.01, 'contrast': 0.1, 'temperature': 0.8, 'epochs': 30,
        'samples': 120, 'identity_epochs': 20,
      },
    },
    functools.partial(slow_head, schedule=milestones([0.6])), epochs=50,
    views=parts_and_brightness, value_range=CIFAR_RANGE,
    data='CIFAR-100, 10 tasks of 10 classes',
    where={
      'training_scripts/train_cifar100_vit.sh': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data',
        'options.hide_prompt.length', 'options.hide_prompt.blend', 'options.hide_prompt.contrast',
        *(f'options.hide_prompt.{name}' for name in ('epochs', 'identity_epochs')),
      ),
      'engines/hide_promtp_wtp_and_tap_engine.py': (
        'options.hide_prompt.temperature', 'options.hide_prompt.samples',
      ),
      'configs/cifar100_hideprompt_5e.py': ('recipe',),
      'datasets.py, build_cifar_transform': ('views', 'value_range'),
    },
    departs=_PROMPTS,
    **_COMMON,
  ),
  'hide_prompt_imagenet_r': Preset(
    'hide_prompt',
    {
      'hide_prompt': {
        'length': 20, 'blend': 0.01, 'contrast': 0.5, 'temperature': 0.8, 'epochs': 30,
        'samples': 120, 'identity_epochs': 20,
      },
    },
    functools.partial(slow_head, schedule=cosine), epochs=150,
    views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    data='ImageNet-R, 10 tasks of 20 classes',
    where={
      'training_scripts/train_imr_vit.sh': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data',
        'options.hide_prompt.length', 'options.hide_prompt.blend', 'options.hide_prompt.contrast',
        *(f'options.hide_prompt.{name}' for name in ('epochs', 'identity_epochs')),
      ),
      'engines/hide_promtp_wtp_and_tap_engine.py': (
        'options.hide_prompt.temperature', 'options.hide_prompt.samples',
      ),
      'configs/imr_hideprompt_5e.py': ('recipe',),
      'datasets.py, build_transform': ('views', 'value_range'),
    },
    departs=_PROMPTS,
    **_COMMON,
  ),
  'hide_lora': Preset(
    'hide_lora',
    {
      'hide_lora': {
        'blend': 0.1, 'contrast': 0.001, 'epochs': 30, 'samples': 120, 'identity_epochs': 50,
      },
      'lora': {'pattern': r'attn/(k|v)$', 'rank': 5, 'alpha': 1.0},
    },
    functools.partial(adam, schedule=cosine, clip=2.0), epochs=50, peft='lora',
    views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    data='ImageNet-R, 10 tasks of 20 classes',
    where={
      'training_scripts/train_imr_lora.sh': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'model', 'data',
        'options.hide_lora.blend', 'options.hide_lora.contrast', 'options.hide_lora.epochs',
        'options.hide_lora.identity_epochs', 'options.lora.rank',
      ),
      'engines/hide_lora_wtp_and_tap_engine.py': ('options.hide_lora.samples',),
      'peft/lora/hide_lora.py': ('peft', 'options.lora.pattern', 'options.lora.alpha'),
      'configs/imr_hidelora.py': ('recipe',),
      'datasets.py, build_transform': ('views', 'value_range'),
    },
    departs=(*_DEPARTS, 'deltas are blended in training too, there at the end of a task alone'),
    **_COMMON,
  ),
}  # fmt: skip
